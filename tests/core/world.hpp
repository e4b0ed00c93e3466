// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

/// A simulated machine with real bytes, a cache on it, and the contents that its objects must have.
namespace harvest::testing {

inline constexpr std::uint64_t KiB = 1ULL << 10;
inline constexpr std::uint64_t MiB = 1ULL << 20;
inline constexpr std::uint64_t GiB = 1ULL << 30;

/// Bytes that tell key, version and position apart.
inline void write_content(std::span<std::byte> out, std::uint64_t key, std::uint64_t version) {
  std::uint64_t state = key * 0x9E3779B97F4A7C15ULL + version * 0xD1B54A32D192ED03ULL + 1;
  for (std::size_t at = 0; at < out.size(); at += sizeof(state)) {
    state += 0x9E3779B97F4A7C15ULL;
    const std::uint64_t word = (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9ULL;
    std::memcpy(out.data() + at, &word, std::min(sizeof(word), out.size() - at));
  }
}

inline std::vector<std::byte> content(std::uint64_t key, std::uint64_t version, std::uint64_t bytes) {
  std::vector<std::byte> out(bytes);
  write_content(out, key, version);
  return out;
}

/// A configuration for small tests: small segments, a small reserve, quick regrowth.
inline PeerCacheConfig small_config() {
  PeerCacheConfig config;
  config.consumer = 0;
  config.verify_paths = false;
  config.host_budget_bytes = 64 * MiB;
  config.peer_budget_bytes = 32 * MiB;
  config.segment_min_bytes = 2 * MiB;
  config.segment_max_bytes = 4 * MiB;
  config.host_chunk_bytes = 4 * MiB;
  config.max_objects = 4096;
  config.pressure.reserve_bytes = 64 * MiB;
  config.pressure.hysteresis_bytes = 2 * MiB;
  config.pressure.regrow_delay_ns = 50'000'000;
  return config;
}

inline PutOptions backed_by(Backing backing) {
  PutOptions options;
  options.backing = backing;
  return options;
}

struct World {
  explicit World(PeerCacheConfig config = small_config(), SimulationOptions options = {},
                 const std::string& system = "2xh100-nvl")
      : World(std::move(config), std::move(options), *load_machine(system)) {}

  World(PeerCacheConfig config, SimulationOptions options, Machine machine) {
    auto made = make_simulated_backend(std::move(machine), std::move(options));
    EXPECT_TRUE(made.has_value()) << (made ? "" : made.error().message);
    backend = std::move(*made);
    config.on_event = [this](const CacheEvent& event) { events.push_back(event); };
    auto created = PeerCache::create(*backend, std::move(config));
    EXPECT_TRUE(created.has_value()) << (created ? "" : created.error().message);
    cache = std::move(*created);
    stream = *backend->create_stream(0);
    staging = *backend->map_segment(0, 64 * MiB, {});
  }

  ~World() {
    cache.reset();
    EXPECT_TRUE(backend->unmap_segment(staging).has_value());
    for (const DeviceInfo& device : backend->devices())
      EXPECT_EQ(backend->mapped_bytes(device.id), 0U) << "device " << device.id << " still holds our memory";
  }

  /// Stores version `version` of `key`; the source lives as long as the world.
  Result<Generation> put(std::uint64_t key, std::uint64_t version, std::uint64_t bytes,
                         PutOptions options = {}) {
    auto& source = sources[{key, version}];
    source = content(key, version, bytes);
    return cache->put(key, source.data(), bytes, options);
  }

  /// Bytes on the consumer, copied to the host.
  std::vector<std::byte> download(const std::byte* device_address, std::uint64_t bytes) {
    std::vector<std::byte> out(bytes);
    const Copy copy{out.data(), device_address, bytes};
    EXPECT_TRUE(backend->copy(stream, {0, kHost}, {&copy, 1}).has_value());
    wait();
    return out;
  }

  void wait() {
    const auto event = backend->record_event(stream);
    ASSERT_TRUE(event.has_value());
    backend->wait_event(*event, kNever);
    backend->release_event(*event);
  }

  /// Fetches `key` and compares; answers the tier.
  Tier fetch(std::uint64_t key, std::uint64_t version, std::uint64_t bytes) {
    FetchItem item;
    item.key = key;
    item.destination = staging;
    item.capacity_bytes = 64 * MiB;
    EXPECT_TRUE(cache->fetch({&item, 1}, stream).has_value());
    if (item.served == Tier::none) return Tier::none;
    EXPECT_EQ(item.bytes, bytes);
    EXPECT_EQ(download(staging, bytes), content(key, version, bytes)) << "wrong bytes for key " << key;
    return item.served;
  }

  void settle() {
    const Status settled = cache->settle(backend->now_ns() + 10'000'000'000);
    EXPECT_TRUE(settled.has_value()) << settled.error().message;
    audit();
  }

  void audit() {
    const Status ok = cache->audit();
    EXPECT_TRUE(ok.has_value()) << ok.error().message;
  }

  void pass_time(TimeNs ns) {
    const TimeNs until = backend->now_ns() + ns;
    while (backend->now_ns() < until) {
      const TimeNs next = cache->poll();
      backend->sleep_until(std::min(until, next));
    }
    cache->poll();
  }

  std::size_t count(CacheEvent::Kind kind) const {
    std::size_t n = 0;
    for (const CacheEvent& event : events) n += event.kind == kind ? 1 : 0;
    return n;
  }

  std::unique_ptr<SimulatedBackend> backend;
  std::unique_ptr<PeerCache> cache;
  StreamId stream = StreamId::none;
  std::byte* staging = nullptr;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::vector<std::byte>> sources;
  std::vector<CacheEvent> events;
};

}  // namespace harvest::testing
