// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>

#include "moe/world.hpp"

/// How long steps stand still for experts, as the statistics tell. In virtual time what happens is known.
namespace harvest::moe {
namespace {

using Experts = std::vector<std::uint32_t>;

constexpr TimeNs kLookNs = 1'000;
/// Experts of 8 MiB over PCIe: some 150 us each, by one copy.
WorldOptions large_experts() {
  WorldOptions options;
  options.layers = 1;
  options.experts = 6;
  options.tensors = {{"all", 8ULL << 20}};
  options.slots = 4;
  options.with = [](ExpertCacheConfig& config) { config.piece_bytes = 8ULL << 20; };
  options.with_peers = [](PeerCacheConfig& config) { config.peer_budget_bytes = 0; };
  return options;
}

struct Times {
  TimeNs exposed = 0;
  TimeNs hidden = 0;
  TimeNs unseen = 0;
  [[nodiscard]] TimeNs all() const { return exposed + hidden + unseen; }
};

class ExpertStalls : public ::testing::Test {
 protected:
  ExpertStalls() : world(large_experts()) {
    world.step(0, {0});
    EXPECT_EQ(world.check_reads(), 0U);
    arrival_ns = arrival();
    before = world.experts->stats();
  }

  /// Of one expert over an idle wire: until the stream behind it is done.
  TimeNs arrival() {
    const TimeNs begin = world.backend->now_ns();
    auto step = world.experts->begin_layer(0, Experts{5}, world.stream);
    EXPECT_NE(step->next(), nullptr);
    EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
    finish(kNever);
    return world.backend->now_ns() - begin;
  }

  void compute(TimeNs ns) { EXPECT_TRUE(world.backend->submit_kernel(world.stream, ns)); }

  /// Waits for the stream, and looks each `look_ns`.
  void finish(TimeNs look_ns) {
    const EventId event = *world.backend->record_event(world.stream);
    TimeNs until = look_ns;
    while (world.backend->wait_event(event, until == kNever ? kNever : world.backend->now_ns() + look_ns) ==
           EventState::pending) {
      world.experts->poll();
      until = look_ns;
    }
    world.backend->release_event(event);
  }

  /// Since the world was made.
  [[nodiscard]] Times times() const {
    const ExpertCacheStats now = world.experts->stats();
    return {now.exposed_stall_ns - before.exposed_stall_ns, now.hidden_stall_ns - before.hidden_stall_ns,
            now.unseen_stall_ns - before.unseen_stall_ns};
  }

  World world;
  TimeNs arrival_ns = 0;
  ExpertCacheStats before;
};

TEST_F(ExpertStalls, WhatIsHereIsNotWaitedFor) {
  auto step = world.experts->begin_layer(0, Experts{0, 5}, world.stream);
  while (step->next() != nullptr) compute(100'000);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  finish(kLookNs);
  EXPECT_EQ(times().all(), 0);
}

TEST_F(ExpertStalls, ALongKernelBeforeTheWaitHidesAll) {
  auto step = world.experts->begin_layer(0, Experts{0, 1}, world.stream);
  ASSERT_EQ(step->next()->expert, 0U);
  compute(2 * arrival_ns);
  ASSERT_EQ(step->next()->expert, 1U);
  compute(50'000);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  finish(kLookNs);
  EXPECT_EQ(times().exposed, 0);
  EXPECT_NEAR(static_cast<double>(times().hidden), static_cast<double>(arrival_ns), 2 * kLookNs);
  EXPECT_LE(times().unseen, kLookNs);
}

TEST_F(ExpertStalls, WithoutWorkBeforeTheWaitAllIsExposed) {
  auto step = world.experts->begin_layer(0, Experts{1}, world.stream);
  ASSERT_EQ(step->next()->expert, 1U);
  compute(2 * arrival_ns);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  finish(kLookNs);
  EXPECT_EQ(times().hidden, 0);
  EXPECT_NEAR(static_cast<double>(times().exposed), static_cast<double>(arrival_ns), 2 * kLookNs);
  EXPECT_LE(times().unseen, kLookNs);
}

TEST_F(ExpertStalls, AKernelOfHalfTheTimeHidesHalf) {
  auto step = world.experts->begin_layer(0, Experts{0, 1}, world.stream);
  ASSERT_EQ(step->next()->expert, 0U);
  compute(arrival_ns / 2);
  ASSERT_EQ(step->next()->expert, 1U);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  finish(kLookNs);
  EXPECT_NEAR(static_cast<double>(times().exposed), static_cast<double>(arrival_ns) / 2, 3 * kLookNs);
  EXPECT_NEAR(static_cast<double>(times().hidden), static_cast<double>(arrival_ns) / 2, 3 * kLookNs);
}

/// Two experts come one behind the other; the first is computed while the second comes.
TEST_F(ExpertStalls, WhatOneComputesHidesTheNext) {
  auto step = world.experts->begin_layer(0, Experts{1, 2}, world.stream);
  ASSERT_NE(step->next(), nullptr);
  compute(arrival_ns / 4);
  ASSERT_NE(step->next(), nullptr);
  compute(arrival_ns);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  finish(kLookNs);
  EXPECT_NEAR(static_cast<double>(times().hidden), static_cast<double>(arrival_ns) / 4, 3 * kLookNs);
  EXPECT_NEAR(static_cast<double>(times().exposed), 1.75 * static_cast<double>(arrival_ns),
              .05 * static_cast<double>(arrival_ns));
}

TEST_F(ExpertStalls, ATableIsWaitedForOnce) {
  auto step = world.experts->begin_layer(0, Experts{0, 1, 2}, world.stream);
  compute(arrival_ns / 2);
  ASSERT_TRUE(step->all());
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  finish(kLookNs);
  EXPECT_NEAR(static_cast<double>(times().hidden), static_cast<double>(arrival_ns) / 2, 3 * kLookNs);
  EXPECT_NEAR(static_cast<double>(times().exposed), 1.5 * static_cast<double>(arrival_ns),
              .05 * static_cast<double>(arrival_ns));
}

/// What nobody saw is not made up.
TEST_F(ExpertStalls, WithoutLooksNothingIsCertain) {
  auto step = world.experts->begin_layer(0, Experts{0, 1}, world.stream);
  ASSERT_EQ(step->next()->expert, 0U);
  compute(arrival_ns / 2);
  ASSERT_EQ(step->next()->expert, 1U);
  compute(arrival_ns);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  finish(kNever);
  EXPECT_EQ(times().exposed, 0);
  EXPECT_EQ(times().hidden, 0);
  EXPECT_GE(times().unseen, arrival_ns);
}

/// More experts than slots: those that come later are watched too.
TEST_F(ExpertStalls, AStepThatGoesThroughItsSlotsIsWatchedToItsEnd) {
  const TimeNs begin = world.backend->now_ns();
  auto step = world.experts->begin_layer(0, Experts{0, 1, 2, 3, 4}, world.stream);
  std::size_t came = 0;
  while (step->next() != nullptr) ++came;
  EXPECT_EQ(came, 5U);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  finish(kLookNs);
  EXPECT_EQ(times().hidden, 0);
  EXPECT_NEAR(static_cast<double>(times().exposed), static_cast<double>(world.backend->now_ns() - begin),
              .05 * static_cast<double>(arrival_ns));
}

}  // namespace
}  // namespace harvest::moe
