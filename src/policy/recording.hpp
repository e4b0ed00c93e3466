// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/policy.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

/// Recorded accesses as requests, and how often they hit at each of several capacities.
namespace harvest::policy {

struct Recording {
  std::span<const Key> accesses;
  std::vector<bool> begins;  ///< by access: it is the first of its request, and needs nothing before it
};

/// Counts the hits of accesses in order, for policies of which a larger cache holds all that a smaller one
/// holds: one number for each access says at which capacities it hits.
class Tally {
 public:
  /// `capacities` in any order, at least one.
  Tally(const Recording& recording, std::span<const std::uint64_t> capacities);

  /// Ascending, each once; `level` below is a place in it.
  [[nodiscard]] const std::vector<std::uint64_t>& levels() const { return levels_; }

  /// The next access hits from `level` on; nowhere if that is levels().size().
  void hits_from(std::size_t level);

  /// One run for each of the capacities, in their order.
  [[nodiscard]] std::vector<PolicyRun> runs() const;

 private:
  const Recording& recording_;
  std::span<const std::uint64_t> capacities_;
  std::vector<std::uint64_t> levels_;
  std::size_t now_ = 0;
  std::size_t usable_from_ = 0;              ///< the least level at which all of the request so far hit
  std::vector<std::uint64_t> first_hits_;    ///< accesses by the least level at which they hit
  std::vector<std::uint64_t> first_usable_;  ///< and at which all before them in their request hit too
};

/// LRU at every capacity in one pass (Mattson et al., "Evaluation techniques for storage hierarchies", 1970):
/// an access hits where there is room for all that was accessed since the last one to its key. O(log n) an
/// access.
[[nodiscard]] std::vector<PolicyRun> lru_curve(const Recording& recording,
                                               std::span<const std::uint64_t> capacities);

/// The offline optimum for objects of one size, at every capacity in one pass: the resident whose next use is
/// farthest goes, and an object whose next use is farther still does not come in. O(k log n) an access for k
/// capacities, less where it hits a small one.
[[nodiscard]] std::vector<PolicyRun> belady_curve(const Recording& recording,
                                                  std::span<const std::uint64_t> capacities);

}  // namespace harvest::policy
