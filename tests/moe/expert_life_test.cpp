// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <set>
#include <string>

#include "moe/expert_life.hpp"

/// Random lives of a cache of experts. For a campaign:
///
///     HARVEST_EXPERT_LIFE_SEED=1000 HARVEST_EXPERT_LIFE_SEEDS=5000 HARVEST_EXPERT_LIFE_OPERATIONS=1000
///     moe_test
///         --gtest_filter=ExpertLife.*Byte*
namespace harvest::moe {
namespace {

std::uint64_t from_environment(const char* name, std::uint64_t usual) {
  const char* const text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): one thread
  return text == nullptr ? usual : std::strtoull(text, nullptr, 10);
}

class ExpertLifeTest : public ::testing::Test {
 protected:
  /// The library's warnings about devices that fail are what these lives are made of.
  static void SetUpTestSuite() {
    if (spdlog::get("harvest") == nullptr)
      spdlog::register_logger(
          std::make_shared<spdlog::logger>("harvest", std::make_shared<spdlog::sinks::null_sink_mt>()));
  }
};

TEST_F(ExpertLifeTest, EveryByteIsRightWhateverHappens) {
  const std::uint64_t first = from_environment("HARVEST_EXPERT_LIFE_SEED", 1);
  const std::uint64_t seeds = from_environment("HARVEST_EXPERT_LIFE_SEEDS", 24);
  const auto operations = static_cast<std::uint32_t>(from_environment("HARVEST_EXPERT_LIFE_OPERATIONS", 250));
  LifeCoverage sum;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    const LifeResult life = live_twice(seed, operations);
    ASSERT_EQ(life.wrong, "") << "again: HARVEST_EXPERT_LIFE_SEED=" << seed
                              << " HARVEST_EXPERT_LIFE_SEEDS=1 HARVEST_EXPERT_LIFE_OPERATIONS=" << operations;
    const LifeCoverage& seen = life.coverage;
    sum.operations += seen.operations;
    sum.steps += seen.steps;
    sum.refused_steps += seen.refused_steps;
    sum.waves += seen.waves;
    for (std::size_t tier = 0; tier < kTiers; ++tier) sum.delivered[tier] += seen.delivered[tier];
    sum.reads += seen.reads;
    sum.wrong_reads += seen.wrong_reads;
    sum.failures_told += seen.failures_told;
    sum.guesses += seen.guesses;
    sum.guesses_used += seen.guesses_used;
    sum.rebalanced_bytes += seen.rebalanced_bytes;
    sum.reclaims += seen.reclaims;
    sum.virtual_ns += seen.virtual_ns;
  }
  fmt::print(
      "{} operations, {} steps ({} in waves, {} refused); delivered local {}, peer {}, host {}; {} reads "
      "compared, "
      "{} wrong and told; {} failures told; {} guesses, {} used; {} KiB rebalanced; {} reclaims; {:.1f} "
      "virtual s\n",
      sum.operations, sum.steps, sum.waves, sum.refused_steps, sum.delivered[0], sum.delivered[1],
      sum.delivered[2], sum.reads, sum.wrong_reads, sum.failures_told, sum.guesses, sum.guesses_used,
      sum.rebalanced_bytes >> 10, sum.reclaims, static_cast<double>(sum.virtual_ns) * 1e-9);
  // The lives went everywhere.
  for (std::size_t tier = 0; tier < kTiers; ++tier) EXPECT_GT(sum.delivered[tier], 0U) << tier;
  for (const std::uint64_t seen : {sum.waves, sum.refused_steps, sum.wrong_reads, sum.failures_told,
                                   sum.guesses_used, sum.rebalanced_bytes, sum.reclaims})
    EXPECT_GT(seen, 0U);
}

TEST_F(ExpertLifeTest, OtherSeedsLiveOtherLives) {
  std::set<std::uint64_t> hashes;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) hashes.insert(ExpertLife(seed, 20).live().hash);
  EXPECT_EQ(hashes.size(), 8U);
}

}  // namespace
}  // namespace harvest::moe
