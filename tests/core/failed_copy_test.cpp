// SPDX-License-Identifier: Apache-2.0
#include "core/world.hpp"

/// Copies that fail at the worst moment: no reader may see what they left behind (I2), nobody's bytes may
/// be written over (I1), and nothing but what had to go is gone (I4).
namespace harvest::testing {
namespace {

PutOptions backed_by(Backing backing, StreamId stream = StreamId::none) {
  PutOptions options;
  options.backing = backing;
  options.stream = stream;
  return options;
}

FetchItem item_of(const World& world, std::uint64_t key, std::uint64_t bytes) {
  FetchItem item;
  item.key = key;
  item.destination = world.staging;
  item.capacity_bytes = bytes;
  return item;
}

/// One slot of 2 MiB on the peer.
PeerCacheConfig one_slot() {
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 2 * MiB;
  config.segment_max_bytes = 2 * MiB;
  return config;
}

void fail_the_next_copy(World& world) {
  FaultPlan plan;
  plan.fail_copy.at = 1;
  world.backend->set_faults(plan);
}

void refuse_the_next_copy(World& world) {
  FaultPlan plan;
  plan.refuse_copy.at = 1;
  world.backend->set_faults(plan);
}

TEST(FailedCopyTest, ReadBehindAWriteThatFailsIsNoHit) {
  World world;
  fail_the_next_copy(world);
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::managed_host, world.stream)));
  FetchItem item = item_of(world, 1, MiB);
  ASSERT_TRUE(world.cache->fetch_and_wait({&item, 1}, world.stream).has_value());
  EXPECT_EQ(item.outcome, ErrorCode::not_found);
  EXPECT_EQ(item.served, Tier::none);
  world.settle();
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), 1U);
}

/// Streams that the cache was never told of are their owners' alone: an event on one would take the news of a
/// failure away from its owner's next event.
TEST(FailedCopyTest, NobodyAsksStreamsThatTheCacheDoesNotKnow) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::lossy)));
  world.settle();
  std::vector<StreamId> streams;
  while (streams.size() < 80) streams.push_back(*world.backend->create_stream(0));
  const StreamId known = streams[78], unknown = streams[70];
  world.cache->acquire(1, known).release();
  fail_the_next_copy(world);
  const harvest::Copy copy{world.staging, world.staging + MiB, 4096};
  ASSERT_TRUE(world.backend->copy(unknown, {0, 0}, {&copy, 1}));
  ASSERT_TRUE(world.cache->erase(1));
  world.settle();
  const EventId event = *world.backend->record_event(unknown);
  EXPECT_EQ(world.backend->wait_event(event, kNever), EventState::failed);
  world.backend->release_event(event);
}

/// Nor streams that objects are only written on: what they read there is the writer's, and has its own event.
TEST(FailedCopyTest, NobodyAsksStreamsThatNothingWasReadOn) {
  World world;
  std::vector<StreamId> streams;
  while (streams.size() < 80) streams.push_back(*world.backend->create_stream(0));
  const StreamId reads = streams[78], writes = streams[70];
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::lossy)));
  ASSERT_TRUE(world.put(2, 1, MiB, backed_by(Backing::lossy, writes)));
  world.settle();
  world.cache->acquire(1, reads).release();
  fail_the_next_copy(world);
  const harvest::Copy copy{world.staging, world.staging + MiB, 4096};
  ASSERT_TRUE(world.backend->copy(writes, {0, 0}, {&copy, 1}));
  ASSERT_TRUE(world.cache->erase(1));
  world.settle();
  const EventId event = *world.backend->record_event(writes);
  EXPECT_EQ(world.backend->wait_event(event, kNever), EventState::failed);
  world.backend->release_event(event);
}

