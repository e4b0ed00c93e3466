// SPDX-License-Identifier: Apache-2.0
#include "cli/moe/gate_ahead.hpp"

#include <algorithm>

namespace harvest::cli {

void GateAhead::observe(std::uint32_t layer, std::span<const std::uint32_t>) {
  named_.clear();
  layer_ = layer + 1;
  if (!step_ || layer_ == step_->layers()) return;
  step_->distinct_experts(layer_, needed_);
  for (const std::uint32_t expert : needed_)
    if (random_.next_unit() < recall_) named_.push_back(expert);
  auto wrong = std::min<std::size_t>(needed_.size() - named_.size(), experts_ - needed_.size());
  while (wrong > 0) {
    const std::uint32_t expert = random_.next_below(experts_);
    if (std::ranges::find(needed_, expert) != needed_.end()) continue;
    if (std::ranges::find(named_, expert) != named_.end()) continue;
    named_.push_back(expert);
    --wrong;
  }
}

void GateAhead::predict(std::uint32_t layer, std::vector<moe::Guess>& guesses) const {
  if (layer != layer_) return;
  for (const std::uint32_t expert : named_) guesses.push_back({expert, recall_});
}

}  // namespace harvest::cli
