// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <unordered_map>

#include "base/key_hash.hpp"
#include "policy/recording.hpp"
#include "policy/running_sums.hpp"

namespace harvest::policy {

std::vector<PolicyRun> lru_curve(const Recording& recording, std::span<const std::uint64_t> capacities) {
  Tally tally(recording, capacities);
  const auto& levels = tally.levels();
  RunningSums last_accesses(recording.accesses.size());  // a 1 where a key was accessed last
  std::unordered_map<Key, std::size_t, KeyHash> accessed_at;
  for (std::size_t now = 0; now < recording.accesses.size(); ++now) {
    const auto [last, is_new] = accessed_at.try_emplace(recording.accesses[now], now);
    std::size_t level = levels.size();
    if (!is_new) {
      // The keys accessed since, and this one itself.
      const auto keys =
          static_cast<std::uint64_t>(last_accesses.before(now) - last_accesses.before(last->second));
      level = static_cast<std::size_t>(std::lower_bound(levels.begin(), levels.end(), keys) - levels.begin());
      last_accesses.add(last->second, -1);
      last->second = now;
    }
    last_accesses.add(now, 1);
    tally.hits_from(level);
  }
  return tally.runs();
}

}  // namespace harvest::policy
