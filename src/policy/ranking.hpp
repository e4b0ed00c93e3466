// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>

#include "policy/entry_table.hpp"

namespace harvest::policy {

/// The worth of an entry: the least goes first, and of equals the one that was accessed longest ago. No two
/// entries have the same `access`.
struct Rank {
  double worth = 0;
  std::uint64_t access = 0;  ///< the policy's count of accesses at this entry's last one
  friend bool operator<(const Rank& a, const Rank& b) {
    return a.worth != b.worth ? a.worth < b.worth : a.access < b.access;
  }
};

struct Ranked {
  Rank rank;
};

/// Entries in the order of their ranks. `Entry` has a field `rank`, which only this class changes.
/// All operations are O(log n) but `least_where`, which also pays for the entries that it passes.
template <typename Entry>
class Ranking {
 public:
  [[nodiscard]] bool empty() const { return order_.empty(); }

  void add(Entry& entry, const Rank& rank) {
    entry.rank = rank;
    order_.emplace(rank, &entry);
  }

  void move(Entry& entry, const Rank& rank) {
    auto node = order_.extract(entry.rank);  // its memory is used again
    entry.rank = node.key() = rank;
    order_.insert(std::move(node));
  }

  void remove(Entry& entry) { order_.erase(entry.rank); }

  /// The entry of least rank whose key `accepts`, or null.
  template <typename Accepts>
  [[nodiscard]] Entry* least_where(const Accepts& accepts) const {
    for (const auto& [rank, entry] : order_) {
      if (accepts(entry->key)) return entry;
    }
    return nullptr;
  }

 private:
  std::map<Rank, Entry*> order_;
};

}  // namespace harvest::policy
