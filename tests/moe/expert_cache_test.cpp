// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <set>

#include "core/allocation_count.hpp"
#include "moe/world.hpp"

namespace harvest::moe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Experts = std::vector<std::uint32_t>;

TEST(ExpertCache, DeliversEveryExpertWhole) {
  World world;
  for (int pass = 0; pass < 3; ++pass)
    for (std::uint32_t layer = 0; layer < world.model.layers; ++layer)
      EXPECT_EQ(world.step(layer, world.all_experts()).size(), 8U);
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_TRUE(world.experts->confirm());
}

TEST(ExpertCache, WhatIsHereMovesNothingAndComesFirst) {
  World world;
  world.step(1, {2, 5});
  world.check_reads();
  const auto came = world.step(1, {7, 5, 2, 5});
  ASSERT_EQ(came.size(), 3U);
  EXPECT_EQ(came[0].from, Tier::local);
  EXPECT_EQ(came[1].from, Tier::local);
  EXPECT_EQ(came[2].expert, 7U);
  EXPECT_EQ(came[2].from, Tier::host);
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_EQ(world.experts->locate(1, 5), Tier::local);
  EXPECT_EQ(world.experts->locate(1, 6), Tier::host);
  const ExpertCacheStats stats = world.experts->stats();
  EXPECT_EQ(stats.experts(Phase::decode, Tier::local), 2U);
  EXPECT_EQ(stats.experts(Phase::decode, Tier::host), 3U);
  EXPECT_EQ(stats.demand_bytes[static_cast<std::size_t>(Tier::host)], 3 * world.model.expert_bytes());
}

