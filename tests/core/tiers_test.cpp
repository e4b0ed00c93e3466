// SPDX-License-Identifier: Apache-2.0
#include "core/world.hpp"

/// Which tier serves what, and why.
namespace harvest::testing {
namespace {

TEST(TiersTest, WhatIsReadFromTheHostClimbsToAPeerThatIsFull) {
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 8 * MiB;
  World world(config);
  for (std::uint64_t key = 1; key <= 32; ++key) ASSERT_TRUE(world.put(key, 1, MiB));
  world.settle();
  std::vector<std::uint64_t> hot;
  for (std::uint64_t key = 1; key <= 32 && hot.size() < 4; ++key)
    if (world.cache->locate(key) == Tier::host) hot.push_back(key);
  ASSERT_EQ(hot.size(), 4U);
  for (int round = 0; round < 4; ++round)
    for (const std::uint64_t key : hot) {
      world.fetch(key, 1, MiB);
      world.settle();
    }
  for (const std::uint64_t key : hot) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::peer) << key;
}

TEST(TiersTest, TheOnlyCopyIsNotEvicted) {
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 4 * MiB;
  World world(config);
  ASSERT_TRUE(world.put(1, 1, 4 * MiB, backed_by(Backing::spill)));
  world.settle();
  EXPECT_FALSE(world.put(2, 1, 4 * MiB, backed_by(Backing::lossy)).has_value()) << "there is no other room";
  EXPECT_EQ(world.fetch(1, 1, 4 * MiB), Tier::peer) << "I4";
}

TEST(TiersTest, AScanDoesNotFlushWhatIsReadAgain) {
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 8 * MiB;
  World world(config);
  for (std::uint64_t key = 1; key <= 60; ++key)
    ASSERT_TRUE(world.put(key, 1, MiB, backed_by(Backing::external_host)));
  for (int round = 0; round < 4; ++round)
    for (std::uint64_t key = 1; key <= 6; ++key) {
      world.fetch(key, 1, MiB);
      world.settle();
    }
  for (std::uint64_t key = 7; key <= 60; ++key) {
    world.fetch(key, 1, MiB);
    world.settle();
  }
  int still = 0;
  for (std::uint64_t key = 1; key <= 6; ++key) still += world.cache->locate(key) == Tier::peer ? 1 : 0;
  EXPECT_GE(still, 5);
}

TEST(TiersTest, WhatIsReadInPlaceClimbsToLocalMemory) {
  PeerCacheConfig config = small_config();
  config.local_budget_bytes = 8 * MiB;
  World world(config);
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::spill)));
  world.settle();
  const Tier first = world.cache->locate(1);
  if (first != Tier::local) {
    EXPECT_EQ(world.fetch(1, 1, MiB), Tier::peer);
    world.settle();
    EXPECT_EQ(world.cache->locate(1), Tier::peer) << "what was fetched is in the caller's buffer already";
  }
  for (int round = 0; round < 2; ++round) {
    { const Lease lease = world.cache->acquire(1, world.stream); }
    world.settle();
  }
  EXPECT_EQ(world.cache->locate(1), Tier::local);
}

/// The time of one large batch that lies on the peer, in virtual time.
TimeNs time_of_batch(bool balance) {
  PeerCacheConfig config = small_config();
  config.balance_paths = balance;
  World world(config);
  std::vector<FetchItem> items(16);
  for (std::uint64_t i = 0; i < items.size(); ++i) {
    EXPECT_TRUE(world.put(i, 1, 2 * MiB));
    items[i].key = i;
    items[i].destination = world.staging + i * 2 * MiB;
    items[i].capacity_bytes = 2 * MiB;
  }
  world.settle();
  for (const FetchItem& item : items) EXPECT_EQ(world.cache->locate(item.key), Tier::peer);
  const TimeNs begin = world.backend->now_ns();
  EXPECT_TRUE(world.cache->fetch_and_wait(items, world.stream).has_value());
  const TimeNs took = world.backend->now_ns() - begin;
  std::size_t from_host = 0;
  for (std::uint64_t i = 0; i < items.size(); ++i) {
    from_host += items[i].served == Tier::host ? 1 : 0;
    EXPECT_EQ(world.download(world.staging + i * 2 * MiB, 2 * MiB), content(i, 1, 2 * MiB));
  }
  EXPECT_EQ(from_host != 0, balance);
  return took;
}

TEST(TiersTest, ALargeBatchComesOverBothWires) {
  const TimeNs peer_alone = time_of_batch(false);
  const TimeNs both = time_of_batch(true);
  // 260 GB/s alone, 260 + 55 together; objects do not divide evenly.
  EXPECT_LT(static_cast<double>(both), 0.92 * static_cast<double>(peer_alone));
  EXPECT_GT(static_cast<double>(both), 260.0 / 315.0 * static_cast<double>(peer_alone));
}

