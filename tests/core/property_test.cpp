// SPDX-License-Identifier: Apache-2.0
#include "core/scenario.hpp"

#include <cstdlib>

/// Random lives of a cache against a simple model (I2, I4, I5, I6, I7, I11). To run one seed of one's own:
/// HARVEST_SEED=n core_property_test --gtest_filter='*OneSeed*'
namespace harvest::testing {
namespace {

constexpr int kSteps = 400;

void live(ScenarioOptions options) {
  SCOPED_TRACE("seed " + std::to_string(options.seed) + (options.faults ? " with faults" : ""));
  Scenario scenario(options);
  scenario.run(kSteps);
  scenario.finish();
}

class PropertyTest : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(PropertyTest, HealthyMachine) {
  live({.seed = GetParam(), .faults = false});
}

TEST_P(PropertyTest, MachineWithFaults) {
  live({.seed = GetParam(), .faults = true});
}

TEST_P(PropertyTest, ContractOfTheBackend) {
  live({.seed = GetParam() + 1000, .faults = GetParam() % 2 == 0, .checked = true});
}

INSTANTIATE_TEST_SUITE_P(Seeds, PropertyTest, ::testing::Range<std::uint64_t>(1, 13));

TEST(PropertyTest, OneSeed) {
  const char* seed = std::getenv("HARVEST_SEED");
  if (seed == nullptr) GTEST_SKIP() << "HARVEST_SEED names a seed to run";
  const std::uint64_t number = std::strtoull(seed, nullptr, 10);
  live({.seed = number, .faults = false});
  live({.seed = number, .faults = true});
  if (std::getenv("HARVEST_CHECKED") != nullptr) {
    live({.seed = number, .faults = false, .checked = true});
    live({.seed = number, .faults = true, .checked = true});
  }
}

TEST(DeterminismTest, SameSeedSameTrace) {
  for (const std::uint64_t seed : {101U, 102U, 103U}) {
    std::uint64_t hashes[2] = {};
    for (std::uint64_t& hash : hashes) {
      Scenario scenario({.seed = seed, .faults = true});
      scenario.run(200);
      hash = scenario.trace_hash();
    }
    EXPECT_EQ(hashes[0], hashes[1]) << "I11, seed " << seed;
  }
  Scenario other({.seed = 104, .faults = true});
  other.run(10);
  EXPECT_NE(other.trace_hash(), 0U);
}

}  // namespace
}  // namespace harvest::testing
