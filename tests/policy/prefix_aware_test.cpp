// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <harvest/policy.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "policy/live_allocations.hpp"

namespace harvest {
namespace {

const EvictionPolicy::Evictable kAny = [](const Key&) { return true; };

ObjectFacts child_of(std::uint64_t parent) {
  return {1, 1, Key(parent)};
}

/// What goes, in order, until nothing is left.
std::vector<std::uint64_t> order_of(EvictionPolicy& policy,
                                    const EvictionPolicy::Evictable& evictable = kAny) {
  std::vector<std::uint64_t> order;
  while (const auto victim = policy.evict(Key(999), {}, evictable)) order.push_back(victim->low);
  return order;
}

using Numbers = std::vector<std::uint64_t>;

class PrefixAware : public testing::Test {
 protected:
  std::unique_ptr<EvictionPolicy> lru_ = make_eviction_policy("prefix_lru", 100).value();
};

TEST_F(PrefixAware, LeavesGoBeforeTheirPrefix) {
  // 1 - 2 - 3, and 1 - 4, as two requests would read them.
  lru_->insert(1, {});
  lru_->insert(2, child_of(1));
  lru_->insert(3, child_of(2));
  lru_->hit(1);
  lru_->insert(4, child_of(1));
  EXPECT_EQ(order_of(*lru_), (Numbers{3, 2, 4, 1})) << "LRU alone: 2 3 1 4";
  EXPECT_EQ(lru_->size(), 0U);
}

TEST_F(PrefixAware, TheOrderOfArrivalDoesNotMatter) {
  lru_->insert(3, child_of(2));
  lru_->insert(1, {});
  lru_->insert(2, child_of(1));
  EXPECT_EQ(order_of(*lru_), (Numbers{3, 2, 1})) << "LRU alone: 3 1 2";
}

TEST_F(PrefixAware, AParentIsNotThereOrComesAgain) {
  lru_->insert(7, child_of(6));  // its parent never comes
  lru_->insert(1, {});
  lru_->insert(2, child_of(1));
  lru_->erase(1);  // goes for another reason, and comes back
  lru_->insert(3, {});
  lru_->insert(1, {});
  lru_->hit(2);
  EXPECT_EQ(order_of(*lru_), (Numbers{7, 3, 2, 1})) << "2 holds 1 though 1 left in between";
  lru_->insert(1, {});
  lru_->insert(5, {});
  EXPECT_EQ(order_of(*lru_), (Numbers{1, 5})) << "nothing holds 1 any more";
}

TEST_F(PrefixAware, MakesNoRoomForAChildByItsParent) {
  lru_->insert(1, {});
  lru_->insert(2, {});
  EXPECT_EQ(lru_->evict(Key(3), child_of(1), kAny), Key(2));
  EXPECT_EQ(lru_->evict(Key(3), child_of(1), kAny), Key(1)) << "unless nothing else may go";
  lru_->insert(1, {});
  lru_->insert(2, child_of(1));
  EXPECT_EQ(lru_->evict(Key(3), child_of(2), kAny), Key(2)) << "without 1 neither were of use";
}

TEST_F(PrefixAware, ACycleHoldsUpNobody) {
  lru_->insert(1, child_of(2));
  lru_->insert(2, child_of(1));
  lru_->insert(3, child_of(3));
  lru_->insert(4, child_of(1));
  EXPECT_EQ(order_of(*lru_), (Numbers{3, 4, 1, 2}));
}

TEST_F(PrefixAware, WhatOnlyPinnedChildrenHoldMayGo) {
  lru_->insert(1, {});
  lru_->insert(2, child_of(1));
  EXPECT_EQ(order_of(*lru_, [](const Key& key) { return key != Key(2); }), (Numbers{1}));
  EXPECT_TRUE(lru_->contains(2));
}

TEST_F(PrefixAware, PassesOverNoMoreThanTheLimit) {
  for (const std::size_t most : {0U, 2U, 5U, 20U}) {
    const auto policy = make_prefix_aware(make_eviction_policy("lru", 100).value(), most);
    policy->insert(1, {});
    for (std::uint64_t key = 2; key <= 10; ++key) policy->insert(key, child_of(key - 1));
    EXPECT_EQ(policy->evict(Key(99), {}, kAny), Key(std::min<std::uint64_t>(most + 1, 10)));
  }
}

TEST_F(PrefixAware, RemembersNothingOfWhatLeft) {
  const std::int64_t before = test::live_allocations();
  const auto lru = make_eviction_policy("prefix_lru", 64).value();
  for (std::uint64_t key = 1; key < 20'000; ++key) {
    if (lru->size() == 64) {
      ASSERT_TRUE(lru->evict(key, child_of(key - 1), kAny));
    }
    lru->insert(key, child_of(key % 50 == 0 ? 1'000'000 + key : key - 1));
  }
  EXPECT_LT(test::live_allocations() - before, 64 * 6);
}

TEST_F(PrefixAware, WithoutParentsIsItsBase) {
  std::vector<Key> accesses;
  for (std::uint64_t i = 0; i < 20'000; ++i) accesses.emplace_back(i * i % 977 % (1 + i % 400));
  for (const std::string base : {"adaptive_2q", "lru", "lru_2"})
    for (const std::uint64_t capacity : {1U, 20U, 100U})
      EXPECT_EQ(simulate_policy("prefix_" + base, accesses, capacity)->hits,
                simulate_policy(base, accesses, capacity)->hits)
          << base;
  EXPECT_EQ(make_prefix_aware(make_eviction_policy("arc", 5).value())->name(), "prefix_arc");
}

TEST_F(PrefixAware, APrefixIsUsableAsLongAsItIsThere) {
  // One prefix of 8 blocks over and over, between requests that come once, with too little room for all.
  std::vector<Key> accesses;
  std::vector<std::uint64_t> lengths;
  for (std::uint64_t round = 0; round < 100; ++round) {
    for (std::uint64_t block = 0; block < 8; ++block) accesses.emplace_back(block);
    for (std::uint64_t block = 0; block < 6; ++block) accesses.emplace_back(1'000 + round * 10 + block);
    lengths.insert(lengths.end(), {8, 6});
  }
  const std::vector<std::uint64_t> capacities{12};
  const auto usable = [&](std::string_view name) {
    return simulate_policy_curve(name, accesses, capacities, lengths)->front().usable_hits;
  };
  EXPECT_EQ(usable("lru"), 0U) << "the prefix's first block is always what goes first";
  EXPECT_GT(usable("prefix_lru"), 300U);
}

}  // namespace
}  // namespace harvest
