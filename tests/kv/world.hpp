// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <harvest/kv/block_cache.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

namespace harvest::kv {

struct WorldOptions {
  std::string machine = "2xh100-nvl";
  KvArrangement arrangement = KvArrangement::layer_first;
  std::vector<KvLayer> layers{4, KvLayer{.heads = 2, .head_size = 16, .element_bytes = 2}};
  std::uint32_t page_tokens = 4;
  std::uint32_t pages = 64;
  std::uint32_t block_pages = 2;
  FaultPlan faults{};  ///< from when all is made on
  std::function<void(BlockCacheConfig&)> with{};
  std::function<void(PeerCacheConfig&)> with_peers{};
  /// Stands between the machine and all who use it.
  std::function<std::unique_ptr<Backend>(SimulatedBackend&)> between{};
};

/// An engine's pages on a simulated machine with real bytes, and a cache of blocks over them. Every byte of a
/// page says whose it is, so that no mix goes unseen.
class World {
 public:
  explicit World(const WorldOptions& options = {}) {
    SimulationOptions simulation;
    backend = *make_simulated_backend(*machine_from_preset(options.machine), simulation);
    if (options.between) between = options.between(*backend);
    seen = between ? between.get() : backend.get();
    layout = make_layout(options);
    PeerCacheConfig peers;
    peers.segment_min_bytes = peers.segment_max_bytes = 2ULL << 20;
    peers.host_chunk_bytes = 2ULL << 20;
    peers.host_budget_bytes = 8ULL << 20;
    peers.on_event = [this](const CacheEvent& event) {
      if (blocks) blocks->hear(event);
    };
    if (options.with_peers) options.with_peers(peers);
    cache = *PeerCache::create(*seen, peers);
    BlockCacheConfig config;
    config.layout = layout;
    config.block_pages = options.block_pages;
    config.on_event = [this](const BlockEvent& event) { events.push_back(event); };
    if (options.with) options.with(config);
    auto made = BlockCache::create(*cache, config);
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    blocks = std::move(*made);
    stream = add_stream();
    EXPECT_TRUE(backend->set_faults(options.faults));
  }

  ~World() {
    blocks.reset();
    EXPECT_EQ(cache->stats().objects, 0U) << "blocks stay behind";
    cache.reset();
    for (const StreamId mine : streams) static_cast<void>(seen->destroy_stream(mine));
    for (std::byte* memory : memory_) static_cast<void>(seen->unmap_segment(memory));
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  StreamId add_stream() {
    streams.push_back(*seen->create_stream(0));
    return streams.back();
  }

  std::byte* add_memory(std::uint64_t bytes) {
    memory_.push_back(*seen->map_segment(0, (bytes + (2ULL << 20) - 1) >> 21 << 21, {}));
    return memory_.back();
  }

  /// What a page of a block holds: each byte depends on the block, the page's place in it, layer, part and
  /// run.
  static std::byte byte_of(const Key& key, std::size_t page, std::size_t part, std::uint64_t i) {
    return static_cast<std::byte>(
        (key.low * 37 + key.high * 11 + page * 101 + part * 53 + i * 7 + i / 251 + 1) & 0xFF);
  }

  template <typename Visit>
  void visit_page(std::uint32_t page, Visit visit) const {
    for (std::size_t number = 0; number < layout.parts.size(); ++number) {
      const KvPart& part = layout.parts[number];
      for (std::uint64_t i = 0; i < part.runs * part.run_bytes; ++i)
        visit(number, i,
              part.base[page * part.page_stride_bytes + i / part.run_bytes * part.run_stride_bytes +
                        i % part.run_bytes]);
    }
  }

  /// As if the engine had computed it, with nothing under way.
  void fill(const Key& key, std::span<const std::uint32_t> pages) {
    for (std::size_t place = 0; place < pages.size(); ++place)
      visit_page(pages[place], [&](std::size_t part, std::uint64_t i, std::byte& byte) {
        byte = byte_of(key, place, part, i);
      });
  }
  void wipe(std::span<const std::uint32_t> pages) {
    for (const std::uint32_t page : pages)
      visit_page(page, [](std::size_t, std::uint64_t, std::byte& byte) { byte = std::byte{0xEE}; });
  }
  /// How many bytes of layers from `first` on are not the block's.
  [[nodiscard]] std::size_t wrong_bytes(const Key& key, std::span<const std::uint32_t> pages,
                                        std::uint32_t first = 0, std::uint32_t last = UINT32_MAX) const {
    std::size_t wrong = 0;
    for (std::size_t place = 0; place < pages.size(); ++place)
      visit_page(pages[place], [&](std::size_t part, std::uint64_t i, std::byte byte) {
        const std::uint32_t layer = layout.parts[part].layer;
        if (layer >= first && layer <= last && byte != byte_of(key, place, part, i)) ++wrong;
      });
    return wrong;
  }

  [[nodiscard]] std::vector<std::uint32_t> pages_from(std::uint32_t first, std::size_t count) const {
    std::vector<std::uint32_t> pages(count * blocks->config().block_pages);
    std::iota(pages.begin(), pages.end(), first);
    return pages;
  }

  /// Blocks of these keys, computed in pages from `first` on and stored, with nothing left under way.
  void keep(std::span<const Key> keys, std::uint32_t first = 0) {
    const auto pages = pages_from(first, keys.size());
    const std::uint32_t each = blocks->config().block_pages;
    for (std::size_t i = 0; i < keys.size(); ++i) fill(keys[i], std::span(pages).subspan(i * each, each));
    const auto coming = blocks->store(keys, pages, stream);
    EXPECT_TRUE(coming) << (coming ? "" : coming.error().message);
    EXPECT_TRUE(blocks->settle(backend->now_ns() + 10'000'000'000));
    wipe(pages);
  }

  void pass(TimeNs ns) {
    const TimeNs until = backend->now_ns() + ns;
    while (backend->now_ns() < until) {
      cache->poll();
      blocks->poll();
      backend->sleep_until(std::min(until, backend->now_ns() + 1'000'000));
    }
  }
  void wait_for(StreamId on) {
    const EventId event = *seen->record_event(on);
    seen->wait_event(event, kNever);
    seen->release_event(event);
  }

  std::unique_ptr<SimulatedBackend> backend;
  std::unique_ptr<Backend> between;
  Backend* seen = nullptr;  ///< by the caches
  KvLayout layout;
  std::unique_ptr<PeerCache> cache;
  std::unique_ptr<BlockCache> blocks;
  StreamId stream = StreamId::none;
  std::vector<StreamId> streams;
  std::vector<BlockEvent> events;

 private:
  KvLayout make_layout(const WorldOptions& options) {
    std::vector<KvTensor> tensors;
    const auto sizes =
        KvLayout::tensor_bytes(options.arrangement, options.layers, options.page_tokens, options.pages);
    for (const std::uint64_t bytes : *sizes) tensors.push_back({add_memory(bytes), bytes});
    auto made =
        KvLayout::describe(options.arrangement, options.layers, options.page_tokens, options.pages, tensors);
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    return *made;
  }

  std::vector<std::byte*> memory_;
};

}  // namespace harvest::kv
