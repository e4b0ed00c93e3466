// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace harvest::testing {

/// Counts what this thread asks `new` for between construction and `stop`.
class AllocationCount {
 public:
  AllocationCount();
  ~AllocationCount() { static_cast<void>(stop()); }
  AllocationCount(const AllocationCount&) = delete;
  AllocationCount& operator=(const AllocationCount&) = delete;
  static std::uint64_t stop();
};

/// Inside of this, nothing is counted.
class NotCounting {
 public:
  NotCounting();
  ~NotCounting();
  NotCounting(const NotCounting&) = delete;
  NotCounting& operator=(const NotCounting&) = delete;

 private:
  bool was_;
};

}  // namespace harvest::testing
