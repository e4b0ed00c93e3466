// SPDX-License-Identifier: Apache-2.0
#include "core/world.hpp"

/// What peers lend, and how they get it back.
namespace harvest::testing {
namespace {

PutOptions lossy() {
  return backed_by(Backing::lossy);
}

std::uint64_t free_on(World& world, DeviceId device) {
  return world.backend->query_memory(device)->free_bytes;
}

/// Asks for more peer memory than there can be: what does not fit goes to the host.
void put_many(World& world, std::uint64_t first_key) {
  PutOptions options;
  options.backing = Backing::spill;
  for (std::uint64_t key = first_key; key < first_key + 12; ++key)
    ASSERT_TRUE(world.put(key, 1, 2 * MiB, options).has_value());
}

TEST(MonitorTest, GrowthLeavesReserveAndMargin) {
  Machine machine = *machine_from_preset("2xh100-nvl");
  machine.devices[1].tenant_bytes = machine.devices[1].info.total_bytes - 80 * MiB;
  World world(small_config(), {}, machine);  // its reserve is 64 MiB, its margin 2 MiB
  put_many(world, 1);
  EXPECT_GE(free_on(world, 1), 66 * MiB) << "I6";
  EXPECT_LE(free_on(world, 1), 70 * MiB) << "but not much less than what may be used is used";
}

TEST(MonitorTest, GrowthIsLimitedInRate) {
  PeerCacheConfig config = small_config();
  config.pressure.growth_bytes_per_s = 8 * MiB;
  World world(config);
  put_many(world, 1);
  EXPECT_EQ(world.backend->mapped_bytes(1), 8 * MiB) << "what adds up in a second";
  world.pass_time(600'000'000);
  put_many(world, 101);
  EXPECT_EQ(world.backend->mapped_bytes(1), 12 * MiB);
}

TEST(MonitorTest, ASlowRateStillLetsSegmentsInOneByOne) {
  PeerCacheConfig config = small_config();
  config.host_budget_bytes = 128 * MiB;
  config.pressure.growth_bytes_per_s = MiB;  // a segment every two seconds
  World world(config);
  put_many(world, 1);
  EXPECT_EQ(world.backend->mapped_bytes(1), 2 * MiB);
  world.pass_time(1'500'000'000);
  put_many(world, 101);
  EXPECT_EQ(world.backend->mapped_bytes(1), 2 * MiB) << "the first is not paid for yet";
  world.pass_time(1'500'000'000);
  put_many(world, 201);
  EXPECT_EQ(world.backend->mapped_bytes(1), 4 * MiB);
}

TEST(MonitorTest, ABurstRaisesTheReserveForAWhile) {
  World world;
  const auto reserve = [&] { return world.cache->stats().pools[0].reserve_bytes; };
  EXPECT_EQ(reserve(), 64 * MiB);
  ASSERT_TRUE(world.backend->tenant_allocate(1, 4 * GiB).has_value());
  world.pass_time(10'000'000);
  EXPECT_GT(reserve(), 3 * GiB);
  world.pass_time(600'000'000'000);
  EXPECT_EQ(reserve(), 64 * MiB);
}

TEST(MonitorTest, ShrinksAtOnceAndGrowsBackAfterTheDelay) {
  World world;
  for (std::uint64_t key = 1; key <= 8; ++key) ASSERT_TRUE(world.put(key, 1, 4 * MiB, lossy()));
  ASSERT_EQ(world.backend->mapped_bytes(1), 32 * MiB);
  const std::uint64_t taken = free_on(world, 1) - 48 * MiB;  // 16 MiB into the reserve
  ASSERT_TRUE(world.backend->tenant_allocate(1, taken).has_value());
  world.pass_time(10'000'000);
  EXPECT_GE(free_on(world, 1), 64 * MiB) << "I6";
  EXPECT_GT(world.count(CacheEvent::Kind::lost), 0U);
  ASSERT_TRUE(world.backend->tenant_free(1, taken).has_value());
  EXPECT_FALSE(world.put(50, 1, 4 * MiB, lossy()).has_value() && world.backend->mapped_bytes(1) == 32 * MiB)
      << "not before the delay has passed";
  world.pass_time(100'000'000);
  for (std::uint64_t key = 51; key <= 58; ++key) EXPECT_TRUE(world.put(key, 1, 4 * MiB, lossy()).has_value());
  EXPECT_EQ(world.backend->mapped_bytes(1), 32 * MiB);
}

TEST(MonitorTest, SlowQueriesAreAskedLessOften) {
  World world;
  FaultPlan plan;
  plan.slow_query.rate = 1;
  plan.slow_query_ns = 8'000'000;
  world.backend->set_faults(plan);
  const TimeNs begin = world.backend->now_ns();
  int polls = 0;
  while (world.backend->now_ns() < begin + 2'000'000'000) {
    world.backend->sleep_until(world.backend->now_ns() + 1'000'000);
    world.cache->poll();
    ++polls;
  }
  // 2 s at one query of 8 ms in 160 ms: about 12 queries, 0.1 s.
  EXPECT_GT(polls, 1'700);
}

TEST(ReclaimTest, TwoAtOnceAreCreditedInOrder) {
  World world;
  for (std::uint64_t key = 1; key <= 8; ++key) ASSERT_TRUE(world.put(key, 1, 4 * MiB, lossy()));
  world.settle();
  const TimeNs deadline = world.backend->now_ns() + 1'000'000'000;
  const ReclaimId first = *world.cache->begin_reclaim(1, 6 * MiB, deadline);
  const ReclaimId second = *world.cache->begin_reclaim(1, 10 * MiB, deadline);
  world.settle();
  EXPECT_EQ(world.cache->reclaim_status(first)->returned_bytes, 6 * MiB);
  EXPECT_EQ(world.cache->reclaim_status(second)->returned_bytes, 10 * MiB);
  EXPECT_TRUE(world.cache->reclaim_status(second)->finished);
  EXPECT_EQ(world.backend->mapped_bytes(1), 12 * MiB) << "of 32, two whole segments and then three went";
}

TEST(ReclaimTest, NothingNewIsTakenWhileAnOwnerWaits) {
  World world;
  ASSERT_TRUE(world.put(1, 1, 4 * MiB, lossy()));
  Lease lease = world.cache->acquire(1, world.stream);
  ASSERT_EQ(lease.tier(), Tier::peer);
  const ReclaimId id = *world.cache->begin_reclaim(1, 4 * MiB, world.backend->now_ns() + 1'000'000);
  world.pass_time(200'000'000);  // longer than the delay before a pool may grow again
  ASSERT_FALSE(world.cache->reclaim_status(id)->finished);
  EXPECT_FALSE(world.put(2, 1, 4 * MiB, lossy()).has_value());
  EXPECT_EQ(world.backend->mapped_bytes(1), 4 * MiB) << "I6";
  lease.release();
  world.settle();
  EXPECT_TRUE(world.cache->reclaim_status(id)->finished);
  EXPECT_EQ(world.backend->mapped_bytes(1), 0U);
}

TEST(ReclaimTest, ColdSegmentsGoFirst) {
  World world;
  for (std::uint64_t key = 1; key <= 8; ++key) ASSERT_TRUE(world.put(key, 1, 4 * MiB, lossy()));
  world.settle();
  for (int round = 0; round < 3; ++round)
    for (const std::uint64_t key : {2U, 5U, 7U}) world.fetch(key, 1, 4 * MiB);
  world.cache->poll();
  ASSERT_TRUE(world.cache->reclaim(1, 20 * MiB, world.backend->now_ns() + 1'000'000'000)->finished);
  for (const std::uint64_t key : {2U, 5U, 7U}) EXPECT_EQ(world.fetch(key, 1, 4 * MiB), Tier::peer) << key;
}

TEST(ReclaimTest, DuringAPromotionNothingIsLost) {
  World world;
  PutOptions external;
  external.backing = Backing::external_host;
  for (std::uint64_t key = 1; key <= 8; ++key) ASSERT_TRUE(world.put(key, 1, 4 * MiB, external));
  world.cache->poll();  // begins the promotions
  ASSERT_GT(world.cache->stats().promotions, 0U);
  ASSERT_EQ(world.cache->stats().promotions_completed, 0U);
  const auto report = world.cache->reclaim(1, 32 * MiB, world.backend->now_ns() + 1'000'000'000);
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(world.backend->mapped_bytes(1), 0U);
  for (std::uint64_t key = 1; key <= 8; ++key) EXPECT_EQ(world.fetch(key, 1, 4 * MiB), Tier::host);
  world.settle();
  const CacheStats stats = world.cache->stats();
  EXPECT_EQ(stats.promotions, stats.promotions_completed + stats.promotions_failed);
}

TEST(MonitorTest, ASuspendedPeerComesBack) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB));
  world.settle();
  ASSERT_TRUE(world.backend->set_link_up(1, 0, false).has_value());
  EXPECT_EQ(world.fetch(1, 1, MiB), Tier::host);
  world.cache->poll();
  ASSERT_FALSE(world.cache->stats().pools[0].in_service);
  ASSERT_TRUE(world.backend->set_link_up(1, 0, true).has_value());
  world.pass_time(1'500'000'000);
  EXPECT_TRUE(world.cache->stats().pools[0].in_service);
  for (int i = 0; i < 3; ++i) {
    world.fetch(1, 1, MiB);
    world.settle();
  }
  EXPECT_EQ(world.fetch(1, 1, MiB), Tier::peer);
}

TEST(MonitorTest, FailuresThatLieFarApartDoNotAddUp) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::external_host)));
  const auto time_out_of_service = [&] {
    for (int i = 0; i < 4 && world.cache->locate(1) != Tier::peer; ++i) {
      world.fetch(1, 1, MiB);
      world.settle();
    }
    EXPECT_EQ(world.cache->locate(1), Tier::peer);
    EXPECT_TRUE(world.backend->set_link_up(1, 0, false).has_value());
    EXPECT_EQ(world.fetch(1, 1, MiB), Tier::host);
    EXPECT_TRUE(world.backend->set_link_up(1, 0, true).has_value());
    world.cache->poll();
    const TimeNs begin = world.backend->now_ns();
    while (!world.cache->stats().pools[0].in_service) world.pass_time(50'000'000);
    return world.backend->now_ns() - begin;
  };
  const TimeNs first = time_out_of_service();
  EXPECT_GT(time_out_of_service(), first * 3 / 2) << "soon after the first: the pause doubles";
  world.pass_time(120'000'000'000);
  EXPECT_LT(time_out_of_service(), first * 3 / 2)
      << "after two minutes of good service it is the first again";
}

}  // namespace
}  // namespace harvest::testing