TEST(TiersTest, StatisticsHaveTheirDenominators) {
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 4 * MiB;
  World world(config);
  for (std::uint64_t key = 1; key <= 12; ++key)
    static_cast<void>(world.put(key, 1, MiB, backed_by(static_cast<Backing>(key % 4))));
  for (std::uint64_t key = 1; key <= 20; ++key) world.fetch(key, 1, MiB);
  world.settle();
  const CacheStats stats = world.cache->stats();
  EXPECT_EQ(stats.reads, 20U);
  EXPECT_EQ(stats.reads, stats.hits[0] + stats.hits[1] + stats.hits[2] + stats.misses);
  EXPECT_EQ(stats.fetched_items, stats.reads - stats.misses);
  EXPECT_EQ(stats.puts, 12U);
  EXPECT_EQ(stats.puts, stats.puts_stored + stats.puts_refused);
  EXPECT_EQ(stats.promotions, stats.promotions_completed + stats.promotions_failed);
  EXPECT_GE(stats.admissions_asked, stats.admissions_refused);
  EXPECT_EQ(stats.fetched_bytes[0] + stats.fetched_bytes[1] + stats.fetched_bytes[2],
            stats.fetched_items * MiB);
  for (const PoolStats& pool : stats.pools)
    EXPECT_EQ(pool.used_bytes + pool.free_bytes + pool.draining_bytes, pool.mapped_bytes) << "I7";
}

TEST(TiersTest, AnObjectsParentStaysWhileItDoes) {
  for (const std::string policy : {"lru", "prefix_lru"}) {
    PeerCacheConfig config = small_config();
    config.peer_budget_bytes = 0;
    config.host_budget_bytes = 4 * MiB;
    config.host_policy.eviction = policy;
    World world(config);
    PutOptions options;
    options.evictable = true;
    for (std::uint64_t key = 1; key <= 4; ++key) {
      ASSERT_TRUE(world.put(key, 1, MiB, options));  // a chain, its beginning first
      options.parent = Key(key);
    }
    options.parent.reset();
    ASSERT_TRUE(world.put(9, 1, MiB, options));
    const bool by_prefix = policy != "lru";
    EXPECT_EQ(world.cache->locate(1), by_prefix ? Tier::host : Tier::none) << policy;
    EXPECT_EQ(world.cache->locate(4), by_prefix ? Tier::none : Tier::host) << policy;
    EXPECT_TRUE(world.cache->audit()) << policy;
  }
}

TEST(TiersTest, StatisticsSayWhatMoreMemoryWouldGive) {
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 8 * MiB;
  config.host_budget_bytes = 12 * MiB;
  World world(config);
  for (const auto& points : world.cache->stats().shadow) EXPECT_TRUE(points.empty()) << "nothing was read";

  // 16 objects in turn: LRU hits none of them in less than 16 MiB. A read that misses makes the bytes again.
  PutOptions options;
  options.evictable = true;
  std::vector<Key> accesses;
  for (std::uint64_t i = 0; i < 320; ++i) {
    const std::uint64_t key = i % 16;
    if (world.cache->locate(key) == Tier::none) {
      ASSERT_TRUE(world.put(key, 1, MiB, options));
    } else {
      world.fetch(key, 1, MiB);
    }
    world.cache->poll();
    accesses.emplace_back(key);
  }
  const CacheStats stats = world.cache->stats();
  EXPECT_TRUE(stats.shadow[static_cast<std::size_t>(Tier::local)].empty());
  for (const Tier tier : {Tier::peer, Tier::host}) {
    const auto& points = stats.shadow[static_cast<std::size_t>(tier)];
    ASSERT_EQ(points.size(), 6U);
    EXPECT_EQ(points[1].capacity_bytes, tier == Tier::peer ? 8 * MiB : 12 * MiB) << "as it is";
    EXPECT_EQ(points[5].capacity_bytes, 4 * points[1].capacity_bytes);
    for (const ShadowPoint& point : points)
      EXPECT_NEAR(point.hit_ratio, simulate_policy("lru", accesses, point.capacity_bytes / MiB)->hit_ratio(),
                  .01)
          << to_string(tier) << " of " << point.capacity_bytes;
  }
  ASSERT_TRUE(world.cache->erase(accesses.back()));
}

TEST(TiersTest, ManyStreamsShareTheLastBit) {
  World world;
  ASSERT_TRUE(world.put(1, 1, 4 * MiB, backed_by(Backing::lossy)));
  world.settle();
  std::vector<StreamId> streams;
  for (int i = 0; i < 80; ++i) streams.push_back(*world.backend->create_stream(0));
  const StreamId last = streams.back();
  ASSERT_GE(static_cast<std::uint32_t>(last), 64U);
  {
    const Lease lease = world.cache->acquire(1, last);
    ASSERT_TRUE(lease);
    EXPECT_EQ(lease.device(), 1);
    ASSERT_TRUE(world.backend->submit_kernel(last, 20'000'000).has_value());
    const Copy copy{world.staging, lease.data(), 4 * MiB};
    ASSERT_TRUE(world.backend->copy(last, {1, 0}, {&copy, 1}).has_value());
  }
  const TimeNs begin = world.backend->now_ns();
  ASSERT_TRUE(world.cache->reclaim(1, 4 * MiB, begin + 1'000'000'000)->finished);
  EXPECT_GE(world.backend->now_ns() - begin, 20'000'000) << "I1";
}

TEST(TiersTest, TheSameSeedGivesTheSameTrace) {
  const auto run = [] {
    World world;
    for (std::uint64_t key = 1; key <= 40; ++key)
      EXPECT_TRUE(world.put(key % 13, key, MiB, backed_by(static_cast<Backing>(key % 2))).has_value());
    world.settle();
    EXPECT_TRUE(world.cache->reclaim(1, 8 * MiB, world.backend->now_ns() + 1'000'000'000).has_value());
    world.pass_time(200'000'000);
    return world.backend->trace_hash();
  };
  EXPECT_EQ(run(), run()) << "I11";
}

}  // namespace
}  // namespace harvest::testing
