// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include "kv/world.hpp"

namespace harvest::kv {
namespace {

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
