// SPDX-License-Identifier: Apache-2.0
#include <harvest/kv/block_cache.hpp>
#include <harvest/runner.hpp>

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <thread>

#include "core/random.hpp"
#include "threads/threads_world.hpp"

/// Threads that each serve sequences in pages of their own through one cache of blocks, beside one that
/// polls, and owners that reclaim. The streams are threads that really copy, so the thread sanitizer sees an
/// order that is missing.
namespace harvest::kv {
namespace {

using testing::kSlowdown;
using testing::MiB;
using testing::Random;

constexpr std::uint32_t kLayers = 3;
constexpr std::uint32_t kBlockPages = 2;
constexpr std::uint64_t kRunBytes = 4096;  // of a layer in a page
constexpr std::uint32_t kBlocksOfWorker = 8;
constexpr std::uint32_t kPagesOfWorker = kBlocksOfWorker * kBlockPages;
constexpr std::uint32_t kWorkers = 4;
constexpr std::uint64_t kKeys = 24;
constexpr int kRounds = 160 / kSlowdown;

class BlockThreadsTest : public ::testing::Test {
 protected:
  BlockThreadsTest() {
    SimulationOptions simulation;
    simulation.time = SimulatedTime::real_time;
    backend_ = std::move(*make_simulated_backend(*machine_from_preset("dgx-h100"), simulation));
    const std::vector<KvLayer> layers(
        kLayers, KvLayer{.heads = 1, .head_size = kRunBytes / 4, .element_bytes = 1, .parts = 1});
    const std::uint64_t bytes = kLayers * kWorkers * kPagesOfWorker * kRunBytes;
    pages_ = *backend_->map_segment(0, (bytes + 2 * MiB - 1) / (2 * MiB) * (2 * MiB), {});
    const KvTensor tensor{pages_, bytes};
    BlockCacheConfig config;
    config.layout =
        *KvLayout::describe(KvArrangement::page_first, layers, 4, kWorkers * kPagesOfWorker, {&tensor, 1});
    config.block_pages = kBlockPages;
    config.group_layers = 1;
    config.on_event = [this](const BlockEvent& event) {
      told_ += blocks_->locate(event.key) == Tier::local ? 0 : 1;  // it may call the cache
    };
    PeerCacheConfig peers = testing::threads_config();
    peers.pressure.regrow_delay_ns = 1'000'000;
    peers.on_event = [this](const CacheEvent& event) {
      if (blocks_ != nullptr) blocks_->hear(event);
    };
    cache_ = std::move(*PeerCache::create(*backend_, peers));
    blocks_ = std::move(*BlockCache::create(*cache_, config));
  }

  ~BlockThreadsTest() override {
    blocks_.reset();
    EXPECT_EQ(cache_->stats().objects, 0U);
    cache_.reset();
    EXPECT_TRUE(backend_->unmap_segment(pages_));
    for (const DeviceInfo& device : backend_->devices())
      EXPECT_EQ(backend_->mapped_bytes(device.id), 0U) << "device " << device.id << " still holds our memory";
  }

  /// One that serves: a stream, pages, and room on the host for what they hold.
  struct Worker {
    std::uint32_t first_page = 0;
    StreamId stream = StreamId::none;
    std::vector<std::byte> host{std::vector<std::byte>(kPagesOfWorker * kLayers * kRunBytes)};
  };

  static std::byte byte_of(const Key& key, std::uint64_t i) {
    return static_cast<std::byte>((key.low * 41 + i * 7 + i / 253) & 0xFF);
  }
  static constexpr std::uint64_t kBlockBytes = kBlockPages * kLayers * kRunBytes;

  [[nodiscard]] std::byte* page(std::uint32_t number) const { return pages_ + number * kLayers * kRunBytes; }

  static std::vector<Key> some_keys(Random& random) {
    const std::uint64_t first = random.below(kKeys);
    std::vector<Key> keys;
    for (std::uint64_t i = first; i < std::min(kKeys, first + random.between(1, kBlocksOfWorker)); ++i)
      keys.emplace_back(i);
    return keys;
  }
  static std::vector<std::uint32_t> pages_for(const Worker& worker, std::size_t blocks) {
    std::vector<std::uint32_t> pages(blocks * kBlockPages);
    std::iota(pages.begin(), pages.end(), worker.first_page);
    return pages;
  }

  void wait_for(StreamId stream) {
    const EventId event = *backend_->record_event(stream);
    EXPECT_EQ(backend_->wait_event(event, kNever), EventState::complete);
    backend_->release_event(event);
  }

