// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace harvest::policy {

/// A row of numbers that change, and their sums from the first on (Fenwick 1994). O(log n) a call.
class RunningSums {
 public:
  explicit RunningSums(std::size_t length) : sums_(length + 1, 0) {}

  [[nodiscard]] std::size_t length() const { return sums_.size() - 1; }

  /// Requires: at < length().
  void add(std::size_t at, std::int64_t amount) {
    for (std::size_t i = at + 1; i < sums_.size(); i += i & (~i + 1)) sums_[i] += amount;
  }

  /// The sum of the numbers at 0 .. end - 1. Requires: end <= length().
  [[nodiscard]] std::int64_t before(std::size_t end) const {
    std::int64_t sum = 0;
    for (std::size_t i = end; i > 0; i -= i & (~i + 1)) sum += sums_[i];
    return sum;
  }

 private:
  std::vector<std::int64_t> sums_;
};

}  // namespace harvest::policy
