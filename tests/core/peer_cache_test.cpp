// SPDX-License-Identifier: Apache-2.0
#include "core/world.hpp"

/// The cache end to end on a simulated machine with real bytes: every delivered byte is compared.
namespace harvest::testing {
namespace {

TEST(PeerCacheTest, ServesEachBackingFromWhereItLives) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::external_host)));
  ASSERT_TRUE(world.put(2, 1, MiB, backed_by(Backing::managed_host)));
  ASSERT_TRUE(world.put(3, 1, MiB, backed_by(Backing::spill)));
  ASSERT_TRUE(world.put(4, 1, MiB, backed_by(Backing::lossy)));
  EXPECT_EQ(world.fetch(3, 1, MiB), Tier::peer);
  EXPECT_EQ(world.fetch(4, 1, MiB), Tier::peer);
  EXPECT_NE(world.fetch(1, 1, MiB), Tier::none);
  EXPECT_NE(world.fetch(2, 1, MiB), Tier::none);
  EXPECT_EQ(world.fetch(5, 1, MiB), Tier::none);
  world.settle();
  // With room to spare, what has its bytes on the host gets a faster copy by itself.
  EXPECT_EQ(world.fetch(1, 1, MiB), Tier::peer);
  EXPECT_EQ(world.fetch(2, 1, MiB), Tier::peer);
  world.audit();
}

TEST(PeerCacheTest, ReclaimGivesAllBackAndReadsGoOn) {
  World world;
  for (std::uint64_t key = 1; key <= 6; ++key) ASSERT_TRUE(world.put(key, 1, MiB));
  for (std::uint64_t key = 11; key <= 16; ++key)
    ASSERT_TRUE(world.put(key, 1, MiB, backed_by(Backing::spill)));
  for (std::uint64_t key = 21; key <= 26; ++key)
    ASSERT_TRUE(world.put(key, 1, MiB, backed_by(Backing::lossy)));
  world.settle();
  const std::uint64_t mapped = world.backend->mapped_bytes(1);
  ASSERT_GT(mapped, 0U);
  const std::uint64_t free_before = world.backend->query_memory(1)->free_bytes;

  const auto report = world.cache->reclaim(1, mapped, world.backend->now_ns() + 1'000'000'000);
  ASSERT_TRUE(report.has_value());
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(report->returned_bytes, mapped);
  EXPECT_EQ(report->late_bytes, 0U);
  EXPECT_EQ(report->lost_bytes, 6 * MiB);
  EXPECT_EQ(report->spilled_bytes, 6 * MiB);
  EXPECT_EQ(world.backend->mapped_bytes(1), 0U) << "I5";
  EXPECT_EQ(world.backend->query_memory(1)->free_bytes, free_before + mapped) << "I5";

  for (std::uint64_t key = 1; key <= 6; ++key) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::host);
  for (std::uint64_t key = 11; key <= 16; ++key) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::host);
  for (std::uint64_t key = 21; key <= 26; ++key) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::none);
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), 6U) << "I4: each lossy object is reported once";
  EXPECT_EQ(world.count(CacheEvent::Kind::spilled), 6U);
  world.audit();

  // When the peer's memory has been free for a while, what is read climbs back.
  world.pass_time(2'000'000'000);
  for (int round = 0; round < 3; ++round) {
    for (std::uint64_t key = 1; key <= 6; ++key) world.fetch(key, 1, MiB);
    world.settle();
  }
  for (std::uint64_t key = 1; key <= 6; ++key) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::peer);
}

