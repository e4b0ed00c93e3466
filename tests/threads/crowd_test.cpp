// SPDX-License-Identifier: Apache-2.0
#include <harvest/runner.hpp>

#include <array>
#include <atomic>
#include <thread>

#include "threads/threads_world.hpp"

/// Many clients that come and go: more than there are bits for streams, or stripes for threads.
namespace harvest::testing {
namespace {

constexpr std::uint64_t kSharedKeys = 16;
constexpr std::uint64_t kFirstOwnKey = 1000;
constexpr std::uint64_t kClients = 2000 / kSlowdown;
constexpr std::uint64_t kClientsWithAStream = 16;  ///< every 16th brings a stream of its own
constexpr int kWorkers = 8;
constexpr int kWaves = 1000 / kSlowdown / 40;
constexpr int kThreadsInAWave = 40;

PeerCacheConfig crowded_config() {
  PeerCacheConfig config = threads_config();
  config.local_budget_bytes = 2 * MiB;
  config.pressure.regrow_delay_ns = 1'000'000;
  return config;
}

class CrowdTest : public ::testing::Test {
 protected:
  CrowdTest() {
    for (std::uint64_t key = 0; key < kSharedKeys; ++key)
      EXPECT_TRUE(world_.put(key, key % kVersions, backed_by(backing_of(key))).has_value());
  }

  static Backing backing_of(std::uint64_t key) {
    return static_cast<Backing>(key % 3);  // all but `lossy`: what is stored stays
  }

  void expect_shared(const Seen& seen) {
    EXPECT_EQ(seen.outcome, ErrorCode::ok) << "I4: key " << seen.key;
    EXPECT_EQ(seen.version, seen.key % kVersions) << "I2: key " << seen.key;
  }

  /// The whole life of a client: it stores an object of its own, reads that and what all share, and goes.
  void live(std::uint64_t number, Client& client) {
    const std::uint64_t own = kFirstOwnKey + number;
    const std::uint64_t version = number % kVersions;
    const std::vector<std::uint64_t> words(kObjectBytes / sizeof(std::uint64_t), word_of(own, version));
    PutOptions options = backed_by(number % 2 == 0 ? Backing::managed_host : Backing::spill);
    options.tenant = static_cast<std::uint32_t>(number % 5);
    ASSERT_TRUE(world_.cache->put(own, words.data(), kObjectBytes, options).has_value());

    const std::array<std::uint64_t, 4> keys{own, number % kSharedKeys, (number + 5) % kSharedKeys, own};
    const std::vector<Seen> seen = client.read(keys);
    for (const std::size_t i : {0U, 3U}) EXPECT_EQ(seen[i].version, version) << "I2: key " << own;
    for (const std::size_t i : {1U, 2U}) expect_shared(seen[i]);
    expect_shared(client.lease_and_read((number * 7) % kSharedKeys));
    EXPECT_EQ(client.lease_and_read(own).version, version);

    ASSERT_TRUE(world_.cache->erase(own).has_value());
    EXPECT_EQ(client.read(own).outcome, ErrorCode::not_found) << "erased is erased";
  }

  void reclaim_until(const std::atomic<bool>& stop) {
    for (std::uint64_t i = 0; !stop; ++i) {
      const auto peer = static_cast<DeviceId>(1 + i % 2);
      EXPECT_TRUE(world_.cache->reclaim(peer, 2 * MiB, world_.backend->now_ns() + 5'000'000).has_value());
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
    }
  }

  ThreadsWorld world_{kSharedKeys, crowded_config()};
};

TEST_F(CrowdTest, ThousandsOfClientsComeAndGo) {
  std::atomic<bool> stop{false};
  {
    const Runner runner(*world_.cache, 200'000);
    std::thread owner([&] { reclaim_until(stop); });
    std::atomic<std::uint64_t> next{0};
    std::vector<std::thread> workers;
    for (int i = 0; i < kWorkers; ++i)
      workers.emplace_back([&] {
        Client of_all(world_);
        for (std::uint64_t number = next++; number < kClients && !HasFailure(); number = next++) {
          if (number % kClientsWithAStream == 0) {
            Client with_a_stream(world_);
            live(number, with_a_stream);
          } else {
            live(number, of_all);
          }
        }
      });
    for (std::thread& worker : workers) worker.join();
    stop = true;
    owner.join();
  }
  world_.settle();
  EXPECT_EQ(world_.cache->stats().objects, kSharedKeys) << "nothing of the others is left";
  EXPECT_EQ(world_.cache->stats().objects_lost, 0U);
  world_.give_all_back();
}

TEST_F(CrowdTest, AThousandThreadsShareAFewStreams) {
  std::array<StreamId, 3> streams{};
  for (StreamId& stream : streams) stream = *world_.backend->create_stream(0);
  std::atomic<bool> stop{false};
  {
    const Runner runner(*world_.cache, 200'000);
    std::thread owner([&] { reclaim_until(stop); });
    for (int wave = 0; wave < kWaves && !HasFailure(); ++wave) {
      std::vector<std::thread> threads;
      for (std::uint64_t i = 0; i < kThreadsInAWave; ++i)
        threads.emplace_back([&, i] {
          Client client(world_, streams[i % streams.size()]);
          const std::array<std::uint64_t, 3> keys{i % kSharedKeys, (i + 3) % kSharedKeys,
                                                  (i + 7) % kSharedKeys};
          for (const Seen& seen : client.read(keys)) expect_shared(seen);
          expect_shared(client.lease_and_read(i % kSharedKeys));
          EXPECT_NE(world_.cache->locate(i % kSharedKeys), Tier::none);
        });
      for (std::thread& thread : threads) thread.join();
    }
    stop = true;
    owner.join();
  }
  for (const StreamId stream : streams) {
    EXPECT_TRUE(world_.cache->forget_stream(stream).has_value());
    EXPECT_TRUE(world_.backend->destroy_stream(stream).has_value());
  }
  world_.settle();
  world_.give_all_back();
}

}  // namespace
}  // namespace harvest::testing
