// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/expert_cache.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "transformer/experts.hpp"

namespace harvest::moe_server {

/// Experts that come through Harvest, in the order in which they arrive.
class CachedExperts : public transformer::Experts {
 public:
  /// `between` is called when experts were asked for, and between them: where a server is at work, others are
  /// too, and it may do what they do.
  CachedExperts(moe::ExpertCache& cache, StreamId stream, std::function<Status()> between, bool looks_ahead)
      : cache_(cache), stream_(stream), between_(std::move(between)), looks_ahead_(looks_ahead) {}

  Status run(std::uint32_t layer, std::span<const std::uint32_t> experts, moe::Phase phase,
             const Use& use) override {
    forget_expected();
    auto step = cache_.begin_layer(layer, experts, stream_, phase);
    if (!step) return tl::unexpected(step.error());
    if (Status done = between_(); !done) return done;
    while (const moe::ReadyExpert* expert = step->next()) {
      if (Status used = use(expert->expert, expert->address); !used) return used;
      if (Status done = between_(); !done) return done;
    }
    return cache_.end_layer(std::move(*step));
  }

  [[nodiscard]] bool looks_ahead() const override { return looks_ahead_; }
  /// Fetched while this layer computes, until its turn comes. A hint: what is refused comes when it is
  /// needed.
  void expect(std::uint32_t layer, std::span<const transformer::Choice> likely) override {
    std::map<std::uint32_t, double> most_likely;
    for (const transformer::Choice& choice : likely) {
      double& probability = most_likely[choice.expert];
      probability = std::max<double>(probability, choice.weight);
    }
    for (const auto& [expert, probability] : most_likely)
      if (const auto asked = cache_.prefetch(layer, {&expert, 1}, probability)) expected_.push_back(*asked);
  }

  Status confirm() override { return cache_.confirm(); }

 private:
  /// The layer has come: what has not begun would be in the way. What is done already is not found.
  void forget_expected() {
    for (const moe::PrefetchId id : expected_) static_cast<void>(cache_.cancel(id));
    expected_.clear();
  }

  moe::ExpertCache& cache_;
  StreamId stream_;
  std::function<Status()> between_;
  bool looks_ahead_;
  std::vector<moe::PrefetchId> expected_;
};

}  // namespace harvest::moe_server