TEST(PeerCacheTest, LeaseDelaysItsOwnSegmentAndNothingElse) {
  World world;
  for (std::uint64_t key = 1; key <= 8; ++key)
    ASSERT_TRUE(world.put(key, 1, 4 * MiB, backed_by(Backing::lossy)));
  world.settle();
  const std::uint64_t mapped = world.backend->mapped_bytes(1);
  ASSERT_EQ(mapped, 32 * MiB);
  Lease lease = world.cache->acquire(3, world.stream);
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease.tier(), Tier::peer);

  auto report = world.cache->reclaim(1, mapped, world.backend->now_ns() + 100'000'000);
  ASSERT_TRUE(report.has_value());
  EXPECT_FALSE(report->finished);
  EXPECT_EQ(report->returned_bytes, mapped - 4 * MiB) << "I1: all but the leased segment is back";
  EXPECT_EQ(report->late_bytes, 4 * MiB);

  // The leased bytes are still there, though the key is gone for new readers.
  EXPECT_FALSE(world.cache->acquire(3, world.stream));
  const Copy copy{world.staging, lease.data(), 4 * MiB};
  ASSERT_TRUE(world.backend->copy(world.stream, {1, 0}, {&copy, 1}).has_value());
  lease.release();
  EXPECT_EQ(world.download(world.staging, 4 * MiB), content(3, 1, 4 * MiB));
  world.settle();
  EXPECT_EQ(world.backend->mapped_bytes(1), 0U);
}

TEST(PeerCacheTest, WorkGivenUnderALeaseKeepsTheSegmentAfterRelease) {
  World world;
  ASSERT_TRUE(world.put(1, 1, 4 * MiB, backed_by(Backing::lossy)));
  world.settle();
  {
    Lease lease = world.cache->acquire(1, world.stream);
    ASSERT_TRUE(lease);
    ASSERT_TRUE(world.backend->submit_kernel(world.stream, 20'000'000).has_value());
    const Copy copy{world.staging, lease.data(), 4 * MiB};
    ASSERT_TRUE(world.backend->copy(world.stream, {1, 0}, {&copy, 1}).has_value());
  }
  const TimeNs begin = world.backend->now_ns();
  const auto report = world.cache->reclaim(1, 4 * MiB, begin + 1'000'000'000);
  ASSERT_TRUE(report.has_value());
  EXPECT_TRUE(report->finished);
  EXPECT_GE(world.backend->now_ns() - begin, 20'000'000) << "I1: enqueued work is waited for";
  EXPECT_EQ(world.download(world.staging, 4 * MiB), content(1, 1, 4 * MiB));
}

TEST(PeerCacheTest, ReplacingAKeyKeepsOldLeasesGood) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB));
  world.settle();
  const Lease old = world.cache->acquire(1, StreamId::none);
  ASSERT_TRUE(old);
  ASSERT_EQ(old.tier(), Tier::host);
  const auto second = world.put(1, 2, MiB);
  ASSERT_TRUE(second.has_value());
  EXPECT_GT(*second, old.generation());
  EXPECT_NE(world.fetch(1, 2, MiB), Tier::none);
  EXPECT_EQ(std::memcmp(old.data(), content(1, 1, MiB).data(), MiB), 0) << "I2";
  EXPECT_EQ(old.bytes(), MiB);
}

TEST(PeerCacheTest, EraseForgetsAndTellsWhenTheCallersMemoryIsFree) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::external_host)));
  FetchItem item;
  item.key = 1;
  item.destination = world.staging;
  item.capacity_bytes = MiB;
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 5'000'000).has_value());
  ASSERT_TRUE(world.cache->fetch({&item, 1}, world.stream).has_value());
  ASSERT_TRUE(world.cache->erase(1).has_value());
  EXPECT_EQ(world.cache->erase(1).error().code, ErrorCode::not_found);
  world.cache->poll();
  EXPECT_EQ(world.count(CacheEvent::Kind::settled), 0U) << "the fetch still reads it";
  world.settle();
  EXPECT_EQ(world.count(CacheEvent::Kind::settled), 1U);
  EXPECT_EQ(world.download(world.staging, MiB), content(1, 1, MiB));
  EXPECT_EQ(world.fetch(1, 1, MiB), Tier::none);
}

