// SPDX-License-Identifier: Apache-2.0
#include "core/world.hpp"

/// What a refused call leaves behind: everything as it was. What is refused, and with which words, is shown
/// in tests/wrong_input.
namespace harvest::testing {
namespace {

TEST(RefusedCalls, APutThatFailsLeavesTheOldContent) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB));
  const std::vector<std::byte> bytes = content(9, 1, MiB);
  ASSERT_FALSE(world.cache->put(1, bytes.data(), 1ULL << 40).has_value());
  FaultPlan plan;
  plan.refuse_copy.rate = 1;
  world.backend->set_faults(plan);
  ASSERT_FALSE(world.put(1, 2, MiB).has_value());
  world.backend->set_faults({});
  EXPECT_NE(world.fetch(1, 1, MiB), Tier::none);
  world.audit();
}

TEST(RefusedCalls, AnItemThatDoesNotFitWritesNothing) {
  World world;
  ASSERT_TRUE(world.put(1, 1, MiB));
  const std::vector<std::byte> before = content(9, 1, MiB);
  const Copy upload{world.staging, before.data(), MiB};
  ASSERT_TRUE(world.backend->copy(world.stream, {kHost, 0}, {&upload, 1}).has_value());
  FetchItem item;
  item.key = 1;
  item.destination = world.staging;
  item.capacity_bytes = MiB - 1;
  ASSERT_TRUE(world.cache->fetch_and_wait({&item, 1}, world.stream).has_value());
  EXPECT_EQ(item.outcome, ErrorCode::invalid_argument);
  EXPECT_EQ(world.download(world.staging, MiB), before);
}

TEST(RefusedCalls, PinnedMemoryThatCannotBeHadIsAnErrorAndNoMore) {
  World world;
  FaultPlan plan;
  plan.fail_host_map.rate = 1;
  world.backend->set_faults(plan);
  EXPECT_EQ(world.put(1, 1, MiB).error().code, ErrorCode::out_of_memory);
  world.backend->set_faults({});
  EXPECT_TRUE(world.put(1, 1, MiB).has_value());
  EXPECT_NE(world.fetch(1, 1, MiB), Tier::none);
}

TEST(RefusedCalls, AFullTableTakesObjectsAgainWhenOneIsGone) {
  PeerCacheConfig config = small_config();
  config.max_objects = 3;
  World world(config);
  for (std::uint64_t key = 1; key <= 3; ++key) ASSERT_TRUE(world.put(key, 1, KiB));
  ASSERT_FALSE(world.put(4, 1, KiB).has_value());
  ASSERT_TRUE(world.cache->erase(1).has_value());
  world.settle();
  EXPECT_TRUE(world.put(4, 1, KiB).has_value());
}

}  // namespace
}  // namespace harvest::testing
