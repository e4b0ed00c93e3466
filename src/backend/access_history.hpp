// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

/// Who touched which bytes when, in the only order that counts: what happens before what.
namespace harvest {

/// For each stream (by a small index) how much of its work is ordered before a point: the first n
/// pieces. What is not mentioned is 0.
class VectorClock {
 public:
  [[nodiscard]] std::uint64_t of(std::size_t stream) const {
    return stream < counts_.size() ? counts_[stream] : 0;
  }
  void set(std::size_t stream, std::uint64_t count) {
    if (stream >= counts_.size()) counts_.resize(stream + 1);
    counts_[stream] = count;
  }
  /// Afterwards everything before `other` is before this point too.
  void join(const VectorClock& other) {
    if (counts_.size() < other.counts_.size()) counts_.resize(other.counts_.size());
    for (std::size_t i = 0; i < other.counts_.size(); ++i)
      counts_[i] = std::max(counts_[i], other.counts_[i]);
  }

 private:
  std::vector<std::uint64_t> counts_;
};

/// One piece of work's use of a run of bytes.
struct Access {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  bool writes = false;
  std::size_t stream = 0;
  std::uint64_t count = 0;  ///< it is its stream's `count`-th piece of work

  [[nodiscard]] bool is_before(const VectorClock& clock) const { return count <= clock.of(stream); }
  [[nodiscard]] bool conflicts_with(const Access& other) const {
    return (writes || other.writes) && begin < other.end && other.begin < end;
  }
};

/// The accesses to one piece of memory that the host does not yet know to be over.
class AccessHistory {
 public:
  /// Forgets what ended before `known`: nothing that comes later can be unordered with it.
  void forget(const VectorClock& known) {
    std::erase_if(accesses_, [&](const Access& access) { return access.is_before(known); });
  }
  /// The first access that conflicts with `next`, work that comes after `order`, or null.
  [[nodiscard]] const Access* find_race(const Access& next, const VectorClock& order) const {
    for (const Access& access : accesses_)
      if (access.conflicts_with(next) && !access.is_before(order)) return &access;
    return nullptr;
  }
  void add(const Access& access) { accesses_.push_back(access); }
  [[nodiscard]] std::size_t size() const { return accesses_.size(); }

 private:
  std::vector<Access> accesses_;
};

}  // namespace harvest
