// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <harvest/policy.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

namespace harvest {
namespace {

std::vector<Key> keys(std::initializer_list<std::uint64_t> numbers) {
  return {numbers.begin(), numbers.end()};
}

TEST(SimulatePolicy, CountsHits) {
  const auto accesses = keys({1, 2, 1, 3, 1, 2, 2});
  EXPECT_EQ(simulate_policy("fifo", accesses, 2).value().hits, 2U);
  EXPECT_EQ(simulate_policy("lru", accesses, 2).value().hits, 3U);
  EXPECT_EQ(simulate_policy("belady", accesses, 2).value().hits, 4U);
  for (const std::string_view name : eviction_policy_names()) {
    const PolicyRun run = simulate_policy(name, accesses, 10).value();
    EXPECT_EQ(run.accesses, accesses.size());
    EXPECT_EQ(run.hits, 4U) << name << " misses though everything fits";
  }
  EXPECT_EQ(simulate_policy("lru", {}, 2).value().hit_ratio(), 0.0);
}

TEST(SimulatePolicyCurve, CountsUsableHits) {
  // Two requests of a b c, one of a and one of b c: with room for two blocks FIFO and LRU never hit a prefix.
  const auto accesses = keys({1, 2, 3, 1, 2, 3, 1, 2, 3});
  const std::vector<std::uint64_t> requests{3, 0, 3, 1, 2};
  const std::vector<std::uint64_t> capacities{3, 2, 3};
  const auto lru = simulate_policy_curve("lru", accesses, capacities, requests).value();
  ASSERT_EQ(lru.size(), 3U);
  EXPECT_EQ(lru[0].hits, 6U);
  EXPECT_EQ(lru[0].usable_hits, 6U);
  EXPECT_EQ(lru[1].hits, 0U);
  EXPECT_EQ(lru[2].hits, 6U);
  // The optimum for two blocks keeps 1 and 2 of each request: 3 is never usable, but would not be a hit
  // either.
  const auto best = simulate_policy_curve("belady", accesses, capacities, requests).value();
  EXPECT_EQ(best[1].hits, 4U);
  EXPECT_EQ(best[1].usable_hits, 4U);
}

TEST(SimulatePolicyCurve, SaysWhatDoesNotFit) {
  const auto accesses = keys({1, 2, 3});
  const std::vector<std::uint64_t> capacities{1};
  const auto message = [&](std::vector<std::uint64_t> requests) {
    const auto curve = simulate_policy_curve("lru", accesses, capacities, requests);
    if (curve) return std::string("none");
    EXPECT_EQ(curve.error().code, ErrorCode::invalid_argument);
    return curve.error().message;
  };
  EXPECT_EQ(message({1, 1}), "the requests are 2 accesses together, and there are 3");
  EXPECT_EQ(message({2, 2}), "the requests are longer than the 3 accesses together");
  EXPECT_EQ(message({3, ~std::uint64_t{0}}), "the requests are longer than the 3 accesses together");
  const std::vector<std::uint64_t> none{5, 0};
  EXPECT_EQ(simulate_policy_curve("lru", accesses, none).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(simulate_policy_curve("clairvoyant", accesses, capacities).error().code, ErrorCode::not_found);
  EXPECT_TRUE(simulate_policy_curve("fifo", accesses, {}).value().empty());
  EXPECT_EQ(simulate_policy_curve("lru", {}, capacities).value().front().hits, 0U);
}

/// Streams that the default was not tuned on. It may lose a little to LRU, nowhere much.
class DefaultPolicy : public testing::Test {
 protected:
  static constexpr int kAccesses = 60'000;

  void expect_not_below_lru(const std::function<std::uint64_t(int)>& key_of, std::string_view stream) {
    std::vector<Key> accesses;
    accesses.reserve(kAccesses);
    for (int i = 0; i < kAccesses; ++i) accesses.emplace_back(key_of(i));
    for (const std::uint64_t capacity : {10U, 100U, 1000U, 2500U}) {
      const double mine = simulate_policy(eviction_policy_names().front(), accesses, capacity)->hit_ratio();
      const double lru = simulate_policy("lru", accesses, capacity)->hit_ratio();
      EXPECT_GT(mine, lru - 0.015) << stream << " with room for " << capacity;
    }
  }

  /// A number below `limit`, small ones more often: about 1 / number.
  std::uint64_t skewed(double limit) {
    return static_cast<std::uint64_t>(std::pow(limit, uniform_(random_))) - 1;
  }

  double uniform() { return uniform_(random_); }

 private:
  std::mt19937_64 random_{42};
  std::uniform_real_distribution<double> uniform_{0, 1};
};

TEST_F(DefaultPolicy, IsNowhereFarBelowLru) {
  expect_not_below_lru([&](int) { return skewed(20'000); }, "skewed");
  expect_not_below_lru(
      [&](int i) { return i % 2 == 0 ? skewed(20'000) : 1'000'000 + static_cast<std::uint64_t>(i); },
      "skewed with a scan");
  expect_not_below_lru(
      [&](int i) { return static_cast<std::uint64_t>(i * 0.01 + uniform() * uniform() * 1500); },
      "a working set that moves");
  expect_not_below_lru(
      [&](int i) { return static_cast<std::uint64_t>(i / 10'000) * 50'000 + skewed(20'000); },
      "a popularity that changes");
  expect_not_below_lru([&](int) { return static_cast<std::uint64_t>(uniform() * 5000); }, "uniform");
}

TEST_F(DefaultPolicy, KeepsWhatIsReadAgainThroughAScan) {
  // One of ten accesses goes to 30 hot keys; between two reads of one of them 300 others pass.
  std::vector<Key> accesses;
  accesses.reserve(kAccesses);
  for (std::uint64_t i = 0; i < kAccesses; ++i) accesses.emplace_back(i % 10 == 0 ? i / 10 % 30 : 1'000 + i);
  EXPECT_EQ(simulate_policy("lru", accesses, 100)->hits, 0U);
  EXPECT_GT(simulate_policy(eviction_policy_names().front(), accesses, 100)->hit_ratio(), 0.09);
}

}  // namespace
}  // namespace harvest