  void compute_and_store(Worker& worker, Random& random) {
    const auto keys = some_keys(random);
    const auto pages = pages_for(worker, keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i)
      for (std::uint64_t at = 0; at < kBlockBytes; ++at)
        worker.host[i * kBlockBytes + at] = byte_of(keys[i], at);
    const Copy up{page(pages[0]), worker.host.data(), keys.size() * kBlockBytes};
    EXPECT_TRUE(backend_->copy(worker.stream, {kHost, 0}, {&up, 1}));
    EXPECT_TRUE(blocks_->store(keys, pages, worker.stream));
    EXPECT_TRUE(blocks_->order_behind_stores(pages, worker.stream));
    EXPECT_TRUE(backend_->fill(worker.stream, 0, page(pages[0]), keys.size() * kBlockBytes, 0));
    wait_for(worker.stream);  // it reads `host`
  }

  void load_and_compare(Worker& worker, Random& random) {
    auto keys = some_keys(random);
    keys.resize(blocks_->lookup(keys).blocks);
    if (keys.empty()) return;
    const auto pages = pages_for(worker, keys.size());
    auto load = blocks_->load(keys, pages, worker.stream);
    ASSERT_TRUE(load);
    EXPECT_TRUE(load->order_behind(kLayers - 1, worker.stream));
    const Copy down{worker.host.data(), page(pages[0]), keys.size() * kBlockBytes};
    EXPECT_TRUE(backend_->copy(worker.stream, {0, kHost}, {&down, 1}));
    if (random.chance(0.2)) static_cast<void>(load->done());
    const auto lost = load->finish();
    wait_for(worker.stream);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (std::ranges::find(lost, i) != lost.end()) continue;
      ++verified_;
      for (std::uint64_t at = 0; at < kBlockBytes; ++at)
        ASSERT_EQ(worker.host[i * kBlockBytes + at], byte_of(keys[i], at)) << "I2: block " << keys[i].low;
    }
  }

  void serve(std::uint32_t number) {
    Worker worker;
    worker.first_page = number * kPagesOfWorker;
    worker.stream = *backend_->create_stream(0);
    Random random(number, 21);
    for (int round = 0; round < kRounds && !HasFailure(); ++round) {
      compute_and_store(worker, random);
      load_and_compare(worker, random);
      load_and_compare(worker, random);
      if (random.chance(0.1)) static_cast<void>(blocks_->erase(Key(random.below(kKeys))));
    }
    EXPECT_TRUE(backend_->destroy_stream(worker.stream));
  }

  std::unique_ptr<SimulatedBackend> backend_;
  std::byte* pages_ = nullptr;
  std::unique_ptr<PeerCache> cache_;
  std::unique_ptr<BlockCache> blocks_;
  std::atomic<std::uint64_t> verified_{0};
  std::atomic<std::uint64_t> told_{0};
};

TEST_F(BlockThreadsTest, EveryBlockIsWholeWhileOwnersReclaim) {
  std::atomic<bool> stop{false};
  {
    const Runner runner(*cache_, 200'000);
    std::thread poller([&] {
      while (!stop) {
        blocks_->poll();
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    });
    std::thread owner([&] {
      for (std::uint64_t i = 0; !stop; ++i) {
        const auto peer = static_cast<DeviceId>(1 + i % 2);
        EXPECT_TRUE(cache_->reclaim(peer, 2 * MiB, backend_->now_ns() + 5'000'000));
        std::this_thread::sleep_for(std::chrono::milliseconds(4));
      }
    });
    std::vector<std::thread> workers;
    for (std::uint32_t number = 0; number < kWorkers; ++number)
      workers.emplace_back([this, number] { serve(number); });
    for (std::thread& worker : workers) worker.join();
    stop = true;
    poller.join();
    owner.join();
  }
  EXPECT_TRUE(blocks_->settle(backend_->now_ns() + 60'000'000'000));
  EXPECT_GT(verified_.load(), static_cast<std::uint64_t>(kWorkers * kRounds) / 4);
  EXPECT_GT(told_.load(), 0U);
  const BlockCacheStats stats = blocks_->stats();
  EXPECT_EQ(stats.stores_asked,
            stats.stored + stats.stores_known + stats.stores_refused + stats.stores_given_up);
  EXPECT_EQ(stats.looked_up, stats.found[0] + stats.found[1] + stats.found[2] + stats.not_found);
}

}  // namespace
}  // namespace harvest::kv
