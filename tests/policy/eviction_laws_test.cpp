// SPDX-License-Identifier: Apache-2.0
#include "policy/eviction_laws.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "policy/broken_policies.hpp"

namespace harvest::test {
namespace {

class EvictionLaws : public testing::TestWithParam<std::tuple<std::string_view, EvictionLaw>> {};

TEST_P(EvictionLaws, AreKept) {
  const auto& [name, law] = GetParam();
  const std::string_view policy = name;
  const auto violation = law.broken_by(
      [&](std::uint64_t capacity_bytes) { return make_eviction_policy(policy, capacity_bytes).value(); });
  EXPECT_FALSE(violation) << policy << ": " << *violation;
}

std::string test_name(const testing::TestParamInfo<EvictionLaws::ParamType>& info) {
  return std::string(std::get<0>(info.param)) + "_" + std::string(std::get<1>(info.param).name);
}

INSTANTIATE_TEST_SUITE_P(AllPolicies, EvictionLaws,
                         testing::Combine(testing::ValuesIn(eviction_policy_names().begin(),
                                                            eviction_policy_names().end()),
                                          testing::ValuesIn(eviction_laws().begin(), eviction_laws().end())),
                         test_name);

TEST(EvictionLawsThemselves, AcceptASoundPolicy) {
  for (const EvictionLaw& law : eviction_laws()) {
    const auto violation = law.broken_by(make_sound_policy);
    EXPECT_FALSE(violation) << law.name << ": " << *violation;
  }
}

TEST(EvictionLawsThemselves, RejectEachBrokenPolicy) {
  for (const BrokenPolicy& broken : broken_policies()) {
    const auto law = std::find_if(eviction_laws().begin(), eviction_laws().end(),
                                  [&](const EvictionLaw& each) { return each.name == broken.law; });
    ASSERT_NE(law, eviction_laws().end()) << "no law " << broken.law;
    EXPECT_TRUE(law->broken_by(broken.make)) << broken.law << " accepts a policy that " << broken.fault;
  }
}

TEST(EvictionLawsThemselves, CanEachBeBroken) {
  for (const EvictionLaw& law : eviction_laws()) {
    EXPECT_TRUE(std::any_of(broken_policies().begin(), broken_policies().end(),
                            [&](const BrokenPolicy& broken) { return broken.law == law.name; }))
        << "no broken policy shows that " << law.name << " can fail";
  }
}

TEST(EvictionPolicyNames, AreWhatThePoliciesSay) {
  for (const std::string_view name : eviction_policy_names()) {
    EXPECT_EQ(make_eviction_policy(name, 10).value()->name(), name);
  }
  const auto unknown = make_eviction_policy("clairvoyant", 10);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::not_found);
  for (const std::string_view name : eviction_policy_names()) {
    EXPECT_NE(unknown.error().message.find(name), std::string::npos) << unknown.error().message;
  }
}

/// The one policy that looks at cost and size.
TEST(Gdsf, EvictsTheCheapAndLargeFirst) {
  const auto gdsf = make_eviction_policy("gdsf", 100).value();
  gdsf->insert(Key(1), {10, 1000});
  gdsf->insert(Key(2), {10, 10});
  gdsf->insert(Key(3), {40, 1000});
  const EvictionPolicy::Evictable any = [](const Key&) { return true; };
  EXPECT_EQ(gdsf->evict(Key(4), {}, any), Key(2));
  EXPECT_EQ(gdsf->evict(Key(4), {}, any), Key(3));
  EXPECT_EQ(gdsf->evict(Key(4), {}, any), Key(1));
}

}  // namespace
}  // namespace harvest::test
