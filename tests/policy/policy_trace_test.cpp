// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <harvest/policy.hpp>
#include <harvest/trace.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "policy/shadow_curve.hpp"

namespace harvest {
namespace {

/// Hit ratios on the conversation trace of Mooncake (FAST 2025), each block one unit, every access
/// admitted: reference figures from independent implementations.
struct Row {
  std::uint64_t capacity_blocks;
  double fifo, lru, arc, belady;
  double best_online;  ///< of FIFO, LRU, LFU, SIEVE, S3-FIFO and ARC
};
constexpr std::array kReference{
    Row{1'000, .044, .044, .053, .191, .056},  Row{5'000, .107, .110, .117, .341, .138},
    Row{10'000, .187, .211, .225, .366, .225}, Row{20'000, .266, .287, .289, .366, .289},
    Row{50'000, .340, .355, .343, .366, .355},
};

class ConversationTrace : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("HARVEST_TRACES");
    const std::filesystem::path path =
        std::filesystem::path(folder != nullptr ? folder : HARVEST_DEFAULT_TRACES) /
        "mooncake/conversation_trace.jsonl.gz";
    if (!std::filesystem::exists(path)) {
      GTEST_SKIP() << "no trace at " << path
                   << ": download conversation_trace.jsonl of the Mooncake project, "
                   << "gzip it, and name the folder that holds mooncake/ in HARVEST_TRACES";
    }
    auto read = read_mooncake_trace(path.string());
    ASSERT_TRUE(read) << read.error().message;
    trace_ = std::move(*read);
    accesses_ = trace_.block_accesses();
  }

  /// What `CacheStats::shadow` would say of a tier of `capacity_blocks` of 1 MiB that saw the whole trace, at
  /// its worst against LRU.
  double shadow_error(std::uint64_t capacity_blocks) const {
    policy::ShadowCurve curve(capacity_blocks << 20U);
    for (const Key& key : accesses_) curve.access(key, 1U << 20U);
    std::vector<std::uint64_t> blocks;
    for (const std::uint64_t percent : {50U, 100U, 125U, 150U, 200U, 400U})
      blocks.push_back(capacity_blocks * percent / 100);
    const auto lru = simulate_policy_curve("lru", accesses_, blocks).value();
    double worst = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i)
      worst = std::max(worst, std::abs(curve.hit_ratio(blocks[i] << 20U) - lru[i].hit_ratio()));
    return worst;
  }

  double hit_ratio(std::string_view policy, std::uint64_t capacity_blocks) const {
    return simulate_policy(policy, accesses_, capacity_blocks).value().hit_ratio();
  }

  Trace trace_;
  std::vector<Key> accesses_;
};

TEST_F(ConversationTrace, IsReadWhole) {
  EXPECT_EQ(trace_.requests.size(), 12'031U);
  EXPECT_EQ(accesses_.size(), 288'500U);
}

TEST_F(ConversationTrace, PoliciesGiveTheReferenceFigures) {
  for (const Row& row : kReference) {
    SCOPED_TRACE(row.capacity_blocks);
    EXPECT_NEAR(hit_ratio("fifo", row.capacity_blocks), row.fifo, .005);
    EXPECT_NEAR(hit_ratio("lru", row.capacity_blocks), row.lru, .005);
    EXPECT_NEAR(hit_ratio("arc", row.capacity_blocks), row.arc, .005);
    EXPECT_NEAR(hit_ratio("belady", row.capacity_blocks), row.belady, .002);
  }
}

TEST_F(ConversationTrace, OneSettingOfTheDefaultServesEveryCapacity) {
  for (const Row& row : kReference) {
    const double ratio = hit_ratio(eviction_policy_names().front(), row.capacity_blocks);
    EXPECT_GT(ratio, row.best_online - .01) << row.capacity_blocks;
    if (row.capacity_blocks <= 5'000) {
      EXPECT_GT(ratio, row.lru + .02) << row.capacity_blocks;
    }
  }
}

TEST_F(ConversationTrace, ShadowCurvesAreNearWhatLruGives) {
  for (const Row& row : kReference) {
    const double error = shadow_error(row.capacity_blocks);
    EXPECT_LT(error, .01) << row.capacity_blocks;
    RecordProperty("error_at_" + std::to_string(row.capacity_blocks), std::to_string(error));
  }
}

TEST_F(ConversationTrace, PrefixAwarePoliciesAreNotFarFromTheirBases) {
  const std::vector<std::uint64_t> capacities{1'000, 10'000};
  std::vector<std::uint64_t> lengths;
  for (const TraceRequest& request : trace_.requests) lengths.push_back(request.block_ids.size());
  for (const std::string base : {"adaptive_2q", "lru", "lru_2"}) {
    const auto plain = simulate_policy_curve(base, accesses_, capacities, lengths).value();
    const auto aware = simulate_policy_curve("prefix_" + base, accesses_, capacities, lengths).value();
    for (std::size_t i = 0; i < capacities.size(); ++i)
      EXPECT_GT(aware[i].usable_hit_ratio(), plain[i].usable_hit_ratio() - .003) << base << capacities[i];
  }
}

}  // namespace
}  // namespace harvest
