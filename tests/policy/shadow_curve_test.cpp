// SPDX-License-Identifier: Apache-2.0
#include "policy/shadow_curve.hpp"

#include <gtest/gtest.h>
#include <harvest/policy.hpp>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "policy/live_allocations.hpp"

namespace harvest {
namespace {

using policy::ShadowCurve;

constexpr std::uint64_t kMiB = 1ULL << 20;

/// Skewed, and every other access a key that never comes again.
std::vector<Key> skewed_with_scan(std::size_t length, double keys) {
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<Key> accesses;
  for (std::size_t i = 0; i < length; ++i)
    accesses.emplace_back(i % 2 == 0 ? static_cast<std::uint64_t>(std::pow(keys, uniform(random)))
                                     : 1'000'000'000 + i);
  return accesses;
}

TEST(ShadowCurve, IsLruWhereTheSampleHoldsAll) {
  const auto accesses = skewed_with_scan(6'000, 2'000);
  ShadowCurve curve(1'000 * kMiB);
  for (const Key& key : accesses) curve.access(key, kMiB);
  for (const std::uint64_t capacity : {64U, 250U, 500U, 1'000U, 1'500U, 2'000U, 4'000U})
    EXPECT_NEAR(curve.hit_ratio(capacity * kMiB), simulate_policy("lru", accesses, capacity)->hit_ratio(),
                .003)
        << capacity;
}

/// The bound that `CacheStats::shadow` states.
TEST(ShadowCurve, IsNearLruWhereTheSampleIsSmall) {
  const auto accesses = skewed_with_scan(600'000, 400'000);
  for (const std::uint64_t capacity : {5'000U, 40'000U}) {
    ShadowCurve curve(capacity * kMiB);
    for (const Key& key : accesses) curve.access(key, kMiB);
    for (const double multiple : {.5, 1., 1.25, 1.5, 2., 4.}) {
      const auto objects = static_cast<std::uint64_t>(multiple * static_cast<double>(capacity));
      EXPECT_NEAR(curve.hit_ratio(objects * kMiB), simulate_policy("lru", accesses, objects)->hit_ratio(),
                  .01)
          << objects;
    }
  }
}

TEST(ShadowCurve, CountsBytesNotObjects) {
  ShadowCurve curve(1 << 20);
  EXPECT_FALSE(curve.has_accesses());
  EXPECT_EQ(curve.hit_ratio(1 << 20), 0);
  for (int round = 0; round < 2; ++round) {
    curve.access(1, 1 << 10);
    curve.access(2, 3 << 10);
  }
  EXPECT_EQ(curve.hit_ratio(1 << 11), 0);
  EXPECT_EQ(curve.hit_ratio(1 << 12), 0.5) << "two of four, with room for both";
  EXPECT_EQ(curve.hit_ratio(0), 0);
  EXPECT_EQ(curve.hit_ratio(UINT64_MAX), 0.5);
}

TEST(ShadowCurve, ForgetsWhatIsErased) {
  ShadowCurve curve(1 << 20);
  curve.access(1, 1 << 10);
  curve.access(2, 1 << 10);
  curve.forget(2);
  curve.forget(3);
  curve.access(1, 1 << 10);
  EXPECT_EQ(curve.hit_ratio(1 << 10), 1.0 / 3) << "2 is not in the way any more";
  curve.access(2, 1 << 10);
  EXPECT_EQ(curve.hit_ratio(1 << 20), 1.0 / 4) << "and comes for the first time";
}

TEST(ShadowCurve, FollowsTheTraffic) {
  ShadowCurve curve(100 * kMiB);
  const auto accesses = static_cast<std::uint64_t>(ShadowCurve::kWindow);
  for (std::uint64_t i = 0; i < accesses; ++i) curve.access(i, kMiB);
  EXPECT_LT(curve.hit_ratio(100 * kMiB), .01);
  for (std::uint64_t i = 0; i < 2 * accesses; ++i) curve.access(i % 50, kMiB);
  EXPECT_GT(curve.hit_ratio(100 * kMiB), .7);
}

TEST(ShadowCurve, IsBoundedAndAgrees) {
  const std::int64_t before = test::live_allocations();
  ShadowCurve curve(1'000'000 * kMiB);
  std::vector<double> ratios;
  for (std::uint64_t i = 0; i < 1'000'000; ++i) curve.access(i % 300'000, i % 5 * kMiB);
  EXPECT_LT(test::live_allocations() - before, static_cast<std::int64_t>(ShadowCurve::kMostSampled) + 16);
  // A larger tier never hits less, whatever comes of it.
  for (std::uint64_t capacity = 1; capacity < 1ULL << 63U; capacity *= 2)
    ratios.push_back(curve.hit_ratio(capacity));
  EXPECT_TRUE(std::is_sorted(ratios.begin(), ratios.end()));
  // Objects of any size, and a tier without room, do no harm.
  curve.set_capacity(0);
  curve.access(1, UINT64_MAX >> 18U);
  curve.access(1, UINT64_MAX >> 18U);
  EXPECT_LE(curve.hit_ratio(UINT64_MAX), 1.0);
}

/// What is too long ago to matter makes way for a finer sample of what does.
TEST(ShadowCurve, StaysFineInASmallTierThroughWhichMuchRuns) {
  std::vector<Key> accesses;
  for (std::uint64_t i = 0; i < 400'000; ++i) accesses.emplace_back(i % 4 == 0 ? i / 4 % 150 : 1'000 + i);
  ShadowCurve curve(400 * kMiB);
  for (const Key& key : accesses) curve.access(key, kMiB);
  for (const std::uint64_t capacity : {400U, 800U})
    EXPECT_NEAR(curve.hit_ratio(capacity * kMiB), simulate_policy("lru", accesses, capacity)->hit_ratio(),
                .001)
        << capacity;
}

}  // namespace
}  // namespace harvest
