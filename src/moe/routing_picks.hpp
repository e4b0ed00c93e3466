// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

/// What the generator of routing draws with. All arithmetic is of integers: the same on every platform.
namespace harvest::moe {

/// An expert, before a layer's own order is applied: the expert that follows from another in the next layer
/// is the one of the same slot.
using Slot = std::uint16_t;
inline constexpr std::size_t kMostSlots = 1024;

/// Slots, each once.
class SlotSet {
 public:
  /// False if it was there.
  bool insert(Slot slot) {
    std::uint64_t& word = words_[slot / 64U];
    const std::uint64_t bit = 1ULL << (slot % 64U);
    const bool is_new = (word & bit) == 0;
    word |= bit;
    size_ += is_new ? 1 : 0;
    return is_new;
  }
  [[nodiscard]] std::uint32_t size() const { return size_; }

  /// Ascending.
  template <typename Visit>
  void for_each(Visit visit) const {
    for (std::size_t i = 0; i < words_.size(); ++i)
      for (std::uint64_t word = words_[i]; word != 0; word &= word - 1)
        visit(static_cast<Slot>(64 * i + static_cast<std::size_t>(std::countr_zero(word))));
  }

 private:
  std::array<std::uint64_t, kMostSlots / 64> words_{};
  std::uint32_t size_ = 0;
};

/// A rank from 0, in proportion to 1 / (rank + spread)^3.
class RankTable {
 public:
  /// `spread` in sixteenths. `is_absent` is about `tokens` with `picks` different ranks each. Requires: at
  /// most 1,024 ranks; a spread from 1 to 512.
  RankTable(std::uint32_t ranks, std::uint64_t spread, std::uint32_t picks, std::uint32_t tokens) {
    std::vector<std::uint64_t> weights(ranks);
    for (std::uint64_t r = 0; r < ranks; ++r) {
      const std::uint64_t x = 16 * r + spread;  // at most 16 * 1,536: the third power has 44 bits
      weights[r] = (1ULL << 60U) / (x * x * x);
    }
    const std::uint64_t sum = std::accumulate(weights.begin(), weights.end(), std::uint64_t{0}) + 1;
    std::uint64_t below = 0;
    for (const std::uint64_t weight : weights) {
      below += weight;
      ends_.push_back(share_32(below, sum));
    }
    ends_.back() = UINT32_MAX;
    for (std::uint32_t i = 0, rank = 0; i < kStarts; ++i) {
      while (ends_[rank] < i << kStartShift) ++rank;
      starts_[i] = static_cast<std::uint16_t>(rank);
    }
    const std::uint64_t draws = tokens * draws_for(picks);
    for (std::uint32_t r = 0; r < ranks; ++r) absent_.push_back(power_32(others(r), draws));
  }

  /// The rank that 32 random bits mean.
  [[nodiscard]] std::uint32_t rank(std::uint32_t random) const {
    std::uint32_t rank = starts_[random >> kStartShift];
    while (ends_[rank] < random) ++rank;
    return rank;
  }

  /// Whether, by 32 random bits, none of the tokens has the rank.
  [[nodiscard]] bool is_absent(std::uint32_t rank, std::uint32_t random) const {
    return random < absent_[rank];
  }

 private:
  static constexpr std::uint32_t kStarts = 256;
  static constexpr std::uint32_t kStartShift = 24;

  /// The chance, of 2^32, that a draw gives another rank.
  [[nodiscard]] std::uint64_t others(std::uint32_t rank) const {
    return (1ULL << 32U) - ends_[rank] + (rank == 0 ? 0 : ends_[rank - 1]);
  }

  /// How many draws, which may repeat, are expected to give so many different ranks; but for a few.
  [[nodiscard]] std::uint64_t draws_for(std::uint32_t picks) const {
    std::uint64_t low = picks;
    std::uint64_t high = 16ULL * picks;
    while (low < high) {
      const std::uint64_t draws = (low + high) / 2;
      std::uint64_t different = 0;  // of 2^32
      for (std::uint32_t r = 0; r < ends_.size(); ++r)
        different += (1ULL << 32U) - power_32(others(r), draws);
      if (different < std::uint64_t{picks} << 32U)
        low = draws + 1;
      else
        high = draws;
    }
    return low;
  }

  /// `part` / `whole` of 2^32. Requires: `part` < `whole` < 2^63.
  static std::uint32_t share_32(std::uint64_t part, std::uint64_t whole) {
    std::uint32_t share = 0;
    for (int bit = 0; bit < 32; ++bit) {
      part <<= 1U;
      share = share << 1U | (part >= whole ? 1U : 0U);
      if (part >= whole) part -= whole;
    }
    return share;
  }

  /// The power of a share of 2^32, which is at most 2^32.
  static std::uint64_t power_32(std::uint64_t share, std::uint64_t exponent) {
    std::uint64_t power = 1ULL << 32U;
    for (; exponent > 0; exponent >>= 1U) {
      if ((exponent & 1U) != 0) power = power * (share >> 1U) >> 31U;
      share = share * (share >> 1U) >> 31U;
    }
    return power;
  }

  std::vector<std::uint32_t> ends_;              ///< of each rank, in the numbers that are drawn
  std::vector<std::uint64_t> absent_;            ///< by rank: the chance, of 2^32
  std::array<std::uint16_t, kStarts> starts_{};  ///< where to begin to look
};

}  // namespace harvest::moe