TEST(FailedCopyTest, RefusedPutLeavesTheReadersOfItsSlotAlone) {
  World world(one_slot());
  ASSERT_TRUE(world.put(1, 1, 2 * MiB, backed_by(Backing::lossy)));
  world.settle();
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 20'000'000).has_value());
  FetchItem item = item_of(world, 1, 2 * MiB);
  ASSERT_TRUE(world.cache->fetch({&item, 1}, world.stream).has_value());
  ASSERT_EQ(item.served, Tier::peer);
  ASSERT_TRUE(world.cache->erase(1).has_value());
  refuse_the_next_copy(world);
  ASSERT_FALSE(world.put(2, 1, 2 * MiB, backed_by(Backing::lossy)));
  // Into the slot that is still read, on a stream that waits for nothing else.
  const StreamId other = *world.backend->create_stream(0);
  ASSERT_TRUE(world.put(3, 1, 2 * MiB, backed_by(Backing::lossy, other)));
  EXPECT_EQ(world.download(world.staging, 2 * MiB), content(1, 1, 2 * MiB)) << "write after read";
  EXPECT_EQ(world.fetch(3, 1, 2 * MiB), Tier::peer);
}

TEST(FailedCopyTest, RefusedPromotionLeavesTheReadersOfItsSlotAlone) {
  World world(one_slot());
  ASSERT_TRUE(world.put(1, 1, 2 * MiB, backed_by(Backing::lossy)));
  world.settle();
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 20'000'000).has_value());
  FetchItem item = item_of(world, 1, 2 * MiB);
  ASSERT_TRUE(world.cache->fetch({&item, 1}, world.stream).has_value());
  ASSERT_TRUE(world.cache->erase(1).has_value());
  ASSERT_TRUE(world.put(2, 1, 2 * MiB));
  refuse_the_next_copy(world);
  const Key key = 2;
  static_cast<void>(world.cache->prefetch({&key, 1}, Tier::peer));
  ASSERT_TRUE(world.put(3, 1, 2 * MiB, backed_by(Backing::lossy)));
  EXPECT_EQ(world.download(world.staging, 2 * MiB), content(1, 1, 2 * MiB)) << "write after read";
}

TEST(FailedCopyTest, PromotionFromACopyWhoseWriteFailsIsNotShown) {
  PeerCacheConfig config = small_config();
  config.local_budget_bytes = 2 * MiB;
  World world(config);
  ASSERT_TRUE(world.put(9, 1, 2 * MiB));
  Key key = 9;
  ASSERT_EQ(world.cache->prefetch({&key, 1}, Tier::local), 1U);
  world.settle();
  Lease holds_local_memory = world.cache->acquire(9, world.stream);
  ASSERT_EQ(holds_local_memory.tier(), Tier::local);

  // The bytes come from the consumer: to the host, which works, and to the peer, which fails on its way.
  const std::vector<std::byte> source = content(1, 1, 2 * MiB);
  const Copy upload{world.staging, source.data(), 2 * MiB};
  ASSERT_TRUE(world.backend->copy(world.stream, {kHost, 0}, {&upload, 1}).has_value());
  world.wait();
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 5'000'000).has_value());
  FaultPlan plan;
  plan.fail_copy.at = 2;
  world.backend->set_faults(plan);
  PutOptions options = backed_by(Backing::managed_host, world.stream);
  options.source_device = 0;
  ASSERT_TRUE(world.cache->put(1, world.staging, 2 * MiB, options).has_value());
  ASSERT_EQ(world.cache->locate(1), Tier::peer);
  holds_local_memory.release();
  key = 1;
  ASSERT_EQ(world.cache->prefetch({&key, 1}, Tier::local), 1U);
  world.settle();
  EXPECT_NE(world.fetch(1, 1, 2 * MiB), Tier::none);
}

TEST(FailedCopyTest, SpillOfACopyWhoseWriteFailsIsNotShown) {
  World world;
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 5'000'000).has_value());
  fail_the_next_copy(world);
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::spill, world.stream)));
  // The move to the host waits for the write; both end between two calls.
  const TimeNs far = world.backend->now_ns() + 10'000'000'000;
  ASSERT_TRUE(world.cache->begin_reclaim(1, MiB, far).has_value());
  world.backend->sleep_until(world.backend->now_ns() + 100'000'000);
  ASSERT_TRUE(world.cache->begin_reclaim(1, MiB, far).has_value());
  FetchItem item = item_of(world, 1, MiB);
  ASSERT_TRUE(world.cache->fetch_and_wait({&item, 1}, world.stream).has_value());
  EXPECT_EQ(item.outcome, ErrorCode::not_found) << "the bytes never arrived anywhere";
  world.settle();
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), 1U);
}

