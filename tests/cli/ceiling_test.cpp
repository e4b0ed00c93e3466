// SPDX-License-Identifier: Apache-2.0
#include "cli/ceiling.hpp"

#include <gtest/gtest.h>
#include <harvest/policy.hpp>

#include <algorithm>
#include <random>
#include <vector>

namespace harvest::cli {
namespace {

std::uint64_t count(const std::vector<bool>& flags) {
  return static_cast<std::uint64_t>(std::count(flags.begin(), flags.end(), true));
}

TEST(Ceiling, IsBeladyWhereEveryUseIsAReload) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const std::uint64_t blocks = 2 + random() % 30;
    std::vector<BlockUse> uses;
    std::vector<Key> keys;
    for (int i = 0; i < 300; ++i) {
      keys.emplace_back(random() % blocks);
      uses.push_back({keys.back(), static_cast<std::uint32_t>(i), true});
    }
    const std::uint64_t capacity = 1 + random() % blocks;
    EXPECT_EQ(count(peer_reloads_at_best(uses, capacity)), simulate_policy("belady", keys, capacity)->hits);
  }
}

TEST(Ceiling, StoringABlockBringsItAndMakesTheOlderCopyWorthless) {
  const BlockUse store_a{1, 0, false};
  const BlockUse store_b{2, 0, false};
  const BlockUse reload_a{1, 1, true};
  const BlockUse reload_b{2, 1, true};
  const auto best = [](std::vector<BlockUse> uses, std::uint64_t capacity) {
    return peer_reloads_at_best(uses, capacity);
  };
  EXPECT_EQ(best({store_a, reload_a, reload_a}, 1), (std::vector<bool>{false, true, true}));
  EXPECT_EQ(best({store_a, reload_a}, 0), (std::vector<bool>{false, false}));
  EXPECT_EQ(best({store_a, store_b, reload_a, reload_b}, 1), (std::vector<bool>{false, false, true, false}));
  EXPECT_EQ(best({store_a, store_b, reload_a, reload_b}, 2), (std::vector<bool>{false, false, true, true}));
  EXPECT_EQ(best({store_a, store_b, store_a, reload_b, reload_a}, 1),
            (std::vector<bool>{false, false, false, true, false}))
      << "a copy of the first a has no use, so b can have the room";
}

TEST(Ceiling, TimesAreThoseOfTheWires) {
  const std::vector<BlockUse> uses{{1, 0, false}, {2, 0, false}, {3, 0, false}, {1, 1, true},
                                   {2, 1, true},  {3, 1, true},  {1, 2, true}};
  const Wire peer{5, 4e9};  // 1000 bytes in 250 ns
  const Wire host{20, 1e9};
  const Ceiling two = find_ceiling(uses, 2, 1000, peer, host);
  EXPECT_EQ(two.reloads, 4U);
  EXPECT_EQ(two.from_peer, 3U);  // 1 and 2 of request 1, 1 of request 2
  EXPECT_DOUBLE_EQ(two.one_after_other_ns, (505 + 1020) + 255);
  EXPECT_DOUBLE_EQ(two.overlapping_ns, 1020 + 255);
  const Ceiling none = find_ceiling(uses, 0, 1000, peer, host);
  EXPECT_DOUBLE_EQ(none.one_after_other_ns, 3020 + 1020);
  EXPECT_DOUBLE_EQ(none.overlapping_ns, none.one_after_other_ns);
}

}  // namespace
}  // namespace harvest::cli
