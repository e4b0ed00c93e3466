// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <utility>

#include "backend/forwarding_backend.hpp"
#include "kv/world.hpp"

/// Orders that are rare, and numbers that are large.
namespace harvest::kv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Keys = std::vector<Key>;

void lossy(BlockCacheConfig& config) {
  config.backing = Backing::lossy;
}

FaultPlan failing_copy(std::uint64_t number) {
  FaultPlan plan;
  plan.fail_copy.at = number;
  return plan;
}

/// Eight layers of 64 KiB of a block, so that copies take longer than starting them.
WorldOptions large_blocks() {
  WorldOptions options;
  options.layers.assign(8, KvLayer{.heads = 8, .head_size = 128});
  options.page_tokens = 16;
  return options;
}

/// Lets something happen right before an event is recorded on a stream that is none of the engine's.
class Interloper : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  Result<EventId> record_event(StreamId stream) override {
    if (stream != engine && happens) std::exchange(happens, nullptr)();
    return inner_.record_event(stream);
  }
  std::function<void()> happens{};
  StreamId engine = StreamId::none;
};

// --- what is read -----------------------------------------------------------------------------------------

TEST(BlockCorners, PagesOfACancelledLoadAreNotWrittenAgain) {
  World world;
  world.keep(Keys{1});
  ASSERT_TRUE(world.backend->set_faults(failing_copy(1)));
  const auto pages = world.pages_from(20, 1);
  auto load = world.blocks->load(Keys{1}, pages, world.stream);
  ASSERT_TRUE(load);
  ASSERT_TRUE(load->cancel(world.stream));
  world.wait_for(world.stream);
  world.fill(Key(50), pages);  // "the pages may be used for something else there"
  EXPECT_THAT(load->finish(), ElementsAre(0U));
  EXPECT_EQ(world.wrong_bytes(Key(50), pages), 0U);
}

