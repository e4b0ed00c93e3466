// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <harvest/policy.hpp>

#include "policy/live_allocations.hpp"

namespace harvest {
namespace {

constexpr std::uint64_t kCapacity = 100;

bool asks_and_is_admitted(AdmissionPolicy& policy, const Key& key, std::uint64_t bytes = 1) {
  policy.record(key, {bytes, 1});
  return policy.admit(key, {bytes, 1}, false);
}

TEST(AdmissionPolicies, AreKnownByName) {
  EXPECT_EQ(admission_policy_names().front(), "always");
  for (const std::string_view name : admission_policy_names()) {
    const auto policy = make_admission_policy(name, kCapacity).value();
    EXPECT_EQ(policy->name(), name);
    EXPECT_TRUE(policy->admit(Key(1), {}, true)) << name << " leaves room empty";
  }
}

TEST(SecondHit, KeepsAScanOutAndLetsReuseIn) {
  const auto policy = make_admission_policy("second_hit", kCapacity).value();
  EXPECT_FALSE(policy->admit(Key(0), {}, false)) << "never asked for";
  for (std::uint64_t number = 0; number < 5 * kCapacity; ++number) {
    EXPECT_FALSE(asks_and_is_admitted(*policy, Key(number)));
  }
  // Its reuse came after five times the capacity.
  EXPECT_TRUE(asks_and_is_admitted(*policy, Key(0)));
  EXPECT_TRUE(policy->admit(Key(0), {}, false)) << "asking does not use it up";
}

TEST(SecondHit, ForgetsInOrderOfTheLastRequestAndCountsBytes) {
  const auto policy = make_admission_policy("second_hit", kCapacity).value();
  policy->record(Key(1), {});
  policy->record(Key(2), {});
  policy->record(Key(1), {});
  policy->record(Key(3), {16 * kCapacity - 1, 1});  // with key 1 the history is full
  EXPECT_TRUE(policy->admit(Key(1), {}, false));
  EXPECT_FALSE(asks_and_is_admitted(*policy, Key(2)));
}

TEST(SecondHit, HistoryFollowsTheCapacity) {
  const std::int64_t before = test::live_allocations();
  const auto policy = make_admission_policy("second_hit", kCapacity).value();
  for (std::uint64_t number = 0; number < 1000 * kCapacity; ++number) policy->record(Key(number), {});
  EXPECT_LT(test::live_allocations() - before, static_cast<std::int64_t>(20 * kCapacity));
  policy->set_capacity(1);
  EXPECT_LT(test::live_allocations() - before, 20);
  policy->set_capacity(0);
  EXPECT_FALSE(asks_and_is_admitted(*policy, Key(7)));
  EXPECT_FALSE(asks_and_is_admitted(*policy, Key(7))) << "a tier without room has no history";
}

}  // namespace
}  // namespace harvest