TEST(PeerCacheTest, MonitorShrinksWhenATenantComes) {
  PeerCacheConfig config = small_config();
  World world(config);
  for (std::uint64_t key = 1; key <= 8; ++key)
    ASSERT_TRUE(world.put(key, 1, 4 * MiB, backed_by(Backing::spill)));
  world.settle();
  ASSERT_EQ(world.backend->mapped_bytes(1), 32 * MiB);
  // The owner takes all but 16 MiB of what is free: less than the reserve is left.
  const std::uint64_t free = world.backend->query_memory(1)->free_bytes;
  ASSERT_TRUE(world.backend->tenant_allocate(1, free - 16 * MiB).has_value());
  world.pass_time(100'000'000);
  EXPECT_EQ(world.backend->mapped_bytes(1), 0U) << "I6";
  for (std::uint64_t key = 1; key <= 8; ++key) EXPECT_EQ(world.fetch(key, 1, 4 * MiB), Tier::host);
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), 0U);
}

TEST(PeerCacheTest, HostPoolEvictsOnlyWhatMayGo) {
  PeerCacheConfig config = small_config();
  config.host_budget_bytes = 16 * MiB;
  config.peer_budget_bytes = 0;
  World world(config);
  for (std::uint64_t key = 1; key <= 8; ++key) ASSERT_TRUE(world.put(key, 1, MiB));
  PutOptions may_go;
  may_go.evictable = true;
  for (std::uint64_t key = 100; key < 140; ++key) ASSERT_TRUE(world.put(key, 1, MiB, may_go));
  for (std::uint64_t key = 1; key <= 8; ++key) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::host);
  EXPECT_EQ(world.count(CacheEvent::Kind::evicted), 32U);
  for (std::uint64_t key = 11; key <= 18; ++key) ASSERT_TRUE(world.put(key, 1, MiB));
  const auto refused = world.put(19, 1, MiB);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::out_of_memory);
  world.audit();
}

TEST(PeerCacheTest, BatchesMergeRunsAndUseBothPaths) {
  World world;
  for (std::uint64_t key = 1; key <= 4; ++key) ASSERT_TRUE(world.put(key, 1, MiB, backed_by(Backing::lossy)));
  for (std::uint64_t key = 5; key <= 8; ++key) ASSERT_TRUE(world.put(key, 1, MiB));
  std::vector<FetchItem> items(8);
  for (std::uint64_t i = 0; i < 8; ++i) {
    items[i].key = i + 1;
    items[i].destination = world.staging + i * MiB;
    items[i].capacity_bytes = MiB;
  }
  ASSERT_TRUE(world.cache->fetch(items, world.stream).has_value());
  const auto bytes = world.download(world.staging, 8 * MiB);
  for (std::uint64_t i = 0; i < 8; ++i) {
    EXPECT_NE(items[i].served, Tier::none);
    EXPECT_EQ(std::memcmp(bytes.data() + i * MiB, content(i + 1, 1, MiB).data(), MiB), 0) << i;
  }
  const CacheStats stats = world.cache->stats();
  EXPECT_EQ(stats.reads, 8U);
  EXPECT_EQ(stats.reads, stats.hits[0] + stats.hits[1] + stats.hits[2] + stats.misses);
}

TEST(PeerCacheTest, LocalTierIsLeasedInPlace) {
  PeerCacheConfig config = small_config();
  config.local_budget_bytes = 8 * MiB;
  World world(config);
  ASSERT_TRUE(world.put(1, 1, MiB));
  const Key key = 1;
  EXPECT_EQ(world.cache->prefetch({&key, 1}, Tier::local), 1U);
  world.settle();
  const Lease lease = world.cache->acquire(1, world.stream);
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease.tier(), Tier::local);
  EXPECT_EQ(world.download(lease.data(), MiB), content(1, 1, MiB));
}

TEST(PeerCacheTest, FailedPathFallsBackToHostAndPeerLeavesService) {
  World world;
  for (std::uint64_t key = 1; key <= 4; ++key) ASSERT_TRUE(world.put(key, 1, MiB));
  world.settle();
  ASSERT_EQ(world.fetch(1, 1, MiB), Tier::peer);
  ASSERT_TRUE(world.backend->set_link_up(1, 0, false).has_value());
  EXPECT_EQ(world.fetch(1, 1, MiB), Tier::host) << "I10: served from the next tier";
  world.cache->poll();
  EXPECT_FALSE(world.cache->stats().pools[0].in_service);
  for (std::uint64_t key = 1; key <= 4; ++key) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::host);
  EXPECT_GT(world.cache->stats().fetch_fallbacks, 0U);
}

