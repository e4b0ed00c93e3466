// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace harvest::core {

/// The streams that read from a cache and share a bit in its objects, by number: each by itself up to
/// `kExact` behind the first; beyond that, where few programs ever get, all up to the highest.
/// Adding allocates nothing and takes no lock.
class StreamSet {
 public:
  static constexpr std::uint32_t kExact = 4096;

  explicit StreamSet(std::uint32_t first) : first_(first) {}

  /// Requires: number >= first.
  [[nodiscard]] bool contains(std::uint32_t number) const {
    const std::uint32_t place = number - first_;
    if (place >= kExact) return number <= highest_.load(std::memory_order_relaxed);
    return (words_[place / 64].load(std::memory_order_relaxed) >> (place % 64) & 1U) != 0;
  }
  void add(std::uint32_t number) {
    const std::uint32_t place = number - first_;
    if (place < kExact) {
      words_[place / 64].fetch_or(1ULL << (place % 64), std::memory_order_relaxed);
      return;
    }
    std::uint32_t highest = highest_.load(std::memory_order_relaxed);
    while (highest < number && !highest_.compare_exchange_weak(highest, number, std::memory_order_relaxed)) {
    }
  }

  template <typename Visit>
  void for_each(Visit visit) const {
    for (std::size_t word = 0; word < words_.size(); ++word)
      for (std::uint64_t left = words_[word].load(std::memory_order_acquire); left != 0; left &= left - 1)
        visit(first_ + static_cast<std::uint32_t>(word * 64) +
              static_cast<std::uint32_t>(std::countr_zero(left)));
    const std::uint32_t highest = highest_.load(std::memory_order_acquire);
    for (std::uint32_t number = first_ + kExact; number <= highest; ++number) visit(number);
  }

 private:
  std::uint32_t first_;
  std::array<std::atomic<std::uint64_t>, kExact / 64> words_{};
  std::atomic<std::uint32_t> highest_{0};  ///< beyond those that have a bit
};

}  // namespace harvest::core
