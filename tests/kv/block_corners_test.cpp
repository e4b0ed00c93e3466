// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include "kv/world.hpp"

/// Orders that are rare, and numbers that are large.
namespace harvest::kv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Keys = std::vector<Key>;

// --- what is waited for -----------------------------------------------------------------------------------

TEST(BlockCorners, WithNothingGivenAheadALoadStillGetsDone) {
  World world({.with = [](BlockCacheConfig& config) { config.ahead_ns = 0; },
               .with_peers = [](PeerCacheConfig& config) { config.peer_budget_bytes = 0; }});
  world.keep(Keys{1, 2});
  auto load = world.blocks->load(Keys{1, 2}, world.pages_from(20, 2), world.stream);
  ASSERT_TRUE(load);
  for (int i = 0; i < 1000 && !load->done(); ++i) {
    world.blocks->poll();
    world.backend->sleep_until(world.backend->now_ns() + 10'000);
  }
  EXPECT_TRUE(load->done());
}

// --- large numbers ----------------------------------------------------------------------------------------

TEST(BlockCorners, TensorsOfManyTokensHaveTheirSize) {
  const std::vector<KvLayer> small{KvLayer{.heads = 1, .head_size = 1, .element_bytes = 1, .parts = 1}};
  const auto bytes = KvLayout::tensor_bytes(KvArrangement::layer_first, small, 65536, 65536);
  ASSERT_TRUE(bytes);
  EXPECT_THAT(*bytes, ElementsAre(1ULL << 32));
}

TEST(BlockCorners, ABlockHasNoMoreTokensThanCanBeCounted) {
  World world;
  const std::vector<KvLayer> small{KvLayer{.heads = 1, .head_size = 1, .element_bytes = 1, .parts = 1}};
  const KvTensor tensor{world.layout.parts[0].base, 65536};
  BlockCacheConfig config;
  config.layout = *KvLayout::describe(KvArrangement::layer_first, small, 65536, 1, {&tensor, 1});
  config.block_pages = 65536;
  const auto made = BlockCache::create(*world.cache, config);
  ASSERT_FALSE(made);
  EXPECT_THAT(made.error().message, HasSubstr("block_pages is 65536, the limits are 0 and 65535"));
}

TEST(BlockCorners, RecomputingTakesForeverAtMost) {
  WorldOptions options;
  options.layers.assign(1, KvLayer{.heads = 1, .head_size = 1, .element_bytes = 1});
  options.page_tokens = 8192;
  options.with = [](BlockCacheConfig& config) { config.recompute_ns_per_token = 1e15; };
  World world(options);
  world.keep(Keys{1, 2});
  EXPECT_EQ(world.blocks->lookup(Keys{1, 2}).recompute_ns, kNever);
}

}  // namespace
}  // namespace harvest::kv
