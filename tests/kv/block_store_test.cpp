// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include "kv/world.hpp"

/// Blocks on their way from pages into the cache.
namespace harvest::kv {
namespace {

using ::testing::IsEmpty;
using Keys = std::vector<Key>;

// --- storing ----------------------------------------------------------------------------------------------

TEST(BlockStore, ReadsWhatWorkBeforeItWrites) {
  World world;
  const auto pages = world.pages_from(0, 1), from = world.pages_from(40, 1);
  world.fill(Key(1), from);
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 5'000'000));
  std::vector<Copy> copies;
  for (const KvPart& part : world.layout.parts)
    for (std::size_t i = 0; i < pages.size(); ++i)
      copies.push_back({part.base + pages[i] * part.page_stride_bytes,
                        part.base + from[i] * part.page_stride_bytes, part.run_bytes});
  ASSERT_TRUE(world.backend->copy(world.stream, {0, 0}, copies));
  ASSERT_EQ(world.blocks->store(Keys{1}, pages, world.stream), 1U);
  ASSERT_TRUE(world.blocks->settle(world.backend->now_ns() + 1'000'000'000));
  const auto back = world.pages_from(20, 1);
  auto load = world.blocks->load(Keys{1}, back, world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), IsEmpty());
  EXPECT_EQ(world.wrong_bytes(Key(1), back), 0U);
}

TEST(BlockStore, HoldsUpNothingOfTheEngines) {
  World world;
  const auto pages = world.pages_from(0, 4);
  ASSERT_TRUE(world.blocks->store(Keys{1, 2, 3, 4}, pages, world.stream));
  const TimeNs begin = world.backend->now_ns();
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 1000));
  world.wait_for(world.stream);
  EXPECT_EQ(world.backend->now_ns() - begin, 1000);
}

