// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/key_hash.hpp"
#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

constexpr std::size_t kNoNextUse = std::numeric_limits<std::size_t>::max();

/// For each access the position of the next one to the same key.
std::vector<std::size_t> next_uses(std::span<const Key> accesses) {
  std::vector<std::size_t> next(accesses.size(), kNoNextUse);
  std::unordered_map<Key, std::size_t, KeyHash> seen_at;
  for (std::size_t i = accesses.size(); i-- > 0;) {
    const auto [found, is_last] = seen_at.try_emplace(accesses[i], i);
    if (!is_last) next[i] = std::exchange(found->second, i);
  }
  return next;
}

}  // namespace

PolicyRun run_belady(std::span<const Key> accesses, std::uint64_t capacity_objects) {
  const std::vector<std::size_t> next = next_uses(accesses);
  // A resident is known by the position of its next use, so a hit is an access at such a position.
  std::vector<bool> resident_until(accesses.size(), false);
  std::priority_queue<std::size_t> farthest;  // those positions, and past ones, which never come to its top
  std::uint64_t residents = 0;

  PolicyRun run{accesses.size(), 0};
  for (std::size_t now = 0; now < accesses.size(); ++now) {
    if (resident_until[now]) {
      ++run.hits;
      --residents;
    }
    // What is never used again leaves, or does not come, at no loss to anybody.
    if (next[now] == kNoNextUse) continue;
    if (residents == capacity_objects) {
      if (farthest.top() <= next[now]) continue;
      resident_until[farthest.top()] = false;
      farthest.pop();
      --residents;
    }
    resident_until[next[now]] = true;
    farthest.push(next[now]);
    ++residents;
  }
  return run;
}

}  // namespace harvest::policy
