// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include "kv/world.hpp"

/// Blocks on their way into pages: in which order, and what fails.
namespace harvest::kv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Keys = std::vector<Key>;

// --- loading ----------------------------------------------------------------------------------------------

TEST(BlockLoadTest, WorkBehindALayerSeesItsBytes) {
  World world;
  world.keep(Keys{1, 2});
  const auto pages = world.pages_from(20, 2);
  const StreamId compute = world.add_stream();
  auto load = world.blocks->load(Keys{1, 2}, pages, world.stream);
  ASSERT_TRUE(load);
  // "Attention" over layer 2: a copy of its keys on another stream, given before anything has arrived.
  const KvPart& part = world.layout.parts[4];
  std::byte* const seen = world.add_memory(part.run_bytes);
  ASSERT_TRUE(load->order_behind(2, compute));
  const Copy copy{seen, part.base + pages[0] * part.page_stride_bytes, part.run_bytes};
  ASSERT_TRUE(world.backend->copy(compute, {0, 0}, {&copy, 1}));
  world.wait_for(compute);
  for (std::uint64_t i = 0; i < part.run_bytes; ++i) ASSERT_EQ(seen[i], World::byte_of(Key(1), 0, 4, i)) << i;
  EXPECT_THAT(load->finish(), IsEmpty());
}

TEST(BlockLoadTest, WaitsForWorkThatStillUsesThePages) {
  World world;
  world.keep(Keys{1});
  const auto pages = world.pages_from(20, 1);
  world.fill(Key(99), pages);
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 5'000'000));
  const KvPart& part = world.layout.parts[0];
  std::byte* const seen = world.add_memory(part.run_bytes);
  const Copy copy{seen, part.base + pages[0] * part.page_stride_bytes, part.run_bytes};
  ASSERT_TRUE(world.backend->copy(world.stream, {0, 0}, {&copy, 1}));
  auto load = world.blocks->load(Keys{1}, pages, world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), IsEmpty());
  world.wait_for(world.stream);
  for (std::uint64_t i = 0; i < part.run_bytes; ++i)
    ASSERT_EQ(seen[i], World::byte_of(Key(99), 0, 0, i)) << i;
  EXPECT_EQ(world.wrong_bytes(Key(1), pages), 0U);
}

TEST(BlockLoadTest, FirstLayersComeFirst) {
  WorldOptions options;
  options.layers.assign(8, KvLayer{.heads = 8, .head_size = 128});
  options.page_tokens = 16;
  options.with = [](BlockCacheConfig& config) { config.group_layers = 1; };
  World world(options);
  const Keys keys{1, 2, 3, 4, 5, 6, 7, 8};
  world.keep(keys);
  auto load = world.blocks->load(keys, world.pages_from(20, 8), world.stream);
  ASSERT_TRUE(load);
  const TimeNs begin = world.backend->now_ns();
  std::vector<TimeNs> times;
  for (std::uint32_t layer = 0; layer < 8; ++layer) {
    const StreamId compute = world.add_stream();
    ASSERT_TRUE(load->order_behind(layer, compute));
    world.wait_for(compute);
    times.push_back(world.backend->now_ns() - begin);
  }
  EXPECT_TRUE(std::ranges::is_sorted(times));
  EXPECT_LT(times.front() * 3, times.back()) << "layer 0 is not held up by layer 7";
}

TEST(BlockLoadTest, TellsExactlyTheBlocksThatAreGone) {
  World world;
  world.keep(Keys{1, 2, 3, 4});
  ASSERT_TRUE(world.blocks->erase(Key(3)));
  auto load = world.blocks->load(Keys{1, 2, 3, 4}, world.pages_from(20, 4), world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), ElementsAre(2U));
  for (const std::uint32_t i : {0U, 1U, 3U})
    EXPECT_EQ(world.wrong_bytes(Key(i + 1), world.pages_from(20 + i * 2, 1)), 0U) << i;
  *load = BlockLoad();
  EXPECT_EQ(world.blocks->stats().recompute, 1U);
}

TEST(BlockLoadTest, OfAWindowOnlyWhatItReachesBackOn) {
  WorldOptions options;
  options.layers = {KvLayer{.heads = 2, .head_size = 16},
                    KvLayer{.heads = 2, .head_size = 16, .window_tokens = 9}};
  World world(options);
  const Keys keys{1, 2, 3, 4};
  world.keep(keys);
  const auto pages = world.pages_from(20, 4);
  const std::uint64_t all = 4 * world.blocks->block_bytes();
  const PrefixMatch match = world.blocks->lookup(keys);
  EXPECT_EQ(match.bytes[1] + match.bytes[2], all * 6 / 8) << "9 tokens back are two blocks of 8";
  auto load = world.blocks->load(keys, pages, world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), IsEmpty());
  const auto bytes = load->bytes();
  EXPECT_EQ(bytes[1] + bytes[2], all * 6 / 8);
  for (std::size_t i = 0; i < 4; ++i) {
    const auto mine = std::span(pages).subspan(i * 2, 2);
    EXPECT_EQ(world.wrong_bytes(keys[i], mine, 0, 0), 0U);
    EXPECT_EQ(world.wrong_bytes(keys[i], mine, 1, 1) == 0, i >= 2) << i;
  }
}