TEST(BlockStore, PagesAreFreeBehindTheirGather) {
  World world;
  const auto pages = world.pages_from(0, 2);
  world.fill(Key(1), std::span(pages).first(2));
  world.fill(Key(2), std::span(pages).subspan(2));
  ASSERT_EQ(world.blocks->store(Keys{1, 2}, pages, world.stream), 2U);
  ASSERT_TRUE(world.blocks->order_behind_stores(pages, world.stream));
  for (const KvPart& part : world.layout.parts)
    for (const std::uint32_t page : pages)
      ASSERT_TRUE(
          world.backend->fill(world.stream, 0, part.base + page * part.page_stride_bytes, part.run_bytes, 0));
  ASSERT_TRUE(world.blocks->settle(world.backend->now_ns() + 1'000'000'000));
  const auto back = world.pages_from(20, 2);
  auto load = world.blocks->load(Keys{1, 2}, back, world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), IsEmpty());
  EXPECT_EQ(world.wrong_bytes(Key(1), std::span(back).first(2)), 0U);
  EXPECT_EQ(world.wrong_bytes(Key(2), std::span(back).subspan(2)), 0U);
}

TEST(BlockStore, WhatHasNotBegunIsGivenUpForItsPages) {
  World world;
  const auto pages = world.pages_from(0, 4);
  ASSERT_EQ(world.blocks->store(Keys{1, 2, 3, 4}, pages, world.stream), 4U);
  ASSERT_TRUE(world.blocks->order_behind_stores(pages, world.stream));
  ASSERT_TRUE(world.blocks->settle(world.backend->now_ns() + 1'000'000'000));
  const BlockCacheStats stats = world.blocks->stats();
  EXPECT_EQ(stats.stored, 2U) << "two buffers";
  EXPECT_EQ(stats.stores_given_up, 2U);
  EXPECT_EQ(stats.stores_asked, 4U);
}

TEST(BlockStore, TellsWhatIsUnderWay) {
  World world;
  EXPECT_EQ(world.blocks->storing(Keys{1, 2, 3}), 0U);
  const auto pages = world.pages_from(0, 3);
  ASSERT_EQ(world.blocks->store(Keys{1, 2, 3}, pages, world.stream), 3U);
  EXPECT_EQ(world.blocks->storing(Keys{1, 3, 4}), 2U) << "two buffers, and 3 waits for one";
  while (world.blocks->storing(Keys{1, 2, 3}) > 0) {
    world.backend->sleep_until(world.backend->now_ns() + 10'000);
    world.blocks->poll();
  }
  EXPECT_EQ(world.blocks->lookup(Keys{1, 2, 3}).blocks, 3U);
  EXPECT_EQ(world.blocks->stats().stored, 3U);
}

TEST(BlockStore, KeepsEachBlockOnce) {
  World world;
  world.keep(Keys{1, 2});
  EXPECT_EQ(world.blocks->store(Keys{1, 2, 3}, world.pages_from(0, 3), world.stream), 1U);
  EXPECT_EQ(world.blocks->store(Keys{3}, world.pages_from(0, 1), world.stream), 0U) << "it is on its way";
  ASSERT_TRUE(world.blocks->settle(world.backend->now_ns() + 1'000'000'000));
  EXPECT_EQ(world.blocks->stats().stores_known, 3U);
}

TEST(BlockStore, NobodyReadsWhatFailedOnItsWay) {
  for (const std::uint64_t number : {1U, 2U, 3U}) {
    World world;
    FaultPlan plan;
    plan.fail_copy.at = number;  // of the gather, the host's copy, the peer's
    ASSERT_TRUE(world.backend->set_faults(plan));
    world.keep(Keys{1});
    const auto pages = world.pages_from(20, 1);
    if (world.blocks->lookup(Keys{1}).blocks == 0) {
      EXPECT_EQ(world.blocks->stats().stores_refused, 1U);
      continue;
    }
    auto load = world.blocks->load(Keys{1}, pages, world.stream);
    ASSERT_TRUE(load);
    EXPECT_THAT(load->finish(), IsEmpty());
    EXPECT_EQ(world.wrong_bytes(Key(1), pages), 0U) << number;
  }
}

TEST(BlockStore, AFullCacheRefusesAndSaysSo) {
  World world({.with = [](BlockCacheConfig& config) { config.backing = Backing::spill; },
               .with_peers =
                   [](PeerCacheConfig& config) {
                     config.peer_budget_bytes = 0;
                     config.host_budget_bytes = 0;
                   }});
  world.keep(Keys{1, 2});
  EXPECT_EQ(world.blocks->stats().stores_refused, 2U);
  EXPECT_EQ(world.blocks->lookup(Keys{1}).blocks, 0U);
}

TEST(BlockStore, ErasedOnItsWayItIsNotFound) {
  World world;
  ASSERT_EQ(world.blocks->store(Keys{1}, world.pages_from(0, 1), world.stream), 1U);
  EXPECT_TRUE(world.blocks->erase(Key(1)));
  ASSERT_TRUE(world.blocks->settle(world.backend->now_ns() + 1'000'000'000));
  EXPECT_EQ(world.blocks->lookup(Keys{1}).blocks, 0U);
  EXPECT_EQ(world.cache->stats().objects, 0U);
  EXPECT_FALSE(world.blocks->erase(Key(1)));
}

TEST(BlockStore, TellsWhatHappensToBlocks) {
  World world;
  world.keep(Keys{1});
  ASSERT_EQ(world.events.size(), 1U);
  EXPECT_EQ(world.events[0].kind, BlockEvent::Kind::stored);
  EXPECT_EQ(world.events[0].key, Key(1));
  EXPECT_EQ(world.events[0].tier, Tier::peer);
  ASSERT_TRUE(world.cache->reclaim(1, 64ULL << 30, world.backend->now_ns() + 1'000'000'000));
  ASSERT_EQ(world.events.size(), 2U);
  EXPECT_EQ(world.events[1].kind, BlockEvent::Kind::moved);
  EXPECT_EQ(world.events[1].tier, Tier::host);
}

/// Blocks that are stored one behind the other lie in one segment, so what an owner takes back is whole
/// prefixes, and the others stay whole.
TEST(BlockStore, AReclaimTakesPrefixesInOnePiece) {
  World world({.layers{4, KvLayer{.heads = 8, .head_size = 128, .element_bytes = 2}},
               .with = [](BlockCacheConfig& config) { config.backing = Backing::lossy; }});
  ASSERT_EQ(world.blocks->block_bytes(), 128ULL << 10) << "16 make a segment";
  std::vector<Keys> prefixes;
  for (std::uint64_t number = 0; number < 8; ++number) {
    Keys& keys = prefixes.emplace_back();
    for (std::uint64_t block = 0; block < 8; ++block) keys.emplace_back(number * 100 + block);
    world.keep(keys);
  }
  ASSERT_TRUE(world.cache->reclaim(1, 4ULL << 20, world.backend->now_ns() + 1'000'000'000));
  std::vector<std::size_t> found;
  for (const Keys& keys : prefixes) found.push_back(world.blocks->lookup(keys).blocks);
  EXPECT_THAT(found, ::testing::Each(::testing::AnyOf(0U, 8U)));
  EXPECT_EQ(std::ranges::count(found, 8U), 4) << "half of the memory, and half of the prefixes";
}

}  // namespace
}  // namespace harvest::kv
