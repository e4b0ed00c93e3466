// SPDX-License-Identifier: Apache-2.0
#include "core/world.hpp"

/// Work that is still under way when the next is given: each waits for what it needs, whatever is slow.
namespace harvest::testing {
namespace {

constexpr std::uint64_t kBytes = 2 * MiB;
constexpr TimeNs kLong = 20'000'000;

/// One slot on the peer.
PeerCacheConfig one_slot() {
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = kBytes;
  config.segment_max_bytes = kBytes;
  config.balance_paths = false;
  return config;
}

PutOptions on_stream(Backing backing, StreamId stream) {
  PutOptions options = backed_by(backing);
  options.stream = stream;
  return options;
}

FetchItem item_of(const World& world, std::uint64_t key) {
  FetchItem item;
  item.key = key;
  item.destination = world.staging;
  item.capacity_bytes = kBytes;
  return item;
}

TEST(OverlapTest, ASlotWaitsForTheWriteOfAnObjectThatIsGone) {
  World world(one_slot());
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, kLong).has_value());
  ASSERT_TRUE(world.put(1, 1, kBytes, on_stream(Backing::lossy, world.stream)));  // writes after the kernel
  ASSERT_TRUE(world.cache->erase(1).has_value());
  ASSERT_TRUE(world.put(2, 1, kBytes, backed_by(Backing::lossy)));
  world.wait();
  EXPECT_EQ(world.fetch(2, 1, kBytes), Tier::peer);
}

TEST(OverlapTest, ASpillWaitsForTheWriteOfWhatItMoves) {
  World world;
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, kLong).has_value());
  ASSERT_TRUE(world.put(1, 1, kBytes, on_stream(Backing::spill, world.stream)));
  const auto report = world.cache->reclaim(1, kBytes, world.backend->now_ns() + 50 * kLong);
  ASSERT_TRUE(report && report->finished);
  EXPECT_EQ(world.fetch(1, 1, kBytes), Tier::host);
}

TEST(OverlapTest, AWipeWaitsForTheLastReader) {
  World world(one_slot());
  PutOptions options = backed_by(Backing::lossy);
  options.tenant = 7;
  ASSERT_TRUE(world.put(1, 1, kBytes, options));
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, kLong).has_value());
  FetchItem item = item_of(world, 1);
  ASSERT_TRUE(world.cache->fetch({&item, 1}, world.stream).has_value());
  ASSERT_TRUE(world.cache->erase(1).has_value());
  EXPECT_EQ(world.download(world.staging, kBytes), content(1, 1, kBytes));
}

/// A fetch from host and peer goes by two streams; both come after the work that still reads the destination.
TEST(OverlapTest, BothPathsOfAFetchWaitForTheReadersOfItsDestination) {
  World world(one_slot());
  ASSERT_TRUE(world.put(1, 1, kBytes, backed_by(Backing::lossy)));
  ASSERT_TRUE(world.put(2, 1, kBytes, backed_by(Backing::external_host)));
  world.settle();
  const std::vector<std::byte> before = content(9, 1, 2 * kBytes);
  const Copy upload{world.staging, before.data(), 2 * kBytes};
  ASSERT_TRUE(world.backend->copy(world.stream, {kHost, 0}, {&upload, 1}).has_value());
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, kLong).has_value());
  std::vector<std::byte> read(2 * kBytes);
  const Copy reader{read.data(), world.staging, 2 * kBytes};
  ASSERT_TRUE(world.backend->copy(world.stream, {0, kHost}, {&reader, 1}).has_value());

  std::vector<FetchItem> items{item_of(world, 1), item_of(world, 2)};
  items[1].destination = world.staging + kBytes;
  ASSERT_TRUE(world.cache->fetch(items, world.stream).has_value());
  ASSERT_EQ(items[0].served, Tier::peer);
  ASSERT_EQ(items[1].served, Tier::host);
  EXPECT_EQ(world.download(world.staging, kBytes), content(1, 1, kBytes));
  EXPECT_EQ(world.download(world.staging + kBytes, kBytes), content(2, 1, kBytes));
  EXPECT_EQ(read, before) << "write after read";
}

}  // namespace
}  // namespace harvest::testing
