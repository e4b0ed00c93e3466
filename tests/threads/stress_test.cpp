// SPDX-License-Identifier: Apache-2.0
#include <harvest/runner.hpp>

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <thread>

#include "threads/threads_world.hpp"

/// Threads that read, write, erase, reclaim and poll at once. Every byte that is read is looked at; under the
/// thread sanitizer a missing order shows as a race, too.
namespace harvest::testing {
namespace {

constexpr std::uint64_t kKeys = 48;
constexpr int kReaders = 4;
constexpr int kRounds = 6000 / kSlowdown;

PeerCacheConfig crowded_config() {
  PeerCacheConfig config = threads_config();
  config.local_budget_bytes = 2 * MiB;
  config.pressure.regrow_delay_ns = 1'000'000;
  return config;
}

Backing backing_of(std::uint64_t key) {
  return static_cast<Backing>(key % 4);
}

/// Keys that the writer also erases, for a moment.
bool is_erased_at_times(std::uint64_t key) {
  return key % 5 == 0;
}

class StressTest : public ::testing::Test {
 protected:
  StressTest() {
    PeerCacheConfig config = crowded_config();
    config.on_event = [this](const CacheEvent& event) {
      if (event.kind == CacheEvent::Kind::lost) ++lost_;
    };
    world_ = std::make_unique<ThreadsWorld>(kKeys, std::move(config));
    for (std::uint64_t key = 0; key < kKeys; ++key) put(key, 0);
  }

  void put(std::uint64_t key, std::uint64_t version) {
    const auto generation = world_->put(key, version, backed_by(backing_of(key)));
    if (!generation) {
      EXPECT_EQ(generation.error().code, ErrorCode::out_of_memory) << generation.error().message;
      return;
    }
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(stored_.emplace(*generation, std::pair{key, version}).second)
        << "I2: a generation of two puts";
  }

  void write(const std::atomic<bool>& stop) {
    for (std::uint64_t i = 0; !stop; ++i) {
      const std::uint64_t key = (i * 11) % kKeys;
      if (is_erased_at_times(key) && i % 2 == 0) static_cast<void>(world_->cache->erase(key));
      put(key, (i / kKeys) % kVersions);
      if (i % 16 == 0) static_cast<void>(world_->cache->stats());
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
  }

  /// An owner reclaims one peer after the other, and at times takes so much that the monitor must shrink.
  void own(const std::atomic<bool>& stop) {
    PeerCache& cache = *world_->cache;
    for (std::uint64_t i = 0; !stop; ++i) {
      const auto peer = static_cast<DeviceId>(1 + i % 2);
      const auto report = cache.reclaim(peer, 2 * MiB, world_->backend->now_ns() + 5'000'000);
      EXPECT_TRUE(report.has_value());
      if (i % 4 == 0) {
        const std::uint64_t all_but_the_reserve = world_->backend->query_memory(peer)->free_bytes - 32 * MiB;
        const bool taken = world_->backend->tenant_allocate(peer, all_but_the_reserve).has_value();
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        if (taken) {
          EXPECT_TRUE(world_->backend->tenant_free(peer, all_but_the_reserve).has_value());
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }

  void read(std::uint64_t seed) {
    Client client(*world_);
    std::vector<Seen> all;
    for (int round = 0; round < kRounds && !HasFailure(); ++round) {
      seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
      const std::uint64_t first = (seed >> 33) % kKeys;
      std::array<std::uint64_t, Client::kMostItems> keys{};
      for (std::uint64_t i = 0; i < keys.size(); ++i) keys[i] = (first + i * 5) % kKeys;
      switch (round % 4) {
        case 0: std::ranges::copy(client.read(keys), std::back_inserter(all)); break;
        case 1:
          std::ranges::copy(client.read(keys, Client::How::fetch_and_wait), std::back_inserter(all));
          break;
        case 2: all.push_back(client.lease_and_read(first)); break;
        default:
          read_by_host(first, all);
          if (round % 16 == 3) {
            const Key key = first;
            static_cast<void>(world_->cache->prefetch({&key, 1}, Tier::local));
          }
      }
    }
    check(all);
  }

  /// What lies on the host can be read in place by this thread.
  void read_by_host(std::uint64_t key, std::vector<Seen>& all) {
    const Lease lease = world_->cache->acquire(key, StreamId::none);
    if (!lease) return;  // it is on a peer alone, or on its way
    const auto version = version_in({lease.data(), kObjectBytes}, key);
    all.push_back({key, ErrorCode::ok, Tier::host, lease.generation(), version});
  }

  void check(const std::vector<Seen>& all) {
    const std::lock_guard lock(mutex_);
    for (const Seen& seen : all) {
      if (seen.outcome == ErrorCode::ok) {
        ++reads_[static_cast<std::size_t>(seen.tier)];
        ASSERT_TRUE(seen.version.has_value()) << "I2: bytes of no version of key " << seen.key;
        seen_.emplace_back(seen);
        continue;
      }
      ASSERT_EQ(seen.outcome, ErrorCode::not_found);
      ASSERT_TRUE(backing_of(seen.key) == Backing::lossy || is_erased_at_times(seen.key))
          << "I4: key " << seen.key << " cannot be read";
    }
  }

  std::unique_ptr<ThreadsWorld> world_;
  std::atomic<std::uint64_t> lost_{0};
  std::mutex mutex_;
  std::map<Generation, std::pair<std::uint64_t, std::uint64_t>> stored_;  ///< key and version
  std::vector<Seen> seen_;
  std::array<std::uint64_t, kTiers> reads_{};
};

TEST_F(StressTest, EveryByteIsRightWhileOwnersReclaim) {
  std::atomic<bool> stop{false};
  {
    const Runner runner(*world_->cache, 200'000);
    std::thread owner([&] { own(stop); });
    std::thread writer([&] { write(stop); });
    std::vector<std::thread> readers;
    for (std::uint64_t seed = 1; seed <= kReaders; ++seed) readers.emplace_back([this, seed] { read(seed); });
    for (std::thread& reader : readers) reader.join();
    stop = true;
    writer.join();
    owner.join();
  }
  world_->settle();
  for (const Seen& seen : seen_)
    ASSERT_EQ(stored_.at(seen.generation), std::pair(seen.key, *seen.version))
        << "I2: generation " << seen.generation << " has other bytes than were put";
  for (const Tier tier : {Tier::peer, Tier::host})
    EXPECT_GT(reads_[static_cast<std::size_t>(tier)], 20U) << to_string(tier);
  const CacheStats stats = world_->cache->stats();
  EXPECT_EQ(stats.reads, stats.hits[0] + stats.hits[1] + stats.hits[2] + stats.misses);
  EXPECT_EQ(stats.objects_lost, lost_.load()) << "I4: each loss is told once";
  EXPECT_GT(stats.reclaims, 0U);
}

}  // namespace
}  // namespace harvest::testing