/// Of what peers have too the host brings its share, to the byte, however large the pieces.
TEST(ExpertCache, BothWiresAreDoneAtTheSameTime) {
  WorldOptions options;
  options.layers = 1;
  options.tensors = {{"all", 8ULL << 20}};
  options.slots = 8;
  options.with = [](ExpertCacheConfig& config) { config.piece_bytes = 4ULL << 20; };
  options.with_peers = [](PeerCacheConfig& config) {
    config.segment_min_bytes = config.segment_max_bytes = 32ULL << 20;
    config.background_bytes = 256ULL << 20;
  };
  World world(options);
  world.pass(2'000'000'000);
  for (std::uint32_t expert = 0; expert < 8; ++expert)
    ASSERT_EQ(world.experts->locate(0, expert), Tier::peer) << expert;
  for (const std::uint32_t many : {1U, 3U, 4U}) {
    std::vector<std::uint32_t> needed;
    const ExpertCacheStats before = world.experts->stats();
    for (std::uint32_t expert = 0; expert < 8 && needed.size() < many; ++expert)
      if (world.experts->locate(0, expert) == Tier::peer) needed.push_back(expert);
    EXPECT_EQ(world.step(0, needed).size(), many);
    EXPECT_EQ(world.check_reads(), 0U);
    const ExpertCacheStats after = world.experts->stats();
    const auto moved = [&](Tier tier) {
      const auto at = static_cast<std::size_t>(tier);
      return static_cast<double>(after.demand_bytes[at] - before.demand_bytes[at]);
    };
    const auto bandwidth = [&](DeviceId from) {
      return world.cache->topology().path(from, 0)->link.bandwidth_bytes_per_s;
    };
    EXPECT_NEAR(moved(Tier::host) / (moved(Tier::host) + moved(Tier::peer)),
                bandwidth(kHost) / (bandwidth(kHost) + bandwidth(1)), .01 + .01 * many)
        << many;
  }
}

TEST(ExpertCache, SlotsKeepTheirAddresses) {
  World world({.slots = 3});
  for (std::uint32_t expert = 0; expert < 8; ++expert)
    for (const ReadyExpert& ready : world.step(0, {expert}))
      EXPECT_EQ(ready.address, world.experts->slot_address(ready.slot));
  EXPECT_EQ(world.check_reads(), 0U);
}

TEST(ExpertCache, AStepOfMoreExpertsThanSlotsGoesThroughThem) {
  for (const std::uint32_t slots : {2U, 3U, 7U}) {
    World world({.slots = slots});
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      std::set<std::uint32_t> came;
      for (const ReadyExpert& ready : world.step(layer, world.all_experts())) {
        came.insert(ready.expert);
        ASSERT_TRUE(world.backend->submit_kernel(world.stream, 50'000));
      }
      EXPECT_EQ(came.size(), 8U);
    }
    EXPECT_EQ(world.check_reads(), 0U) << slots << " slots";
  }
}

TEST(ExpertCache, ATableOfMoreExpertsThanSlotsIsRefused) {
  World world({.slots = 3});
  auto step = world.experts->begin_layer(0, world.all_experts(), world.stream);
  ASSERT_TRUE(step);
  const auto table = step->all();
  ASSERT_FALSE(table);
  EXPECT_EQ(table.error().code, ErrorCode::out_of_memory);
  EXPECT_THAT(table.error().message, AllOf(HasSubstr("8 experts"), HasSubstr("3")));
}

TEST(ExpertCache, ATableHoldsTheWholeStep) {
  World world;
  auto step = world.experts->begin_layer(2, world.all_experts(), world.stream);
  ASSERT_TRUE(step);
  const auto table = step->all();
  ASSERT_TRUE(table);
  EXPECT_EQ(table->size(), 8U);
  for (const ReadyExpert& ready : *table) world.read(2, ready, world.stream);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  EXPECT_EQ(world.check_reads(), 0U);
}

TEST(ExpertCache, TwoStepsAtOnceShareWhatTheyShare) {
  World world({.slots = 6});
  const StreamId other = world.add_stream();
  auto one = world.experts->begin_layer(0, Experts{0, 1, 2}, world.stream);
  auto two = world.experts->begin_layer(0, Experts{1, 2, 3}, other);
  ASSERT_TRUE(one);
  ASSERT_TRUE(two);
  while (const ReadyExpert* ready = one->next()) world.read(0, *ready, world.stream);
  while (const ReadyExpert* ready = two->next()) world.read(0, *ready, other);
  EXPECT_TRUE(world.experts->end_layer(std::move(*one)));
  EXPECT_TRUE(world.experts->end_layer(std::move(*two)));
  for (std::uint32_t layer = 1; layer < 4; ++layer) world.step(layer, {0, 1, 2, 3, 4, 5});
  EXPECT_EQ(world.check_reads(), 0U);
}

TEST(ExpertCache, SlotsInOpenStepsAreNotTaken) {
  World world({.slots = 2});
  auto open = world.experts->begin_layer(0, Experts{0, 1}, world.stream);
  ASSERT_TRUE(open);
  const auto refused = world.experts->begin_layer(1, Experts{0}, world.stream);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::busy);
  EXPECT_THAT(refused.error().message, HasSubstr("2 slots"));
}

TEST(ExpertCache, ReadersThatStillRunAreNotOverwritten) {
  World world({.slots = 2});
  for (std::uint32_t expert = 0; expert < 8; ++expert) {
    ASSERT_TRUE(world.backend->submit_kernel(world.stream, 3'000'000));
    world.step(0, {expert, (expert + 1) % 8});
  }
  EXPECT_EQ(world.check_reads(), 0U);
}

TEST(ExpertCache, BeginsAStepOfResidentExpertsWithoutAllocating) {
  for (const std::string_view predictor : predictor_names()) {
    World world({.layers = 2, .experts = 16, .slots = 20, .with = [&](ExpertCacheConfig& config) {
                   config.predictor = predictor;
                   config.prefetch_probability = 0;
                   config.prefetch_window_ns = 20'000;
                 }});
    const Experts needed{0, 1, 2, 3, 4, 5, 6, 7};
    for (int i = 0; i < 70; ++i) {
      world.step(0, needed);
      world.check_reads();
    }
    // Some that wait for the wires: they are in order already.
    ASSERT_TRUE(world.experts->prefetch(1, Experts{1, 2, 3, 4, 5, 6}, 0.3));
    ASSERT_TRUE(world.experts->prefetch(1, Experts{11, 12, 13, 14, 15}, 0.8));
    for (int i = 0; i < 200; ++i) {
      testing::AllocationCount count;
      auto step = world.experts->begin_layer(0, needed, world.stream);
      EXPECT_EQ(testing::AllocationCount::stop(), 0U) << predictor << ", step " << i;
      ASSERT_TRUE(step);
      EXPECT_EQ(step->resident(), 8U);
    }
  }
}

TEST(ExpertCache, TensorsThatAreScatteredComeTogetherInTheSlot) {
  World world({.layers = 1, .experts = 2, .tensors = {{"a", 1000}, {"b", 4}, {"c", 70'000}}, .slots = 2});
  ModelDescription model = world.model;
  EXPECT_EQ(model.tensor_offset(1), 1008U);
  EXPECT_EQ(model.tensor_offset(2), 1024U);
  ExpertCacheConfig config = world.experts->config();
  config.key_space = 77;
  auto experts = *ExpertCache::create(*world.cache, config);
  std::byte* const memory = *world.backend->reserve_host_range(1 << 20);
  for (std::size_t i = 0; i < 1 << 20; ++i) memory[i] = static_cast<std::byte>(i * 31 >> 3);
  const std::vector<const std::byte*> tensors{memory + 500'000, memory + 100, memory + 1008};
  ASSERT_TRUE(experts->add_expert(0, 1, tensors));
  auto step = experts->begin_layer(0, Experts{1}, world.stream);
  ASSERT_TRUE(step);
  const ReadyExpert* const ready = step->next();
  ASSERT_NE(ready, nullptr);
  world.backend->wait_event(*world.backend->record_event(world.stream), kNever);
  for (std::size_t i = 0; i < tensors.size(); ++i)
    EXPECT_EQ(std::memcmp(ready->address + model.tensor_offset(i), tensors[i], model.tensors[i].bytes), 0);
}

TEST(ExpertCache, ComesFromPeersOnceTheRebalancerPutItThere) {
  World world({.slots = 2});
  world.pass(1'000'000'000);
  EXPECT_EQ(world.experts->stats().experts_on_peers, 32U);
  const auto came = world.step(3, {6});
  ASSERT_EQ(came.size(), 1U);
  EXPECT_EQ(came[0].from, Tier::peer);
  EXPECT_EQ(world.check_reads(), 0U);
}

TEST(ExpertCache, TheRebalancerBringsBackWhatAReclaimTookAndKeepsToItsCap) {
  World world({.with = [](ExpertCacheConfig& config) { config.rebalance_bytes_per_s = 10ULL << 20; }});
  world.pass(100'000'000);
  ASSERT_TRUE(world.cache->reclaim(1, UINT64_MAX, world.backend->now_ns() + 1'000'000'000));
  world.pass(world.cache->config().pressure.regrow_delay_ns);
  const std::uint64_t before = world.experts->stats().rebalanced_bytes;
  world.pass(400'000'000);
  const std::uint64_t moved = world.experts->stats().rebalanced_bytes - before;
  EXPECT_GE(moved, 3ULL << 20);
  EXPECT_LE(moved, 5ULL << 20);
}

TEST(ExpertCache, GoesOnFromTheHostWhenAPeerIsReclaimed) {
  World world({.slots = 2});
  world.pass(100'000'000);
  ASSERT_TRUE(world.cache->reclaim(1, UINT64_MAX, world.backend->now_ns() + 1'000'000'000));
  for (const ReadyExpert& ready : world.step(0, {0, 1})) EXPECT_EQ(ready.from, Tier::host);
  EXPECT_EQ(world.check_reads(), 0U);
  // The memory comes back, and so do the copies.
  world.pass(5'000'000'000);
  EXPECT_EQ(world.experts->stats().experts_on_peers, 32U);
}

TEST(ExpertCache, ConfirmTellsOfACopyThatFailed) {
  World world;
  FaultPlan plan;
  plan.fail_copy.at = 1;
  ASSERT_TRUE(world.backend->set_faults(plan));
  world.step(0, {3});
  const Status told = world.experts->confirm();
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().code, ErrorCode::copy_failed);
  EXPECT_THAT(told.error().message, HasSubstr("expert 3 of layer 0"));
  world.check_reads();
  world.step(0, {3});
  EXPECT_TRUE(world.experts->confirm());
  EXPECT_EQ(world.check_reads(), 0U);
}

TEST(ExpertCache, PrefillDoesNotFlushWhatDecodeHasLearnt) {
  World world({.slots = 12});
  for (int pass = 0; pass < 4; ++pass)
    for (std::uint32_t layer = 0; layer < 4; ++layer) world.step(layer, {0, 1});
  for (std::uint32_t layer = 0; layer < 4; ++layer) world.step(layer, world.all_experts(), Phase::prefill);
  for (std::uint32_t layer = 0; layer < 4; ++layer)
    for (const ReadyExpert& ready : world.step(layer, {0, 1})) EXPECT_EQ(ready.from, Tier::local);
  EXPECT_EQ(world.check_reads(), 0U);
}

/// A prompt passes over more layers than fit, again and again: what came first is there the next time.
TEST(ExpertCache, OfWhatPrefillBroughtTheLatestGoesFirst) {
  World world({.slots = 4});
  world.step(0, {0, 1}, Phase::prefill);
  world.step(1, {0, 1}, Phase::prefill);
  world.step(2, {5});
  EXPECT_EQ(world.experts->locate(0, 0), Tier::local);
  EXPECT_EQ(world.experts->locate(0, 1), Tier::local);
  EXPECT_EQ(world.check_reads(), 0U);
}

TEST(ExpertCache, TakesAModelOfAMillionExperts) {
  World small;
  ExpertCacheConfig config = small.experts->config();
  config.key_space = 77;
  config.model.layers = config.model.experts = 1024;
  config.predictor = "sequence";
  auto experts = *ExpertCache::create(*small.cache, config);
  ASSERT_TRUE(experts->add_expert(1023, 1023, small.weights_of(3, 7)));
  auto step = experts->begin_layer(1023, Experts{1023}, small.stream);
  ASSERT_TRUE(step);
  ReadyExpert ready = *step->next();
  EXPECT_EQ(ready.expert, 1023U);
  ready.expert = 7;  // whose weights it has
  small.read(3, ready, small.stream);
  EXPECT_TRUE(experts->end_layer(std::move(*step)));
  EXPECT_EQ(small.check_reads(), 0U);
  EXPECT_EQ(experts->locate(1023, 1023), Tier::local);
  EXPECT_EQ(experts->locate(0, 1023), Tier::none);
  experts->poll();
}

// --- guesses --------------------------------------------------------------------------------------------

TEST(ExpertPrefetch, BringsWhatIsAskedFor) {
  World world;
  ASSERT_TRUE(world.experts->prefetch(2, Experts{4, 5}, 0.9));
  world.pass(10'000'000);
  EXPECT_EQ(world.experts->locate(2, 4), Tier::local);
  const auto came = world.step(2, {4, 5});
  EXPECT_EQ(came[0].from, Tier::local);
  EXPECT_EQ(came[1].from, Tier::local);
  EXPECT_EQ(world.check_reads(), 0U);
  const ExpertCacheStats stats = world.experts->stats();
  EXPECT_EQ(stats.guesses, 2U);
  EXPECT_EQ(stats.guesses_used, 2U);
  EXPECT_EQ(stats.wasted_bytes, 0U);
}

TEST(ExpertPrefetch, NeverTakesWhatAnOpenStepNeeds) {
  World world({.slots = 2});
  auto open = world.experts->begin_layer(0, Experts{0, 1}, world.stream);
  ASSERT_TRUE(open);
  ASSERT_TRUE(world.experts->prefetch(1, Experts{2, 3}, 1.0));
  world.pass(10'000'000);
  EXPECT_EQ(world.experts->locate(0, 0), Tier::local);
  EXPECT_EQ(world.experts->locate(0, 1), Tier::local);
}

TEST(ExpertPrefetch, IsForgottenAfterItsDeadlineAndWhenCancelled) {
  World world({.with = [](ExpertCacheConfig& config) { config.prefetch_window_ns = 1; }});
  // The wire takes one piece at a time, so the second expert waits.
  const auto late = world.experts->prefetch(0, Experts{0}, 0.9, world.backend->now_ns() + 1000);
  const auto cancelled = world.experts->prefetch(1, Experts{1}, 0.5);
  ASSERT_TRUE(late);
  ASSERT_TRUE(cancelled);
  EXPECT_TRUE(world.experts->cancel(*cancelled));
  EXPECT_FALSE(world.experts->cancel(*cancelled));
  world.pass(10'000'000);
  EXPECT_NE(world.experts->locate(0, 0), Tier::local);
  EXPECT_NE(world.experts->locate(1, 1), Tier::local);
  const auto came = world.step(0, {0});
  ASSERT_EQ(came.size(), 1U);
  EXPECT_EQ(world.check_reads(), 0U);
}

/// Steps that pass faster than the wire carries do not each begin more guesses.
TEST(ExpertPrefetch, KeepsAWireBusyForNoLongerThanItsWindow) {
  World world({.with = [](ExpertCacheConfig& config) { config.prefetch_window_ns = 20'000; }});
  world.step(0, {0});
  world.check_reads();
  ASSERT_TRUE(world.experts->prefetch(2, world.all_experts(), 0.9));
  const auto guessed_bytes = [&] {
    const ExpertCacheStats stats = world.experts->stats();
    return stats.prefetched_bytes[1] + stats.prefetched_bytes[2];
  };
  const std::uint64_t before = guessed_bytes();
  EXPECT_GT(before, 0U);
  for (int i = 0; i < 20; ++i)
    EXPECT_TRUE(world.experts->end_layer(*world.experts->begin_layer(0, Experts{0}, world.stream)));
  EXPECT_EQ(guessed_bytes(), before) << "the clock stood still";
}

TEST(ExpertPrefetch, APredictorThatIsRightSavesTheWait) {
  World world({.slots = 20, .with = [](ExpertCacheConfig& config) { config.predictor = "next_layer"; }});
  std::uint64_t local = 0;
  for (int pass = 0; pass < 60; ++pass)
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      const auto shift = static_cast<std::uint32_t>(pass) % 8;
      for (const ReadyExpert& ready : world.step(layer, {(layer + shift) % 8, (layer + shift + 3) % 8}))
        local += ready.from == Tier::local && pass >= 50 ? 1 : 0;
      ASSERT_TRUE(world.backend->submit_kernel(world.stream, 200'000));
      EXPECT_EQ(world.check_reads(), 0U);
      world.backend->sleep_until(world.backend->now_ns() + 100'000);
    }
  EXPECT_GE(local, 50U) << "of 80";
  EXPECT_GT(world.experts->stats().guesses_used, 0U);
}

/// Names one expert of the next layer.
class Named : public Predictor {
 public:
  explicit Named(std::function<std::uint32_t(std::uint32_t layer)> expert) : expert_(std::move(expert)) {}
  [[nodiscard]] std::string_view name() const override { return "named"; }
  void observe(std::uint32_t, std::span<const std::uint32_t>) override {}
  void predict(std::uint32_t layer, std::vector<Guess>& guesses) const override {
    guesses.push_back({expert_(layer), 0.9});
  }

 private:
  std::function<std::uint32_t(std::uint32_t layer)> expert_;
};

/// How many guesses, of the last 20 of 60 steps, were begun where each step begins as soon as the one before
/// has what it needs: what was guessed in between is still on its way.
std::uint64_t guesses_late_in_a_hurry(bool right) {
  World world({.layers = 2,
               .experts = 4,
               .tensors = {{"all", 8ULL << 20}},
               .slots = 4,
               .with = [](ExpertCacheConfig& config) { config.piece_bytes = 4ULL << 20; },
               .with_peers = [](PeerCacheConfig& peers) { peers.peer_budget_bytes = 0; }});
  std::uint32_t pass = 0;
  world.experts->set_predictor(std::make_unique<Named>([&](std::uint32_t layer) {
    const std::uint32_t needed = (pass + (layer == 0 ? 1 : 0)) % 4;
    return right ? needed : (needed + 2) % 4;
  }));
  std::uint64_t before = 0;
  for (; pass < 30; ++pass) {
    if (pass == 20) before = world.experts->stats().guesses;
    for (std::uint32_t layer = 0; layer < 2; ++layer) {
      auto step = world.experts->begin_layer(layer, Experts{pass % 4}, world.stream);
      EXPECT_TRUE(step);
      while (step->next() != nullptr) continue;
      EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
      EXPECT_TRUE(world.experts->confirm());
    }
  }
  return world.experts->stats().guesses - before;
}

TEST(ExpertPrefetch, ARightGuessThatIsStillOnItsWayIsNotOneTooMany) {
  EXPECT_GE(guesses_late_in_a_hurry(true), 15U);
}

TEST(ExpertPrefetch, WrongGuessesThatStepsWaitBehindBecomeFew) {
  EXPECT_LE(guesses_late_in_a_hurry(false), 5U);
}

// --- wrong calls ----------------------------------------------------------------------------------------

TEST(ExpertCacheErrors, NameTheValueAndTheLimit) {
  World world;
  const auto message = [](const auto& result) {
    return result ? std::string("none") : result.error().message;
  };
  EXPECT_THAT(message(world.experts->begin_layer(4, Experts{0}, world.stream)),
              HasSubstr("layer 4; the model has layers 0 to 3"));
  EXPECT_THAT(message(world.experts->begin_layer(0, Experts{8}, world.stream)),
              HasSubstr("expert 8 of layer 0; a layer has experts 0 to 7"));
  EXPECT_THAT(message(world.experts->add_expert(0, 0, world.weights)), HasSubstr("known already"));
  EXPECT_THAT(message(world.experts->prefetch(0, Experts{0}, 1.5)), HasSubstr("probability is 1.5"));
  EXPECT_FALSE(world.experts->begin_layer(0, Experts{0}, StreamId{9999}));
  ExpertCacheConfig config = world.experts->config();
  config.key_space = 9;
  const auto refused = [&](const std::function<void(ExpertCacheConfig&)>& change) {
    ExpertCacheConfig wrong = config;
    change(wrong);
    return message(ExpertCache::create(*world.cache, wrong));
  };
  EXPECT_THAT(refused([](auto& c) { c.local_budget_bytes = 1000; }),
              AllOf(HasSubstr("local_budget_bytes is 1000"), HasSubstr("two experts")));
  EXPECT_THAT(refused([](auto& c) { c.piece_bytes = 1; }),
              HasSubstr("piece_bytes is 1, the limits are 65536 and 1073741824"));
  EXPECT_THAT(refused([](auto& c) { c.eviction = "best"; }),
              AllOf(HasSubstr("'best'"), HasSubstr("next_use, lfru, lru, lfu, least_stale")));
  EXPECT_THAT(refused([](auto& c) { c.predictor = "oracle"; }),
              AllOf(HasSubstr("'oracle'"), HasSubstr("none, next_layer, sequence")));
  EXPECT_THAT(refused([](auto& c) { c.prefetch_probability = -1; }), HasSubstr("prefetch_probability is -1"));
  EXPECT_THAT(refused([](auto& c) { c.head_tensors = 4; }), HasSubstr("head_tensors is 4, an expert has 3"));
  EXPECT_THAT(refused([](auto& c) { c.prefetch_layers = 5; }), HasSubstr("prefetch_layers is 5"));
  EXPECT_THAT(refused([](auto& c) { c.model.top_k = 9; }), HasSubstr("top_k is 9"));
  EXPECT_THAT(refused([](auto& c) { c.model.tensors.clear(); }), HasSubstr("tensors is empty"));
  auto empty = *ExpertCache::create(*world.cache, config);
  const auto unknown = empty->begin_layer(0, Experts{0}, world.stream);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::not_found);
  EXPECT_THAT(message(empty->add_expert(0, 0, std::vector<const std::byte*>{world.weights})),
              HasSubstr("1 tensors for an expert, the model has 3"));
  EXPECT_THAT(message(empty->add_expert(0, 0, static_cast<const std::byte*>(nullptr))),
              HasSubstr("tensor 0 (gate) is null"));
}

}  // namespace
}  // namespace harvest::moe
