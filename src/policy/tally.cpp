// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "policy/recording.hpp"

namespace harvest::policy {

Tally::Tally(const Recording& recording, std::span<const std::uint64_t> capacities)
    : recording_(recording), capacities_(capacities), levels_(capacities.begin(), capacities.end()) {
  std::sort(levels_.begin(), levels_.end());
  levels_.erase(std::unique(levels_.begin(), levels_.end()), levels_.end());
  first_hits_.resize(levels_.size() + 1);
  first_usable_.resize(levels_.size() + 1);
}

void Tally::hits_from(std::size_t level) {
  usable_from_ = recording_.begins[now_++] ? level : std::max(usable_from_, level);
  ++first_hits_[level];
  ++first_usable_[usable_from_];
}

std::vector<PolicyRun> Tally::runs() const {
  std::vector<PolicyRun> at_level(levels_.size());
  PolicyRun run{recording_.accesses.size(), 0, 0};
  for (std::size_t level = 0; level < levels_.size(); ++level) {
    run.hits += first_hits_[level];
    run.usable_hits += first_usable_[level];
    at_level[level] = run;
  }
  std::vector<PolicyRun> runs;
  runs.reserve(capacities_.size());
  for (const std::uint64_t capacity : capacities_) {
    const auto level = std::lower_bound(levels_.begin(), levels_.end(), capacity) - levels_.begin();
    runs.push_back(at_level[static_cast<std::size_t>(level)]);
  }
  return runs;
}

}  // namespace harvest::policy