TEST(PeerCacheTest, LostDeviceTakesOnlyWhatLivedThereAlone) {
  PeerCacheConfig config = small_config();
  config.peers = {1};
  World world(config, {}, "dgx-h100");
  for (std::uint64_t key = 1; key <= 4; ++key) ASSERT_TRUE(world.put(key, 1, MiB));
  for (std::uint64_t key = 11; key <= 14; ++key)
    ASSERT_TRUE(world.put(key, 1, MiB, backed_by(Backing::lossy)));
  world.settle();
  ASSERT_TRUE(world.backend->lose_device(1).has_value());
  for (std::uint64_t key = 1; key <= 4; ++key) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::host);
  world.pass_time(20'000'000);
  for (std::uint64_t key = 11; key <= 14; ++key) EXPECT_EQ(world.fetch(key, 1, MiB), Tier::none);
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), 4U);
  EXPECT_FALSE(world.cache->stats().pools[0].in_service);
  world.audit();
}

TEST(PeerCacheTest, SpilledBytesPreferAnotherPeer) {
  PeerCacheConfig config = small_config();
  config.peers = {1, 2};
  World world(config, {}, "dgx-h100");
  PutOptions options = backed_by(Backing::spill);
  std::map<std::uint64_t, Generation> generations;
  for (std::uint64_t key = 1; key <= 4; ++key) generations[key] = world.put(key, 1, 4 * MiB, options).value();
  world.settle();
  const DeviceId crowded = world.backend->mapped_bytes(1) > 0 ? 1 : 2;
  const std::uint64_t mapped = world.backend->mapped_bytes(crowded);
  const auto report = world.cache->reclaim(crowded, mapped, world.backend->now_ns() + 1'000'000'000);
  ASSERT_TRUE(report.has_value());
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(world.backend->mapped_bytes(crowded), 0U);
  for (std::uint64_t key = 1; key <= 4; ++key) {
    EXPECT_EQ(world.fetch(key, 1, 4 * MiB), Tier::peer);
    EXPECT_EQ(world.cache->acquire(key, world.stream).generation(), generations[key])
        << "moved, not replaced";
  }
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), 0U);
}

TEST(PeerCacheTest, CopyThatFailsInFlightIsServedAgain) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB));
  world.settle();
  ASSERT_EQ(world.cache->locate(1), Tier::peer);
  FaultPlan plan;
  plan.fail_copy.at = 1;
  world.backend->set_faults(plan);
  FetchItem item;
  item.key = 1;
  item.destination = world.staging;
  item.capacity_bytes = MiB;
  ASSERT_TRUE(world.cache->fetch_and_wait({&item, 1}, world.stream).has_value());
  EXPECT_EQ(item.outcome, ErrorCode::ok);
  EXPECT_EQ(item.served, Tier::host);
  EXPECT_EQ(world.download(world.staging, MiB), content(1, 1, MiB));
}

TEST(PeerCacheTest, TenantsBytesAreWipedBeforeTheyGo) {
  World world;
  PutOptions options = backed_by(Backing::lossy);
  options.tenant = 7;
  ASSERT_TRUE(world.put(1, 1, 4 * MiB, options));
  world.settle();
  const std::byte* address = nullptr;
  {
    const Lease lease = world.cache->acquire(1, world.stream);
    ASSERT_TRUE(lease);
    address = lease.data();
  }
  ASSERT_TRUE(world.cache->erase(1).has_value());
  world.settle();
  const Copy copy{world.staging, address, 4 * MiB};
  ASSERT_TRUE(world.backend->copy(world.stream, {1, 0}, {&copy, 1}).has_value());
  EXPECT_EQ(world.download(world.staging, 4 * MiB), std::vector<std::byte>(4 * MiB)) << "I12";
}

}  // namespace
}  // namespace harvest::testing
