// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/moe/routing.hpp>

#include <cstdint>
#include <string>
#include <vector>

/// What a recording in memory takes, and what it answers.
namespace harvest::moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Experts = std::vector<std::uint32_t>;

constexpr RoutingShape kShape{.layers = 2, .experts = 8, .top_k = 2};

/// Two sequences, and which experts they need in both layers.
void add_step(RoutingTrace& trace, std::uint64_t step, const Experts& a0 = {1, 5}, const Experts& b0 = {5, 0},
              const Experts& a1 = {2, 3}, const Experts& b1 = {7, 6}) {
  ASSERT_TRUE(trace.add({step, Phase::decode, 30, 0, 1, a0}));
  ASSERT_TRUE(trace.add({step, Phase::decode, 9, 0, 1, b0}));
  ASSERT_TRUE(trace.add({step, Phase::decode, 30, 1, 1, a1}));
  ASSERT_TRUE(trace.add({step, Phase::decode, 9, 1, 1, b1}));
}

TEST(RoutingTrace, ShowsStepsByLayerAndSequence) {
  RoutingTrace trace(kShape);
  EXPECT_TRUE(trace.empty());
  add_step(trace, 4);
  const Experts five{0, 1, 2, 3, 4};
  ASSERT_TRUE(trace.add({7, Phase::prefill, 31, 0, 3, five}));
  EXPECT_EQ(trace.size(), 1U) << "a step counts when it is whole";
  ASSERT_TRUE(trace.add({7, Phase::prefill, 31, 1, 3, Experts{6, 7}}));
  ASSERT_EQ(trace.size(), 2U);

  const RoutingStep decode = trace.step(0);
  EXPECT_EQ(decode.phase(), Phase::decode);
  EXPECT_EQ(decode.layers(), 2U);
  EXPECT_THAT(decode.sequences(), ElementsAre(BatchSequence{30, 1}, BatchSequence{9, 1}));
  EXPECT_THAT(decode.experts(0, 0), ElementsAre(1, 5));
  EXPECT_THAT(decode.experts(0, 1), ElementsAre(5, 0));
  EXPECT_THAT(decode.experts(1, 1), ElementsAre(7, 6));
  EXPECT_THAT(decode.experts(0), ElementsAre(1, 5, 5, 0));
  EXPECT_THAT(decode.experts(1), ElementsAre(2, 3, 7, 6));
  Experts distinct{99};
  decode.distinct_experts(0, distinct);
  EXPECT_THAT(distinct, ElementsAre(0, 1, 5));

  const RoutingStep prefill = trace.step(1);
  EXPECT_EQ(prefill.phase(), Phase::prefill);
  EXPECT_THAT(prefill.sequences(), ElementsAre(BatchSequence{31, 3}));
  EXPECT_THAT(prefill.experts(0), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(prefill.experts(1, 0), ElementsAre(6, 7));
}

TEST(RoutingTrace, TakesStepsOfAnother) {
  RoutingTrace from(kShape);
  add_step(from, 0);
  add_step(from, 1, {0, 1});
  RoutingTrace to(kShape);
  for (std::size_t i = 0; i < from.size(); ++i) ASSERT_TRUE(to.add(from.step(i)));
  EXPECT_EQ(to, from);
  RoutingTrace other(kShape);
  add_step(other, 0);
  add_step(other, 1, {1, 0});
  EXPECT_FALSE(other == from) << "the order of a token's experts is theirs";

  RoutingTrace narrow({.layers = 2, .experts = 7, .top_k = 2});
  EXPECT_EQ(narrow.add(from.step(0)).error().message, "experts has 7, the model has 7");
  EXPECT_TRUE(narrow.whole()) << "nothing of the step may be left";
  EXPECT_TRUE(narrow.empty());
  RoutingTrace flat({.layers = 1, .experts = 8, .top_k = 2});
  EXPECT_EQ(flat.add(from.step(0)).error().message, "the step has 2 layers, the model 1");
}

/// What is wrong with `line` after a whole step 4 and the lines in `before`.
std::string complaint(const RoutingLine& line, const std::vector<RoutingLine>& before = {}) {
  RoutingTrace trace(kShape);
  add_step(trace, 4);
  for (const RoutingLine& good : before) EXPECT_TRUE(trace.add(good));
  RoutingTrace same = trace;
  const Status added = trace.add(line);
  if (added) return "taken";
  EXPECT_EQ(added.error().code, ErrorCode::invalid_argument);
  // What is refused leaves no trace: the same lines are good as before.
  const bool was_whole = same.whole().has_value();
  EXPECT_EQ(trace.whole().has_value(), was_whole);
  EXPECT_EQ(trace, same);
  return added.error().message;
}

TEST(RoutingTrace, RefusesLinesOutOfOrder) {
  const Experts two{1, 2};
  const RoutingLine first{5, Phase::decode, 3, 0, 1, two};
  const RoutingLine second{5, Phase::decode, 4, 0, 1, two};
  const RoutingLine deeper{5, Phase::decode, 3, 1, 1, two};
  EXPECT_EQ(complaint({3, Phase::decode, 3, 0, 1, two}), "step goes back from 4 to 3");
  EXPECT_EQ(complaint({4, Phase::decode, 30, 1, 1, two}), "step 4 is whole already");
  EXPECT_EQ(complaint({4, Phase::decode, 31, 0, 1, two}), "step 4 is whole already");
  EXPECT_EQ(complaint({5, Phase::decode, 3, 1, 1, two}), "step 5 begins with layer 1, not 0");
  EXPECT_EQ(complaint(first, {first}), "sequence 3 is in the layer twice");
  EXPECT_EQ(complaint({5, Phase::prefill, 4, 0, 1, two}, {first}),
            "phase is prefill, the step began as decode");
  EXPECT_EQ(complaint({5, Phase::decode, 4, 1, 1, two}, {first, second}),
            "sequence is 4 where 3 was to come, as in layer 0");
  EXPECT_EQ(complaint(deeper, {first, second, deeper}), "sequence is 3 where 4 was to come, as in layer 0");
  EXPECT_EQ(complaint({5, Phase::decode, 5, 0, 1, two}, {first, second, deeper}),
            "layer is 0 where 1 was to come");
  EXPECT_EQ(complaint({5, Phase::decode, 3, 1, 2, two}, {first}), "tokens is 2, in layer 0 it was 1");
  EXPECT_EQ(complaint({6, Phase::decode, 3, 0, 1, two}, {first, second, deeper}),
            "step 5 ends in layer 1 after 1 of 2 sequences; the model has 2 layers");
}

TEST(RoutingTrace, RefusesWhatTheModelHasNot) {
  const auto alone = [](std::uint32_t layer, std::uint32_t tokens, const Experts& experts) {
    return complaint({5, Phase::decode, 3, layer, tokens, experts});
  };
  EXPECT_EQ(alone(2, 1, {1, 2}), "layer is 2, the model has 2");
  EXPECT_EQ(alone(0, 0, {1, 2}), "tokens is 0, the limits are 1 and 16777216");
  EXPECT_EQ(alone(0, 16'777'217, {1, 2}), "tokens is 16777217, the limits are 1 and 16777216");
  EXPECT_EQ(alone(0, 1, {1}), "experts has 1 of them, the limits for 1 token are 2 and 2");
  EXPECT_EQ(alone(0, 1, {1, 2, 3}), "experts has 3 of them, the limits for 1 token are 2 and 2");
  EXPECT_EQ(alone(0, 2, {1, 2, 3, 4, 5}), "experts has 5 of them, the limits for 2 tokens are 2 and 4");
  EXPECT_EQ(alone(0, 9, {}), "experts has 0 of them, the limits for 9 tokens are 2 and 8");
  EXPECT_EQ(alone(0, 1, {1, 8}), "experts has 8, the model has 8");
  EXPECT_EQ(alone(0, 1, {4, 4}), "experts has 4 twice");
  EXPECT_EQ(alone(0, 1, {7, 0}), "taken");
  EXPECT_EQ(alone(0, 2, {1, 2, 3, 4}), "taken");
}

TEST(RoutingShape, HasTheLimitsOfAModel) {
  EXPECT_TRUE((RoutingShape{1, 1, 1}).validate());
  EXPECT_TRUE((RoutingShape{1024, 1024, 1024}).validate());
  EXPECT_THAT((RoutingShape{0, 8, 2}).validate().error().message, HasSubstr("layers is 0"));
  EXPECT_THAT((RoutingShape{1, 1025, 2}).validate().error().message, HasSubstr("experts is 1025"));
  EXPECT_THAT((RoutingShape{1, 8, 9}).validate().error().message, HasSubstr("top_k is 9"));
}

TEST(RoutingTraceDeathTest, StopsAtWhatIsNotThere) {
  EXPECT_DEATH(RoutingTrace({0, 8, 2}), "layers is 0");
  RoutingTrace trace(kShape);
  add_step(trace, 0);
  EXPECT_DEATH((void)trace.step(1), "step 1 of 1");
}

}  // namespace
}  // namespace harvest::moe