// What is put from a GPU is written to the host and to a peer; the one that fails may be the other one.
TEST(FailedCopyTest, ACopyThatIsNotWrittenYetVouchesForNoOther) {
  World world;
  const std::vector<std::byte> bytes = content(1, 1, MiB);
  const Copy upload{world.staging, bytes.data(), MiB};
  ASSERT_TRUE(world.backend->copy(world.stream, {kHost, 0}, {&upload, 1}).has_value());
  world.wait();
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 20'000'000).has_value());
  fail_the_next_copy(world);  // that to the host
  PutOptions options = backed_by(Backing::managed_host, world.stream);
  options.source_device = 0;
  ASSERT_TRUE(world.cache->put(1, world.staging, MiB, options).has_value());
  ASSERT_EQ(world.cache->locate(1), Tier::peer);
  const auto report = world.cache->reclaim(1, 4 * MiB, world.backend->now_ns() + 1'000'000'000);
  ASSERT_TRUE(report.has_value());
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(world.fetch(1, 1, MiB), Tier::host) << "I4";
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), 0U);
}

TEST(FailedCopyTest, RefusedReplacementKeepsTheOldContent) {
  for (const Backing backing : {Backing::managed_host, Backing::lossy}) {
    World world;
    const auto first = world.put(1, 1, MiB, backed_by(backing));
    ASSERT_TRUE(first.has_value());
    world.settle();
    refuse_the_next_copy(world);
    const auto second = world.put(1, 2, MiB, backed_by(backing));
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().code, ErrorCode::copy_failed);
    EXPECT_NE(world.fetch(1, 1, MiB), Tier::none) << to_string(backing);
    const CacheStats stats = world.cache->stats();
    EXPECT_EQ(stats.puts, 2U);
    EXPECT_EQ(stats.puts_refused, 1U);
  }
}

TEST(FailedCopyTest, RefusedSpillPutGoesToTheHost) {
  World world;
  refuse_the_next_copy(world);
  ASSERT_TRUE(world.put(1, 1, MiB, backed_by(Backing::spill)));
  EXPECT_EQ(world.fetch(1, 1, MiB), Tier::host);
}

TEST(FailedCopyTest, WithoutHostMemoryAPutSaysSo) {
  PeerCacheConfig config = small_config();
  config.host_budget_bytes = 0;
  config.peer_budget_bytes = 4 * MiB;
  World world(config);
  for (const Backing backing : {Backing::managed_host, Backing::spill}) {
    const auto stored = world.put(1, 1, 8 * MiB, backed_by(backing));
    ASSERT_FALSE(stored.has_value());
    EXPECT_EQ(stored.error().code, ErrorCode::out_of_memory);
    EXPECT_NE(stored.error().message.find("8388608 bytes"), std::string::npos) << stored.error().message;
  }
}

TEST(FailedCopyTest, AHitIsCountedWhereItWasServed) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB));
  ASSERT_TRUE(world.put(2, 1, MiB, backed_by(Backing::lossy)));
  world.settle();
  ASSERT_EQ(world.cache->locate(1), Tier::peer);
  ASSERT_TRUE(world.backend->set_link_up(1, 0, false).has_value());
  EXPECT_EQ(world.fetch(1, 1, MiB), Tier::host);
  EXPECT_EQ(world.fetch(2, 1, MiB), Tier::none);
  const CacheStats stats = world.cache->stats();
  EXPECT_EQ(stats.reads, 2U);
  EXPECT_EQ(stats.hits[static_cast<std::size_t>(Tier::host)], 1U);
  EXPECT_EQ(stats.hits[static_cast<std::size_t>(Tier::peer)], 0U);
  EXPECT_EQ(stats.misses, 1U);
}

TEST(FailedCopyTest, ObjectsAreCountedWhileTheyCanBeFound) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB));
  world.settle();
  const Lease lease = world.cache->acquire(1, StreamId::none);
  ASSERT_TRUE(lease);
  ASSERT_TRUE(world.put(1, 2, MiB));
  EXPECT_EQ(world.cache->stats().objects, 1U);
  ASSERT_TRUE(world.cache->erase(1));
  EXPECT_EQ(world.cache->stats().objects, 0U);
}

}  // namespace
}  // namespace harvest::testing
