// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

/// What the benchmarks share: a cache on a simulated machine without bytes, so that what is timed is
/// Harvest's own work, and sizes that shrink for the smoke run.
namespace harvest::bench {

inline constexpr std::uint64_t MiB = 1ULL << 20;

inline bool smoke() {
  return std::getenv("HARVEST_BENCHMARK_SMOKE") != nullptr;
}  // NOLINT(concurrency-mt-unsafe)

template <typename T>
T value_of(Result<T> result) {
  if (result) return std::move(*result);
  std::fprintf(stderr, "benchmark: %s\n", result.error().message.c_str());
  std::exit(1);  // NOLINT(concurrency-mt-unsafe)
}

inline void check(const Status& status) {
  if (status) return;
  std::fprintf(stderr, "benchmark: %s\n", status.error().message.c_str());
  std::exit(1);  // NOLINT(concurrency-mt-unsafe)
}

struct World {
  /// `objects` objects of `bytes` each, half of them resident on the peer and all on the host.
  World(std::uint32_t objects, std::uint64_t bytes) {
    backend = value_of(make_simulated_backend(value_of(machine_from_preset("2xh100-nvl")),
                                              {.bytes = SimulatedBytes::phantom}));
    PeerCacheConfig config;
    config.verify_paths = false;
    config.host_budget_bytes = 0;
    config.peer_budget_bytes = std::max<std::uint64_t>(objects * bytes / 2, 4 * MiB);
    config.segment_min_bytes = config.segment_max_bytes = 4 * MiB;
    config.max_objects = objects + 16;
    config.pressure.growth_bytes_per_s = 1ULL << 40;
    config.background_bytes = 1ULL << 40;
    cache = value_of(PeerCache::create(*backend, std::move(config)));
    stream = value_of(backend->create_stream(0));
    std::byte* host = value_of(backend->reserve_host_range(std::uint64_t{objects} * bytes));
    for (std::uint32_t i = 0; i < objects; ++i)
      value_of(cache->put(Key{i * 0x9E3779B97F4A7C15ULL, i}, host + i * bytes, bytes,
                          {.backing = Backing::external_host}));
    check(cache->settle(backend->now_ns() + 3'600'000'000'000));
  }

  std::unique_ptr<SimulatedBackend> backend;
  std::unique_ptr<PeerCache> cache;
  StreamId stream = StreamId::none;
};

/// The key of object `i` of a `World`.
inline Key key_of(std::uint32_t i) {
  return Key{i * 0x9E3779B97F4A7C15ULL, i};
}

/// A fixed pseudo-random order of 0..n-1, with repetition.
inline std::vector<std::uint32_t> random_order(std::uint32_t n, std::size_t length, std::uint64_t seed) {
  std::vector<std::uint32_t> order(length);
  for (std::uint32_t& i : order) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    i = static_cast<std::uint32_t>(seed % n);
  }
  return order;
}

}  // namespace harvest::bench
