// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include "kv/world.hpp"

namespace harvest::kv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Keys = std::vector<Key>;

template <typename Value>
std::string message_of(const Result<Value>& result) {
  return result ? "" : result.error().message;
}

// --- looking up -------------------------------------------------------------------------------------------

TEST(BlockLookup, FindsTheLongestPrefix) {
  World world;
  world.keep(Keys{1, 2, 3, 5});
  const PrefixMatch match = world.blocks->lookup(Keys{1, 2, 3, 4, 5});
  EXPECT_EQ(match.blocks, 3U) << "block 5 hangs on a block that is not there";
  EXPECT_EQ(match.tiers.size(), 3U);
  EXPECT_EQ(world.blocks->lookup(Keys{4, 1}).blocks, 0U);
  EXPECT_EQ(world.blocks->lookup({}).blocks, 0U);
  const BlockCacheStats stats = world.blocks->stats();
  EXPECT_EQ(stats.lookups, 3U);
  EXPECT_EQ(stats.looked_up, 7U);
  EXPECT_EQ(stats.not_found, 4U);
  EXPECT_EQ(stats.found[1] + stats.found[2], 3U);
}

TEST(BlockLookup, KnowsTheEnginesOwnPages) {
  World world;
  world.keep(Keys{1, 2});
  const auto pages = world.pages_from(10, 1);
  ASSERT_TRUE(world.blocks->note_local(Keys{1}, pages));
  PrefixMatch match = world.blocks->lookup(Keys{1, 2});
  ASSERT_EQ(match.blocks, 2U);
  EXPECT_EQ(match.tiers[0], Tier::local);
  EXPECT_NE(match.tiers[1], Tier::local);
  EXPECT_EQ(match.bytes[0], 0U);
  EXPECT_EQ(match.bytes[1] + match.bytes[2], world.blocks->block_bytes());
  EXPECT_EQ(world.blocks->local_pages(Key(1)), pages);
  world.blocks->forget_local(Keys{1});
  EXPECT_NE(world.blocks->locate(Key(1)), Tier::local);
  EXPECT_THAT(world.blocks->local_pages(Key(1)), IsEmpty());
}

TEST(BlockLookup, SaysWhatLoadingAndRecomputingTake) {
  World world({.with = [](BlockCacheConfig& config) { config.recompute_ns_per_token = 1000; }});
  world.keep(Keys{1, 2, 3});
  const PrefixMatch match = world.blocks->lookup(Keys{1, 2, 3});
  EXPECT_EQ(match.recompute_ns, 3 * 8 * 1000);
  EXPECT_GT(match.load_ns, 0);
  EXPECT_LE(match.first_layers_ns, match.load_ns);
  const TimeNs begin = world.backend->now_ns();
  auto load = world.blocks->load(Keys{1, 2, 3}, world.pages_from(20, 3), world.stream);
  ASSERT_TRUE(load);
  load->finish();
  const auto took = static_cast<double>(world.backend->now_ns() - begin);
  EXPECT_NEAR(static_cast<double>(match.load_ns), took, 0.7 * took) << "an estimate, not a guess";
}

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

// --- what cannot be meant ---------------------------------------------------------------------------------

TEST(BlockCacheErrors, NameTheValueAndTheLimit) {
  World world;
  const StreamId theirs = *world.backend->create_stream(1);
  const auto load = [&](Keys keys, std::vector<std::uint32_t> pages, StreamId stream) {
    return message_of(world.blocks->load(keys, pages, stream));
  };
  EXPECT_THAT(load({1}, {0}, world.stream), HasSubstr("1 pages for 1 blocks of 2; it must be 2"));
  EXPECT_THAT(load({1}, {0, 64}, world.stream), HasSubstr("page 64; there are pages 0 to 63"));
  EXPECT_THAT(load({1}, {5, 5}, world.stream), HasSubstr("page 5 is named twice"));
  EXPECT_THAT(load({1}, {0, 1}, theirs), HasSubstr("is of device 1, the consumer is 0"));
  EXPECT_THAT(load({1}, {0, 1}, StreamId{4711}), HasSubstr("there is no stream 4711"));
  EXPECT_THAT(message_of(world.blocks->store(Keys{1}, std::vector<std::uint32_t>{0}, world.stream)),
              HasSubstr("it must be 2"));
  EXPECT_FALSE(world.blocks->order_behind_stores(std::vector<std::uint32_t>{0}, StreamId::none));
  EXPECT_FALSE(world.blocks->note_local(Keys{1}, std::vector<std::uint32_t>{0}));
  EXPECT_FALSE(world.blocks->erase(Key(1)));
  auto nothing = world.blocks->load({}, {}, world.stream);
  ASSERT_TRUE(nothing);
  EXPECT_THAT(nothing->finish(), IsEmpty());
  EXPECT_THAT(message_of(nothing->order_behind(4, world.stream)),
              HasSubstr("layer 4; the layout has layers 0 to 3"));
  EXPECT_FALSE(nothing->order_behind(0, theirs));
  static_cast<void>(world.backend->destroy_stream(theirs));
}

TEST(BlockCacheErrors, OfConfigurations) {
  World world;
  const auto of = [&](const std::function<void(BlockCacheConfig&)>& change) {
    BlockCacheConfig config;
    config.layout = world.layout;
    change(config);
    return message_of(BlockCache::create(*world.cache, config));
  };
  EXPECT_THAT(of([](auto& c) { c.layout.pages = 0; }), HasSubstr("pages is 0"));
  EXPECT_THAT(of([](auto& c) { c.block_pages = UINT32_MAX; }), HasSubstr("block_pages is 4294967295"));
  EXPECT_THAT(of([](auto& c) { c.backing = Backing::external_host; }), HasSubstr("backing is external_host"));
  EXPECT_THAT(of([](auto& c) { c.group_layers = 5; }),
              HasSubstr("group_layers is 5, the limits are 0 and 4"));
  EXPECT_THAT(of([](auto& c) { c.store_buffers = 0; }), HasSubstr("store_buffers is 0"));
  EXPECT_THAT(of([](auto& c) { c.ahead_ns = -1; }), HasSubstr("ahead_ns is -1"));
  EXPECT_THAT(of([](auto& c) { c.recompute_ns_per_token = -1; }), HasSubstr("recompute_ns_per_token is -1"));
  PeerCacheConfig local;
  local.local_budget_bytes = 4ULL << 20;
  auto with_local = PeerCache::create(*world.backend, local);
  ASSERT_TRUE(with_local);
  BlockCacheConfig config;
  config.layout = world.layout;
  EXPECT_THAT(message_of(BlockCache::create(**with_local, config)), HasSubstr("local budget of 4194304"));
}

TEST(BlockCacheErrors, AMovedFromLoadIsEmpty) {
  World world;
  world.keep(Keys{1});
  auto load = world.blocks->load(Keys{1}, world.pages_from(20, 1), world.stream);
  ASSERT_TRUE(load);
  BlockLoad other = std::move(*load);
  EXPECT_TRUE(load->done());               // NOLINT: that is what is asked
  EXPECT_THAT(load->finish(), IsEmpty());  // NOLINT
  EXPECT_TRUE(load->cancel(world.stream));
  EXPECT_THAT(other.finish(), IsEmpty());
}

}  // namespace
}  // namespace harvest::kv