TEST(BlockLoadTest, CancelStopsWhatTheHostHasNotSent) {
  WorldOptions options;
  options.layers.assign(8, KvLayer{.heads = 8, .head_size = 128});
  options.page_tokens = 16;
  options.with = [](BlockCacheConfig& config) {
    config.group_layers = 1;
    config.ahead_ns = 1;
  };
  options.with_peers = [](PeerCacheConfig& config) { config.peer_budget_bytes = 0; };
  World world(options);
  const Keys keys{1, 2, 3, 4, 5, 6, 7, 8};
  world.keep(keys);
  const auto pages = world.pages_from(20, 8);
  auto load = world.blocks->load(keys, pages, world.stream);
  ASSERT_TRUE(load);
  const StreamId other = world.add_stream();
  ASSERT_TRUE(load->cancel(other));
  // The pages are free behind what was under way.
  world.wait_for(other);
  world.fill(Key(50), pages);
  EXPECT_EQ(load->finish().size(), 8U);
  EXPECT_EQ(world.wrong_bytes(Key(50), std::span(pages).first(2)), 0U);
  EXPECT_LT(load->bytes()[2], world.blocks->block_bytes());
}

TEST(BlockLoadTest, WithoutPollsALoadStillCompletes) {
  World world({.with = [](BlockCacheConfig& config) { config.ahead_ns = 0; }});
  const Keys keys{1, 2, 3, 4};
  world.keep(keys);
  auto load = world.blocks->load(keys, world.pages_from(20, 4), world.stream);
  ASSERT_TRUE(load);
  const StreamId compute = world.add_stream();
  for (std::uint32_t layer = 0; layer < 4; ++layer) ASSERT_TRUE(load->order_behind(layer, compute));
  world.wait_for(compute);
  EXPECT_TRUE(load->done());
  EXPECT_THAT(load->finish(), IsEmpty());
}

// --- copies that fail -------------------------------------------------------------------------------------

TEST(BlockLoadFaults, WhatFailsInFlightComesFromElsewhere) {
  World world;
  const Keys keys{1, 2, 3};
  world.keep(keys);
  FaultPlan plan;
  plan.fail_copy.at = 1;
  ASSERT_TRUE(world.backend->set_faults(plan));
  const auto pages = world.pages_from(20, 3);
  auto load = world.blocks->load(keys, pages, world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), IsEmpty());
  EXPECT_EQ(world.blocks->stats().retried, 1U);
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_EQ(world.wrong_bytes(keys[i], std::span(pages).subspan(i * 2, 2)), 0U) << i;
}

TEST(BlockLoadFaults, WorkThatMayHaveReadIsToldEvenIfTheBytesCouldBeHad) {
  World world;
  world.keep(Keys{1, 2, 3});
  FaultPlan plan;
  plan.fail_copy.at = 1;
  ASSERT_TRUE(world.backend->set_faults(plan));
  auto load = world.blocks->load(Keys{1, 2, 3}, world.pages_from(20, 3), world.stream);
  ASSERT_TRUE(load);
  ASSERT_TRUE(load->order_behind(0, world.add_stream()));
  EXPECT_EQ(load->finish().size(), 1U);
}

TEST(BlockLoadFaults, RefusedCopiesAreAskedForElsewhereToo) {
  World world;
  world.keep(Keys{1, 2});
  FaultPlan plan;
  plan.refuse_copy.at = 2;
  ASSERT_TRUE(world.backend->set_faults(plan));
  const auto pages = world.pages_from(20, 2);
  auto load = world.blocks->load(Keys{1, 2}, pages, world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), IsEmpty());
  EXPECT_EQ(world.wrong_bytes(Key(1), std::span(pages).first(2)), 0U);
}

TEST(BlockLoadFaults, ALostPeerIsNoLossWithHostMemory) {
  World world;
  const Keys keys{1, 2, 3, 4};
  world.keep(keys);
  const auto pages = world.pages_from(20, 4);
  auto load = world.blocks->load(keys, pages, world.stream);
  ASSERT_TRUE(load);
  ASSERT_TRUE(world.backend->lose_device(1));
  EXPECT_THAT(load->finish(), IsEmpty());
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_EQ(world.wrong_bytes(keys[i], std::span(pages).subspan(i * 2, 2)), 0U) << i;
}

