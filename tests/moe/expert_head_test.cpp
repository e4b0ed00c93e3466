// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "backend/checked.hpp"
#include "moe/world.hpp"

/// Experts that are computed by two kernels: the first tensors are delivered before the others are there.
namespace harvest::moe {
namespace {

using Experts = std::vector<std::uint32_t>;

void with_head(ExpertCacheConfig& config) {
  config.head_tensors = 2;
}

/// Says what it thinks of the order of all work.
std::unique_ptr<Backend> checked(SimulatedBackend& backend) {
  return make_checked_backend(backend, {.on_violation = [](const std::string& what) {
                                ADD_FAILURE() << "the contract of the backend: " << what;
                              }});
}

const std::vector<TensorSpec> kLarge{{"gate", 8ULL << 20}, {"up", 8ULL << 20}, {"down", 8ULL << 20}};

TEST(ExpertHead, IsThereBeforeTheRest) {
  World world(
      {.layers = 1, .experts = 2, .tensors = kLarge, .slots = 2, .with = [](ExpertCacheConfig& config) {
         config.head_tensors = 2;
         config.piece_bytes = 4ULL << 20;
       }});
  std::byte* const seen = *world.backend->map_segment(0, 16ULL << 20, {});
  auto step = world.experts->begin_layer(0, Experts{1}, world.stream);
  ASSERT_TRUE(step);
  const TimeNs begin_ns = world.backend->now_ns();
  const ReadyExpert* const ready = step->next_head();
  ASSERT_NE(ready, nullptr);
  const std::uint64_t head_bytes = world.model.tensor_offset(2);
  const Copy copy{seen, ready->address, head_bytes};
  ASSERT_TRUE(world.backend->copy(world.stream, {0, 0}, {&copy, 1}));
  const EventId head = *world.backend->record_event(world.stream);
  step->rest();
  const EventId rest = *world.backend->record_event(world.stream);
  EXPECT_EQ(world.backend->wait_event(head, kNever), EventState::complete);
  const TimeNs head_ns = world.backend->now_ns() - begin_ns;
  EXPECT_EQ(world.backend->query_event(rest), EventState::pending);
  EXPECT_EQ(std::memcmp(seen, world.weights_of(0, 1), head_bytes), 0);
  EXPECT_EQ(world.backend->wait_event(rest, kNever), EventState::complete);
  const TimeNs all_ns = world.backend->now_ns() - begin_ns;
  EXPECT_NEAR(static_cast<double>(head_ns) / static_cast<double>(all_ns), 2.0 / 3.0, .1);
  world.read(0, *ready, world.stream);
  EXPECT_EQ(world.check_reads(), 0U);
  world.backend->release_event(head);
  world.backend->release_event(rest);
  ASSERT_TRUE(world.backend->unmap_segment(seen));
}

/// Also of steps with more experts than slots, of which each is refilled behind its last reader.
TEST(ExpertHead, AndRestAreWrittenAndReadInOrder) {
  World world({.slots = 3, .with = with_head, .between = checked});
  for (std::uint32_t round = 0; round < 60; ++round) {
    const std::uint32_t layer = round % 4;
    Experts needed;
    for (std::uint32_t i = 0; i <= round % 7; ++i) needed.push_back((round * 3 + i) % 8);
    auto step = world.experts->begin_layer(layer, needed, world.stream);
    ASSERT_TRUE(step);
    while (const ReadyExpert* ready = step->next_head()) {
      ASSERT_TRUE(world.backend->submit_kernel(world.stream, 10'000));
      step->rest();
      world.read(layer, *ready, world.stream);
    }
    EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
    world.pass(round % 5 == 0 ? 1'000'000 : 1'000);
    EXPECT_TRUE(world.experts->confirm());
    EXPECT_EQ(world.check_reads(), 0U);
  }
  EXPECT_GT(world.experts->stats().experts(Phase::decode, Tier::peer), 0U);
}

TEST(ExpertHead, ConfirmAnswersForTheRestThatNobodyWaitedFor) {
  for (std::uint64_t number = 1; number <= 2; ++number) {
    World world({.with = with_head});
    FaultPlan plan;
    plan.fail_copy.at = number;
    ASSERT_TRUE(world.backend->set_faults(plan));
    auto step = world.experts->begin_layer(0, Experts{3}, world.stream);
    ASSERT_TRUE(step);
    ASSERT_NE(step->next_head(), nullptr);
    EXPECT_FALSE(world.experts->confirm()) << "copy " << number << " failed";
  }
}

TEST(ExpertHead, RestIsNothingWhereAllIsThere) {
  World world({.with = with_head});
  world.step(0, {3});
  EXPECT_EQ(world.check_reads(), 0U);
  auto step = world.experts->begin_layer(0, Experts{3}, world.stream);
  ASSERT_TRUE(step);
  step->rest();  // of no expert
  const ReadyExpert* const ready = step->next_head();
  ASSERT_NE(ready, nullptr);
  EXPECT_EQ(ready->from, Tier::local);
  step->rest();
  world.read(0, *ready, world.stream);
  EXPECT_EQ(step->next_head(), nullptr);
  step->rest();
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
}

}  // namespace
}  // namespace harvest::moe
