// SPDX-License-Identifier: Apache-2.0
#include "cli/routing_replay.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <vector>

/// Replays of whole layer steps.
namespace harvest::cli {
namespace {

LayerAccesses accesses_of(std::initializer_list<std::vector<std::uint64_t>> steps) {
  LayerAccesses accesses;
  for (const auto& step : steps) {
    for (const std::uint64_t expert : step) accesses.experts.emplace_back(expert);
    accesses.ends.push_back(accesses.experts.size());
  }
  return accesses;
}

std::uint64_t hits(std::string_view policy, const LayerAccesses& accesses, std::uint64_t capacity) {
  const auto run = simulate_steps(policy, accesses, capacity);
  EXPECT_TRUE(run);
  EXPECT_EQ(run->accesses, accesses.experts.size());
  return run->hits;
}

TEST(SimulateSteps, LooksForAllOfAStepBeforeAnythingGoes) {
  // One by one, the second step's 0 pushes out 1 before that is looked for, 1 then pushes out 2, ...
  const auto accesses = accesses_of({{1, 2, 3}, {0, 1, 2}});
  EXPECT_EQ(hits("lru", accesses, 3), 2U);
  EXPECT_EQ(simulate_policy("lru", accesses.experts, 3)->hits, 0U);
}

TEST(SimulateSteps, EvictsNothingThatItsStepNeeds) {
  // 9 is the most recent, and goes all the same, for the step needs all others.
  const auto accesses = accesses_of({{1, 2}, {9}, {1, 2, 3}, {1, 2, 3}});
  for (const char* policy : {"lru", "lfu", "lfru"}) EXPECT_EQ(hits(policy, accesses, 3), 2U + 3U) << policy;
}

TEST(SimulateSteps, UsesWithoutKeepingWhatFindsNoRoom) {
  const auto accesses = accesses_of({{1, 2, 3, 4}, {1, 2, 3, 4}});
  for (const char* policy : {"lru", "lfu", "lfru", "belady"})
    EXPECT_EQ(hits(policy, accesses, 3), 3U) << policy;
}

TEST(SimulateSteps, BeladyKeepsWhatIsNeededNext) {
  // 1 comes again, and is kept through steps that LRU spends on what does not.
  const auto accesses = accesses_of({{1, 2}, {3, 4}, {5, 6}, {1, 6}});
  EXPECT_EQ(hits("belady", accesses, 2), 2U);
  EXPECT_EQ(hits("lru", accesses, 2), 1U);
}

TEST(SimulateSteps, SaysWhatItCannotDo) {
  const auto accesses = accesses_of({{1}});
  EXPECT_EQ(simulate_steps("lru", accesses, 0).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(simulate_steps("lrru", accesses, 1).error().code, ErrorCode::not_found);
}

TEST(LayerAccesses, AreTheDistinctExpertsOfDecodeSteps) {
  moe::RoutingTrace trace({1, 8, 2});
  const auto add = [&](std::uint64_t step, moe::Phase phase, std::uint32_t sequence,
                       std::vector<std::uint32_t> experts) {
    ASSERT_TRUE(trace.add({step, phase, sequence, 0, 1, experts}));
  };
  add(0, moe::Phase::prefill, 1, {6, 7});
  add(1, moe::Phase::decode, 1, {5, 2});
  add(1, moe::Phase::decode, 2, {2, 0});
  add(2, moe::Phase::decode, 1, {4, 3});
  const LayerAccesses accesses = layer_accesses(trace, 0);
  EXPECT_THAT(accesses.experts, ::testing::ElementsAre(Key(0), Key(2), Key(5), Key(3), Key(4)));
  EXPECT_THAT(accesses.ends, ::testing::ElementsAre(3U, 5U));
}

}  // namespace
}  // namespace harvest::cli
