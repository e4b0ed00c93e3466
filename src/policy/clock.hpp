// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "policy/entry_table.hpp"

namespace harvest::policy {

/// Hits that an entry has not spent yet. Each buys it one more round through a queue.
struct Rounds {
  static constexpr std::uint8_t kMost = 3;

  std::uint8_t rounds = 0;

  void count_hit() {
    if (rounds < kMost) ++rounds;
  }
};

/// The entry that a queue with second chances (CLOCK, FIFO-reinsertion) evicts, or null if `accepts` takes
/// none. It stays on the queue. Cost: O(1) amortised over the hits, and the entries not accepted.
template <typename Entry, typename Accepts>
[[nodiscard]] Entry* clock_victim(EntryList<Entry>& queue, const Accepts& accepts) {
  // Ends, for each turn passes an entry for good or takes a round from one.
  for (Entry* entry = queue.oldest(); entry != nullptr;) {
    Entry& candidate = *entry;
    if (!accepts(candidate.key)) {
      entry = candidate.newer;
    } else if (candidate.rounds == 0) {
      return &candidate;
    } else {
      --candidate.rounds;
      entry = candidate.newer == nullptr ? &candidate : candidate.newer;
      queue.push(candidate);
    }
  }
  return nullptr;
}

}  // namespace harvest::policy