TEST(BlockLoadFaults, LossyBlocksThatAnOwnerTookAreRecomputed) {
  World world({.with = [](BlockCacheConfig& config) { config.backing = Backing::lossy; }});
  world.keep(Keys{1, 2});
  EXPECT_EQ(world.blocks->locate(Key(1)), Tier::peer);
  ASSERT_TRUE(world.cache->reclaim(1, 64ULL << 30, world.backend->now_ns() + 1'000'000'000));
  EXPECT_EQ(world.blocks->lookup(Keys{1, 2}).blocks, 0U);
  auto load = world.blocks->load(Keys{1, 2}, world.pages_from(20, 2), world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), ElementsAre(0U, 1U));
  ASSERT_EQ(world.events.size(), 4U);
  EXPECT_EQ(world.events[3].kind, BlockEvent::Kind::removed);
}

TEST(BlockLoadFaults, AReclaimWaitsForCopiesAndNotForTheLoadsEnd) {
  World world;
  world.keep(Keys{1, 2});
  const auto pages = world.pages_from(20, 2);
  auto load = world.blocks->load(Keys{1, 2}, pages, world.stream);
  ASSERT_TRUE(load);
  // The load is neither finished nor forgotten.
  const auto report = world.cache->reclaim(1, 64ULL << 30, world.backend->now_ns() + 1'000'000'000);
  ASSERT_TRUE(report);
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(report->late_bytes, 0U);
  EXPECT_EQ(world.backend->mapped_bytes(1), 0U);
  EXPECT_THAT(load->finish(), IsEmpty());
  EXPECT_EQ(world.wrong_bytes(Key(1), std::span(pages).first(2)), 0U);
}

TEST(BlockLoadFaults, APeersMemoryDoesNotWaitForTheHostsCopies) {
  WorldOptions options;
  options.layers.assign(8, KvLayer{.heads = 8, .head_size = 128});
  options.page_tokens = 16;
  options.with_peers = [](PeerCacheConfig& config) { config.peer_budget_bytes = 2ULL << 20; };
  World world(options);
  const Keys keys{1, 2, 3, 4, 5, 6, 7, 8};
  world.keep(keys);
  const auto match = world.blocks->lookup(keys);
  ASSERT_GT(match.bytes[1], 0U);
  ASSERT_GT(match.bytes[2], match.bytes[1]);
  const TimeNs begin = world.backend->now_ns();
  auto load = world.blocks->load(keys, world.pages_from(20, 8), world.stream);
  ASSERT_TRUE(load);
  const auto report = world.cache->reclaim(1, 1ULL << 30, begin + 1'000'000'000);
  ASSERT_TRUE(report);
  const TimeNs returned = world.backend->now_ns();
  EXPECT_THAT(load->finish(), IsEmpty());
  EXPECT_LT(returned - begin, (world.backend->now_ns() - begin) / 2) << "the host's wire was still busy then";
}

/// The PeerCache lost a block, and nobody told.
TEST(BlockLoadFaults, WhatIsStoredAnewIsNotReadBeforeItIsWritten) {
  World world({.with = [](BlockCacheConfig& config) { config.backing = Backing::lossy; },
               .with_peers =
                   [](PeerCacheConfig& config) {
                     config.on_event = nullptr;
                     config.pressure.regrow_delay_ns = 0;
                   }});
  world.keep(Keys{1});
  ASSERT_TRUE(world.cache->reclaim(1, 1ULL << 30, world.backend->now_ns() + 1'000'000'000));
  const auto pages = world.pages_from(0, 1), back = world.pages_from(20, 1);
  world.fill(Key(1), pages);
  FaultPlan plan;
  plan.slow_copy.rate = 1;
  plan.slow_copy_factor = 1000;
  ASSERT_TRUE(world.backend->set_faults(plan));
  ASSERT_EQ(world.blocks->store(Keys{1}, pages, world.stream), 1U);
  for (int i = 0; i < 200; ++i) {
    world.blocks->poll();
    auto load = world.blocks->load(Keys{1}, back, world.stream);
    ASSERT_TRUE(load);
    if (load->finish().empty()) {
      EXPECT_EQ(world.wrong_bytes(Key(1), back), 0U) << "after " << i;
    }
    world.wipe(back);
    world.backend->sleep_until(world.backend->now_ns() + 10'000);
  }
}

}  // namespace
}  // namespace harvest::kv
