// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <harvest/moe/expert_cache.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

namespace harvest::moe {

/// A model with small experts, whose every byte says which expert it is of.
struct WorldOptions {
  std::string machine = "2xh100-nvl";
  std::uint32_t layers = 4;
  std::uint32_t experts = 8;
  std::vector<TensorSpec> tensors{{"gate", 96ULL << 10}, {"up", 96ULL << 10}, {"down", 64ULL << 10}};
  std::uint32_t slots = 16;
  std::function<void(ExpertCacheConfig&)> with{};
  std::function<void(PeerCacheConfig&)> with_peers{};
  /// Stands between the machine and all who use it.
  std::function<std::unique_ptr<Backend>(SimulatedBackend&)> between{};
};

/// A consumer with a cache of experts, on a simulated machine with real bytes. The consumer's "computation"
/// is a copy of the expert on the step's stream: what it delivers is what a kernel would have read there and
/// then.
class World {
 public:
  explicit World(const WorldOptions& options = {}) {
    SimulationOptions simulation;
    Machine machine = *machine_from_preset(options.machine);
    backend = *make_simulated_backend(machine, simulation);
    if (options.between) between = options.between(*backend);
    seen = between ? between.get() : backend.get();
    model.name = "test";
    model.layers = options.layers;
    model.experts = options.experts;
    model.top_k = std::min(2U, options.experts);
    model.tensors = options.tensors;
    PeerCacheConfig peers;
    peers.segment_min_bytes = peers.segment_max_bytes = 2ULL << 20;
    peers.host_chunk_bytes = 2ULL << 20;
    peers.host_budget_bytes = 8ULL << 20;
    if (options.with_peers) options.with_peers(peers);
    cache = *PeerCache::create(*seen, peers);
    ExpertCacheConfig config;
    config.model = model;
    config.local_budget_bytes = options.slots * model.slot_bytes();
    config.piece_bytes = 64ULL << 10;
    if (options.with) options.with(config);
    auto made = ExpertCache::create(*cache, config);
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    experts = std::move(*made);
    weights = *backend->reserve_host_range(model.layers * model.experts * model.expert_bytes());
    for (std::uint32_t layer = 0; layer < model.layers; ++layer)
      for (std::uint32_t expert = 0; expert < model.experts; ++expert) {
        std::byte* const bytes = weights_of(layer, expert);
        for (std::uint64_t i = 0; i < model.expert_bytes(); ++i) bytes[i] = byte_of(layer, expert, i);
        const Status added = experts->add_expert(layer, expert, bytes);
        EXPECT_TRUE(added) << (added ? "" : added.error().message);
      }
    stream = add_stream();
  }

  ~World() {
    experts.reset();
    cache.reset();
    for (const Read& read : reads) {
      seen->wait_event(read.event, kNever);
      seen->release_event(read.event);
      static_cast<void>(seen->unmap_segment(read.bytes));
    }
    for (const StreamId mine : streams) static_cast<void>(seen->destroy_stream(mine));
  }

  StreamId add_stream() {
    streams.push_back(*seen->create_stream(0));
    return streams.back();
  }

  [[nodiscard]] std::byte* weights_of(std::uint32_t layer, std::uint32_t expert) const {
    return weights + (layer * model.experts + expert) * model.expert_bytes();
  }

  static std::byte byte_of(std::uint32_t layer, std::uint32_t expert, std::uint64_t i) {
    return static_cast<std::byte>((layer * 131 + expert * 17 + i * 7 + i / 251) & 0xFF);
  }

  /// Takes what lies at `ready` when `on` gets there, for `check_reads`.
  void read(std::uint32_t layer, const ReadyExpert& ready, StreamId on) {
    const std::uint64_t bytes = model.expert_bytes();
    std::byte* const buffer = *seen->map_segment(0, (bytes + (2ULL << 20) - 1) >> 21 << 21, {});
    const Copy copy{buffer, ready.address, bytes};
    ASSERT_TRUE(seen->copy(on, {0, 0}, {&copy, 1}));
    reads.push_back({layer, ready.expert, buffer, *seen->record_event(on)});
  }

  /// Waits for all reads, and answers how many were not what they should be.
  std::size_t check_reads() {
    std::size_t wrong = 0;
    for (const Read& read : reads) {
      const EventState state = seen->wait_event(read.event, kNever);
      const bool same =
          std::memcmp(read.bytes, weights_of(read.layer, read.expert), model.expert_bytes()) == 0;
      if (state != EventState::complete || !same) ++wrong;
      seen->release_event(read.event);
      static_cast<void>(seen->unmap_segment(read.bytes));
    }
    reads.clear();
    return wrong;
  }

  /// A whole layer step; answers the experts in the order in which they came.
  std::vector<ReadyExpert> step(std::uint32_t layer, std::vector<std::uint32_t> needed,
                                Phase phase = Phase::decode) {
    auto begun = experts->begin_layer(layer, needed, stream, phase);
    EXPECT_TRUE(begun) << (begun ? "" : begun.error().message);
    std::vector<ReadyExpert> came;
    if (!begun) return came;
    while (const ReadyExpert* ready = begun->next()) {
      read(layer, *ready, stream);
      came.push_back(*ready);
    }
    const Status ended = experts->end_layer(std::move(*begun));
    EXPECT_TRUE(ended) << (ended ? "" : ended.error().message);
    return came;
  }

  /// Lets both caches do what is due, until `ns` have passed.
  void pass(TimeNs ns) {
    const TimeNs until = backend->now_ns() + ns;
    while (backend->now_ns() < until) {
      cache->poll();
      experts->poll();
      backend->sleep_until(std::min(until, backend->now_ns() + 1'000'000));
    }
  }

  [[nodiscard]] std::vector<std::uint32_t> all_experts() const {
    std::vector<std::uint32_t> all(model.experts);
    for (std::uint32_t i = 0; i < model.experts; ++i) all[i] = i;
    return all;
  }

  struct Read {
    std::uint32_t layer;
    std::uint32_t expert;
    std::byte* bytes;
    EventId event;
  };

  std::unique_ptr<SimulatedBackend> backend;
  std::unique_ptr<Backend> between;
  Backend* seen = nullptr;  ///< by the caches
  ModelDescription model;
  std::unique_ptr<PeerCache> cache;
  std::unique_ptr<ExpertCache> experts;
  std::byte* weights = nullptr;
  StreamId stream = StreamId::none;
  std::vector<StreamId> streams;
  std::vector<Read> reads;
};

}  // namespace harvest::moe
