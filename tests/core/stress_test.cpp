// SPDX-License-Identifier: Apache-2.0
#include <harvest/runner.hpp>

#include <atomic>
#include <cstring>
#include <thread>

#include "core/world.hpp"

/// Threads that read, write and reclaim at once, on a machine whose streams are threads that really copy.
/// Every byte that is read is compared; under the thread sanitizer a missing order shows as a race, too.
namespace harvest::testing {
namespace {

constexpr std::uint64_t kKeys = 48;
constexpr std::uint64_t kBytes = 16 * KiB;
constexpr std::uint64_t kVersions = 4;
#if defined(__SANITIZE_THREAD__)
constexpr int kRounds = 500;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr int kRounds = 500;
#else
constexpr int kRounds = 4000;
#endif
#else
constexpr int kRounds = 4000;
#endif

/// Every 64-bit word of an object says its key and version, so that a mix of two is seen.
std::uint64_t word_of(std::uint64_t key, std::uint64_t version) {
  return (key << 32) | (version << 16) | 0xA5A5;
}

bool is_one_version_of(const std::byte* bytes, std::uint64_t key) {
  std::uint64_t first = 0;
  std::memcpy(&first, bytes, sizeof first);
  if (first >> 32 != key || (first & 0xFFFF) != 0xA5A5 || ((first >> 16) & 0xFFFF) >= kVersions) return false;
  for (std::uint64_t at = 0; at < kBytes; at += sizeof first) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + at, sizeof word);
    if (word != first) return false;
  }
  return true;
}

class StressTest : public ::testing::Test {
 protected:
  StressTest() {
    SimulationOptions options;
    options.time = SimulatedTime::real_time;
    backend_ = std::move(*make_simulated_backend(*machine_from_preset("dgx-h100"), std::move(options)));
    PeerCacheConfig config = small_config();
    config.peers = {1, 2};
    config.local_budget_bytes = 2 * MiB;
    config.peer_budget_bytes = 2 * MiB;
    config.pressure.regrow_delay_ns = 1'000'000;
    config.pressure.sample_interval_ns = 1'000'000;
    config.on_event = [this](const CacheEvent& event) {
      if (event.kind == CacheEvent::Kind::lost) ++lost_;
    };
    cache_ = std::move(*PeerCache::create(*backend_, std::move(config)));
    for (std::uint64_t key = 0; key < kKeys; ++key)
      for (std::uint64_t version = 0; version < kVersions; ++version) {
        auto& bytes = sources_[{key, version}];
        bytes.resize(kBytes);
        const std::uint64_t word = word_of(key, version);
        for (std::uint64_t at = 0; at < kBytes; at += sizeof word)
          std::memcpy(bytes.data() + at, &word, sizeof word);
      }
    for (std::uint64_t key = 0; key < kKeys; ++key) put(key, 0);
  }

  static Backing backing_of(std::uint64_t key) { return static_cast<Backing>(key % 4); }

  void put(std::uint64_t key, std::uint64_t version) {
    PutOptions options;
    options.backing = backing_of(key);
    const auto result = cache_->put(key, sources_.at({key, version}).data(), kBytes, options);
    if (!result) {
      EXPECT_EQ(result.error().code, ErrorCode::out_of_memory) << result.error().message;
    }
  }

  /// Fetches batches and reads leases in place; checks what arrived.
  void read(std::uint64_t seed) {
    const StreamId stream = *backend_->create_stream(0);
    std::byte* device = *backend_->map_segment(0, 2 * MiB, {});
    std::vector<std::byte> host(8 * kBytes);
    const auto bring_down = [&](const std::byte* from, DeviceId device_of, std::uint64_t bytes) {
      const Copy copy{host.data(), from, bytes};
      EXPECT_TRUE(backend_->copy(stream, {device_of, kHost}, {&copy, 1}).has_value());
      const EventId event = *backend_->record_event(stream);
      EXPECT_EQ(backend_->wait_event(event, kNever), EventState::complete);
      backend_->release_event(event);
    };
    for (int round = 0; round < kRounds; ++round) {
      seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
      const std::uint64_t first = (seed >> 33) % kKeys;
      if (round % 3 != 0) {
        std::vector<FetchItem> items(8);
        for (std::uint64_t i = 0; i < items.size(); ++i) {
          items[i].key = (first + i * 5) % kKeys;
          items[i].destination = device + i * kBytes;
          items[i].capacity_bytes = kBytes;
        }
        ASSERT_TRUE(cache_->fetch(items, stream).has_value());
        bring_down(device, 0, 8 * kBytes);
        for (std::uint64_t i = 0; i < items.size(); ++i) {
          if (items[i].served == Tier::none) {
            const Backing backing = backing_of(items[i].key.low);
            ASSERT_EQ(backing, Backing::lossy) << "I4: key " << items[i].key.low << " cannot be read";
            continue;
          }
          ++reads_;
          ASSERT_TRUE(is_one_version_of(host.data() + i * kBytes, items[i].key.low)) << "I2";
        }
      } else {
        Lease lease = cache_->acquire(first, stream);
        if (!lease) continue;
        if (lease.tier() == Tier::host) {
          const Copy copy{device, lease.data(), kBytes};
          ASSERT_TRUE(backend_->copy(stream, {kHost, 0}, {&copy, 1}).has_value());
          lease.release();
          bring_down(device, 0, kBytes);
          ++reads_;
          ASSERT_TRUE(is_one_version_of(host.data(), first)) << "I1, I2";
        }
      }
    }
    ASSERT_TRUE(cache_->forget_stream(stream).has_value());
    ASSERT_TRUE(backend_->destroy_stream(stream).has_value());
    ASSERT_TRUE(backend_->unmap_segment(device).has_value());
  }

  std::unique_ptr<SimulatedBackend> backend_;
  std::unique_ptr<PeerCache> cache_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::vector<std::byte>> sources_;
  std::atomic<std::uint64_t> reads_{0};
  std::atomic<std::uint64_t> lost_{0};
};

TEST_F(StressTest, EveryByteIsRightWhileOwnersReclaim) {
  std::atomic<bool> stop{false};
  {
    const Runner runner(*cache_, 200'000);
    std::thread owner([&] {
      for (std::uint64_t i = 0; !stop; ++i) {
        const auto report =
            cache_->reclaim(1 + static_cast<DeviceId>(i % 2), 2 * MiB, backend_->now_ns() + 5'000'000);
        EXPECT_TRUE(report.has_value());
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
    std::thread writer([&] {
      for (std::uint64_t i = 0; !stop; ++i) {
        put((i * 11) % kKeys, (i / kKeys) % kVersions);
        if (i % 16 == 0) static_cast<void>(cache_->stats());
        std::this_thread::sleep_for(std::chrono::microseconds(300));
      }
    });
    std::thread reader([&] { read(1); });
    read(2);
    reader.join();
    stop = true;
    writer.join();
    owner.join();
  }
  EXPECT_TRUE(cache_->settle(backend_->now_ns() + 20'000'000'000).has_value());
  const Status audit = cache_->audit();
  EXPECT_TRUE(audit.has_value()) << (audit ? "" : audit.error().message);
  EXPECT_GT(reads_.load(), 100U);
  const CacheStats stats = cache_->stats();
  EXPECT_EQ(stats.reads, stats.hits[0] + stats.hits[1] + stats.hits[2] + stats.misses);
  EXPECT_EQ(stats.objects_lost, lost_.load()) << "I4: each loss is told once";
  EXPECT_GT(stats.reclaims, 0U);
}

}  // namespace
}  // namespace harvest::testing
