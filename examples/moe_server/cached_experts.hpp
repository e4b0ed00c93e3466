// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/expert_cache.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "transformer/experts.hpp"

namespace harvest::moe_server {

/// Experts that come through Harvest, in the order in which they arrive.
class CachedExperts : public transformer::Experts {
 public:
  /// `between` is called when experts were asked for, and between them: where a server is at work, others are
  /// too, and it may do what they do.
  CachedExperts(moe::ExpertCache& cache, StreamId stream, std::function<Status()> between)
      : cache_(cache), stream_(stream), between_(std::move(between)) {}

  Status run(std::uint32_t layer, std::span<const std::uint32_t> experts, moe::Phase phase,
             const Use& use) override {
    auto step = cache_.begin_layer(layer, experts, stream_, phase);
    if (!step) return tl::unexpected(step.error());
    if (Status done = between_(); !done) return done;
    while (const moe::ReadyExpert* expert = step->next()) {
      if (Status used = use(expert->expert, expert->address); !used) return used;
      if (Status done = between_(); !done) return done;
    }
    return cache_.end_layer(std::move(*step));
  }
  Status confirm() override { return cache_.confirm(); }

 private:
  moe::ExpertCache& cache_;
  StreamId stream_;
  std::function<Status()> between_;
};

}  // namespace harvest::moe_server