/// The engine's copy into its page failed, and nobody but the store's event can tell.
TEST(BlockCorners, WhatFailedWorkWroteIsNotStored) {
  World world;
  const auto pages = world.pages_from(0, 1);
  const KvPart& part = world.layout.parts[0];
  std::byte* const computed = world.add_memory(part.run_bytes);
  world.fill(Key(1), pages);
  ASSERT_TRUE(world.backend->set_faults(failing_copy(1)));
  const Copy copy{part.base + pages[0] * part.page_stride_bytes, computed, part.run_bytes};
  ASSERT_TRUE(world.backend->copy(world.stream, {0, 0}, {&copy, 1}));
  ASSERT_EQ(world.blocks->store(Keys{1}, pages, world.stream), 1U);
  ASSERT_TRUE(world.blocks->settle(world.backend->now_ns() + 1'000'000'000));
  EXPECT_EQ(world.blocks->lookup(Keys{1}).blocks, 0U);
  EXPECT_EQ(world.blocks->stats().stores_refused, 1U);
}

/// While the PeerCache tells that one block's write failed, another's ends, of which it has not heard.
TEST(BlockCorners, WhatThePeerCacheHasNotHeardOfIsNotShown) {
  World* here = nullptr;
  const auto hear = [&here](const CacheEvent& event) {
    if (event.kind != CacheEvent::Kind::lost) return;
    here->backend->sleep_until(here->backend->now_ns() + 1'000'000'000);
    here->blocks->poll();
  };
  World world({.with = lossy, .with_peers = [&](PeerCacheConfig& config) { config.on_event = hear; }});
  here = &world;
  world.fill(Key(1), world.pages_from(0, 1));
  world.fill(Key(2), world.pages_from(2, 1));
  ASSERT_EQ(world.blocks->store(Keys{1, 2}, world.pages_from(0, 2), world.stream), 2U);
  world.backend->sleep_until(world.backend->now_ns() + 1'000'000'000);
  FaultPlan plan;
  plan.fail_copy.rate = 1;
  plan.slow_copy.at = 2;
  plan.slow_copy_factor = 1e6;
  ASSERT_TRUE(world.backend->set_faults(plan));
  for (int i = 0; i < 1000; ++i) {
    world.blocks->poll();
    ASSERT_EQ(world.blocks->lookup(Keys{2}).blocks, 0U) << "its write failed";
    world.backend->sleep_until(world.backend->now_ns() + 10'000);
  }
  EXPECT_EQ(world.blocks->stats().stores_refused, 2U);
}

/// A block was fetched again after its copy failed. When it is erased the PeerCache asks the streams that
/// read it, and a failed gather's own event must still tell of the failure.
TEST(BlockCorners, NobodyTakesTheNewsThatAGatherFailed) {
  Interloper* interloper = nullptr;
  World world({.between = [&](SimulatedBackend& backend) {
    auto made = std::make_unique<Interloper>(backend);
    interloper = made.get();
    return made;
  }});
  world.keep(Keys{1});
  ASSERT_TRUE(world.backend->set_faults(failing_copy(1)));
  auto load = world.blocks->load(Keys{1}, world.pages_from(20, 1), world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), IsEmpty());
  EXPECT_EQ(world.blocks->stats().retried, 1U);
  *load = BlockLoad();

  const auto pages = world.pages_from(0, 1);
  world.fill(Key(2), pages);
  ASSERT_TRUE(world.backend->set_faults(failing_copy(1)));
  interloper->engine = world.stream;
  interloper->happens = [&] { EXPECT_TRUE(world.cache->erase(world.blocks->object_key(Key(1)))); };
  ASSERT_EQ(world.blocks->store(Keys{2}, pages, world.stream), 1U);
  ASSERT_TRUE(world.blocks->settle(world.backend->now_ns() + 1'000'000'000));
  EXPECT_EQ(world.blocks->lookup(Keys{2}).blocks, 0U);
  EXPECT_EQ(world.blocks->stats().stores_refused, 1U);
}

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

TEST(BlockCorners, FinishDoesNotWaitForLoadsThatBeganLater) {
  World world(large_blocks());
  const Keys keys{1, 2, 3, 4, 5, 6, 7, 8};
  world.keep(keys);
  auto first = world.blocks->load(std::span(keys).first(1), world.pages_from(20, 1), world.stream);
  auto second = world.blocks->load(keys, world.pages_from(22, 8), world.stream);
  ASSERT_TRUE(first && second);
  const TimeNs begin = world.backend->now_ns();
  EXPECT_THAT(first->finish(), IsEmpty());
  const TimeNs first_took = world.backend->now_ns() - begin;
  EXPECT_THAT(second->finish(), IsEmpty());
  EXPECT_LT(first_took * 3, (world.backend->now_ns() - begin) * 2);
}

/// A block that has to be fetched anew needs a buffer too.
TEST(BlockCorners, FinishDoesNotWaitForStoresThatHaveNotBegun) {
  World world({.with = [](BlockCacheConfig& config) { config.store_buffers = 1; }});
  world.keep(Keys{1});
  ASSERT_EQ(world.blocks->store(Keys{2, 3, 4, 5, 6, 7, 8, 9}, world.pages_from(0, 8), world.stream), 8U);
  ASSERT_TRUE(world.backend->set_faults(failing_copy(1)));
  auto load = world.blocks->load(Keys{1}, world.pages_from(20, 1), world.stream);
  ASSERT_TRUE(load);
  EXPECT_THAT(load->finish(), IsEmpty());
  EXPECT_EQ(world.blocks->stats().retried, 1U);
  EXPECT_LE(world.blocks->stats().stored, 3U) << "block 1, the store that had begun, and one more at most";
  ASSERT_TRUE(world.blocks->settle(world.backend->now_ns() + 1'000'000'000));
  EXPECT_EQ(world.blocks->stats().stored, 9U);
}

// --- what is told -----------------------------------------------------------------------------------------

TEST(BlockCorners, BlocksCountAsLoadedWhereTheyCameFrom) {
  World world;
  const Keys keys{1, 2};
  world.keep(keys);
  {
    auto load = world.blocks->load(keys, world.pages_from(20, 2), world.stream);
    ASSERT_TRUE(load);
    ASSERT_TRUE(world.backend->lose_device(1));
    EXPECT_THAT(load->finish(), IsEmpty());
  }
  EXPECT_THAT(world.blocks->stats().loaded, ElementsAre(0U, 0U, 2U));
}

TEST(BlockCorners, WhatWasCancelledDoesNotCountAsLoaded) {
  WorldOptions options = large_blocks();
  options.with = [](BlockCacheConfig& config) {
    config.group_layers = 1;
    config.ahead_ns = 1;
  };
  options.with_peers = [](PeerCacheConfig& config) { config.peer_budget_bytes = 0; };
  World world(options);
  world.keep(Keys{1, 2});
  {
    auto load = world.blocks->load(Keys{1, 2}, world.pages_from(20, 2), world.stream);
    ASSERT_TRUE(load);
  }
  EXPECT_THAT(world.blocks->stats().loaded, ElementsAre(0U, 0U, 0U));
  EXPECT_EQ(world.blocks->stats().recompute, 2U);
}

/// Who hears that the first of two blocks is stored takes both away.
TEST(BlockCorners, EventsAreToldInTheOrderOfWhatHappened) {
  World* here = nullptr;
  std::vector<BlockEvent> told;
  World world({.with = [&](BlockCacheConfig& config) {
    lossy(config);
    config.on_event = [&](const BlockEvent& event) {
      told.push_back(event);
      if (told.size() == 1)
        static_cast<void>(here->cache->reclaim(1, 1ULL << 30, here->backend->now_ns() + 1'000'000'000));
    };
  }});
  here = &world;
  world.fill(Key(1), world.pages_from(0, 1));
  world.fill(Key(2), world.pages_from(2, 1));
  ASSERT_EQ(world.blocks->store(Keys{1, 2}, world.pages_from(0, 2), world.stream), 2U);
  for (int i = 0; i < 3; ++i) {  // both are found to be written in the same poll
    world.backend->sleep_until(world.backend->now_ns() + 1'000'000'000);
    world.blocks->poll();
  }
  ASSERT_EQ(told.size(), 4U);
  for (const std::uint64_t number : {1U, 2U}) {
    const auto last = std::ranges::find(told.rbegin(), told.rend(), Key(number), &BlockEvent::key);
    EXPECT_EQ(last->kind, BlockEvent::Kind::removed) << "of block " << number << ", which is gone";
  }
}

TEST(BlockCorners, ABlockThatIsStoredAnewWasToldAsRemoved) {
  World world({.with = lossy, .with_peers = [](PeerCacheConfig& config) {
                 config.on_event = nullptr;
                 config.pressure.regrow_delay_ns = 0;
               }});
  world.keep(Keys{1});
  ASSERT_TRUE(world.cache->reclaim(1, 1ULL << 30, world.backend->now_ns() + 1'000'000'000));
  world.keep(Keys{1});
  ASSERT_EQ(world.events.size(), 3U);
  EXPECT_EQ(world.events[1].kind, BlockEvent::Kind::removed);
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

TEST(BlockCorners, PagesOfAPartDoNotOverlap) {
  World world;
  const auto message = [&](std::size_t number, const std::function<void(KvPart&)>& change) {
    KvLayout layout = world.layout;
    change(layout.parts[number]);
    const Status status = layout.validate();
    return status ? std::string() : status.error().message;
  };
  EXPECT_THAT(message(1, [](KvPart& part) { part.page_stride_bytes = 0; }),
              HasSubstr("the pages of part 1 overlap: one every 0 bytes, with 1 runs of 256 bytes"));
  EXPECT_THAT(message(0, [](KvPart& part) { part.page_stride_bytes -= 1; }), HasSubstr("overlap"));
  EXPECT_THAT(message(0, [](KvPart& part) { part.page_stride_bytes = UINT64_MAX / 8; }),
              HasSubstr("beyond the last address"));
  const auto halves = [](KvPart& part) { part.runs = 2, part.run_bytes /= 2; };
  EXPECT_THAT(message(0, [&](KvPart& part) { halves(part), part.run_stride_bytes = part.run_bytes - 1; }),
              HasSubstr("overlap"));
  EXPECT_EQ(message(0, [&](KvPart& part) { halves(part), part.run_stride_bytes = part.run_bytes; }), "");
  EXPECT_EQ(message(0,
                    [&](KvPart& part) {
                      halves(part);
                      part.page_stride_bytes = part.run_bytes;
                      part.run_stride_bytes = part.run_bytes * world.layout.pages;
                    }),
            "");
}

}  // namespace
}  // namespace harvest::kv
