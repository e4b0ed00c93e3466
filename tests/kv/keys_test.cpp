// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <harvest/kv/keys.hpp>

#include <numeric>
#include <set>

namespace harvest::kv {
namespace {

std::vector<Token> tokens(std::size_t count, Token first = 0) {
  std::vector<Token> all(count);
  std::iota(all.begin(), all.end(), first);
  return all;
}

TEST(BlockKeys, NameFullBlocksOnly) {
  EXPECT_EQ(block_keys(tokens(63), 16).size(), 3U);
  EXPECT_EQ(block_keys(tokens(64), 16).size(), 4U);
  EXPECT_TRUE(block_keys(tokens(15), 16).empty());
  EXPECT_TRUE(block_keys({}, 16).empty());
}

TEST(BlockKeys, EqualPrefixesMeetAndEndWhereTheyDiffer) {
  auto one = tokens(96);
  auto two = one;
  two[40] = 7777;
  const auto a = block_keys(one, 16), b = block_keys(two, 16);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i] == b[i], i < 2) << i;
}

TEST(BlockKeys, TheSameTokensBehindAnotherBeginningAreAnotherBlock) {
  auto twice = tokens(16);
  twice.insert(twice.end(), twice.begin(), twice.begin() + 16);
  const auto keys = block_keys(twice, 16);
  EXPECT_NE(keys[0], keys[1]);
}

TEST(BlockKeys, SaltsShareNothing) {
  std::set<Key> seen;
  for (std::uint64_t salt = 0; salt < 100; ++salt)
    for (const Key& key : block_keys(tokens(64), 16, salt)) seen.insert(key);
  EXPECT_EQ(seen.size(), 400U);
}

TEST(BlockKeys, BlockSizesShareNothing) {
  EXPECT_NE(block_keys(tokens(32), 16).back(), block_keys(tokens(32), 32).back());
}

TEST(BlockKeys, GrowAsTheWholeWould) {
  const auto all = tokens(1000, 5);
  const auto whole = block_keys(all, 48, 9);
  for (const std::size_t step : {1UL, 7UL, 48UL, 49UL, 333UL}) {
    BlockKeys keys(48, 9);
    for (std::size_t at = 0; at < all.size(); at += step)
      keys.append(std::span(all).subspan(at, std::min(step, all.size() - at)));
    EXPECT_EQ(std::vector(keys.keys().begin(), keys.keys().end()), whole) << "steps of " << step;
    EXPECT_EQ(keys.tokens(), all.size());
  }
}

/// Whoever stores keys wants them to mean the same tomorrow.
TEST(BlockKeys, StayWhatTheyAre) {
  const auto keys = block_keys(tokens(32), 16, 1);
  ASSERT_EQ(keys.size(), 2U);
  EXPECT_EQ(keys[0], Key(0xb27d30db6d163359, 0xb99a0f8c58ea1adb));
  EXPECT_EQ(keys[1], Key(0xa0fc2eac7336aa61, 0x91e6651b569636a7));
}

TEST(BlockKeys, AHundredThousandDoNotCollide) {
  std::set<Key> seen;
  std::vector<Token> token(1);
  for (Token first = 0; first < 100'000; ++first) {
    token[0] = first;
    seen.insert(block_keys(token, 1).front());
  }
  EXPECT_EQ(seen.size(), 100'000U);
}

}  // namespace
}  // namespace harvest::kv
