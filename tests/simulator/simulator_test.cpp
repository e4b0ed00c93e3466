// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <set>
#include <string>

#include "simulator/planted.hpp"
#include "simulator/shrink.hpp"
#include "simulator/trial.hpp"

/// A slice of what `./dev simulate` does at length, and of the simulator itself: that what it fails on can be
/// had again, and smaller. Linked with the library that has test hooks.
namespace harvest::simulator {
namespace {

class SimulatorTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (spdlog::get("harvest") == nullptr)
      spdlog::register_logger(
          std::make_shared<spdlog::logger>("harvest", std::make_shared<spdlog::sinks::null_sink_mt>()));
  }
  ~SimulatorTest() override { EXPECT_TRUE(plant_bug("none")); }

  static Outcome first_failure(std::uint64_t seeds, std::uint32_t operations) {
    for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
      Case life;
      life.seed = seed;
      life.operations = operations;
      Outcome outcome = try_case(life, {.repeat = false});
      if (!outcome.passed) return outcome;
    }
    return {};
  }
};

TEST_F(SimulatorTest, TheSameCaseIsTheSameLife) {
  Case life;
  life.seed = 7;
  life.operations = 400;
  const Outcome one = try_case(life, {.repeat = false});
  const Outcome other = try_case(life, {.repeat = false});
  ASSERT_TRUE(one.passed) << one.message;
  EXPECT_EQ(one.result.hash, other.result.hash);
  life.seed = 8;
  EXPECT_NE(try_case(life, {.repeat = false}).result.hash, one.result.hash);
}

TEST_F(SimulatorTest, EveryOperationAndFaultIsDrawnByManySeeds) {
  std::array<int, kOperations> likely{};
  std::array<int, kFaults> faults{};
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    Case life;
    life.seed = seed;
    const Plan plan = draw_plan(life);
    ASSERT_TRUE(plan.machine.validate().has_value()) << plan.machine.validate().error().message;
    for (std::size_t i = 0; i < kOperations; ++i) likely[i] += plan.weights[i] != 0 ? 1 : 0;
    for (const Fault fault : plan.faults.list()) ++faults[static_cast<std::size_t>(fault)];
  }
  for (std::size_t i = 0; i < kOperations; ++i)
    EXPECT_GE(likely[i], 20) << to_string(static_cast<Operation>(i));
  for (std::size_t i = 0; i < kFaults; ++i) EXPECT_GE(faults[i], 20) << to_string(static_cast<Fault>(i));
}

TEST_F(SimulatorTest, NamesOfFaultsAreReadAsTheyArePrinted) {
  for (std::size_t i = 0; i < kFaults; ++i)
    EXPECT_EQ(parse_fault(to_string(static_cast<Fault>(i))), static_cast<Fault>(i));
  EXPECT_FALSE(parse_fault("fire").has_value());
}

TEST_F(SimulatorTest, NarrowingDownKeepsTheRestOfTheDraw) {
  Case life;
  life.seed = 3;
  const Plan whole = draw_plan(life);
  life.gpus = 2;
  life.keys = 1;
  life.faults = Faults{};
  const Plan narrow = draw_plan(life);
  EXPECT_EQ(narrow.machine.devices.size(), 3U);
  EXPECT_EQ(narrow.keys, 1U);
  EXPECT_TRUE(narrow.faults.list().empty());
  EXPECT_EQ(narrow.weights, whole.weights);
  EXPECT_EQ(narrow.config.host_budget_bytes, whole.config.host_budget_bytes);
}

TEST_F(SimulatorTest, AFailureIsMadeSmallAndStaysTheSame) {
  ASSERT_TRUE(plant_bug("loss_not_told"));
  const Outcome failed = first_failure(20, 1000);
  ASSERT_FALSE(failed.message.empty()) << "no life fails";
  EXPECT_EQ(failed.invariant(), "I4") << failed.message;
  const Outcome smallest = shrink(failed, {}, 300, [](const Outcome&) {});
  EXPECT_EQ(smallest.invariant(), "I4") << smallest.message;
  EXPECT_LE(operations_of(smallest.life), 40U) << arguments_of(smallest.life);
  EXPECT_LT(operations_of(smallest.life), operations_of(failed.life));
  const Outcome again = try_case(smallest.life, {.repeat = false});
  EXPECT_EQ(again.message, smallest.message);
}

TEST_F(SimulatorTest, ALifeThatDiffersFromItselfIsFound) {
  ASSERT_TRUE(plant_bug("fenced_by_chance"));
  std::string found;
  for (std::uint64_t seed = 1; seed <= 50 && found != "I11"; ++seed) {
    Case life;
    life.seed = seed;
    const Outcome outcome = try_case(life, {.repeat = true});
    if (!outcome.passed) found = outcome.invariant();
  }
  EXPECT_EQ(found, "I11");
}

/// Mapping fails at the n-th call, for every n until a life has no n-th call.
TEST_F(SimulatorTest, EveryFailedAllocationIsSurvived) {
  for (const Fault fault : {Fault::fail_map, Fault::fail_host_map, Fault::refuse_copy, Fault::fail_copy}) {
    std::set<std::uint64_t> hashes;
    bool clean = false;
    constexpr std::uint64_t kMost = 300;
    for (std::uint64_t n = 1; n <= kMost && !clean; ++n) {
      Case life;
      life.seed = 21;
      life.operations = 60;
      life.faults = Faults{};
      life.nth = {fault, n};
      const Outcome outcome = try_case(life, {.repeat = false});
      ASSERT_TRUE(outcome.passed) << outcome.message << "\nagain: simulator " << arguments_of(life);
      life.nth = {fault, 1'000'000};
      if (n == 1) hashes.insert(try_case(life, {.repeat = false}).result.hash);
      clean = hashes.contains(outcome.result.hash);
    }
    EXPECT_TRUE(clean) << to_string(fault) << ": call " << kMost << " still fails";
  }
}

}  // namespace
}  // namespace harvest::simulator
