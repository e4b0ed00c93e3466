// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/routing.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.hpp"

namespace harvest::cli {

/// The mean over layers of what is one number for each, and where it lies.
struct OverLayers {
  double mean = 0;
  double least = 0;
  double most = 0;
};

/// What caches for each layer do with a policy, all layers together; empty at the beginning.
struct PolicyFigures {
  std::string policy;
  std::vector<double> hit_ratios;    ///< of whole steps, by `RoutingSummary::capacities`
  double miss_ratio = 0;             ///< of whole steps, with room for `RoutingSummary::resident`
  double miss_ratio_one_by_one = 0;  ///< the same, of one expert after the other
};

/// What a recording's decode steps are like. Ratios of what there is none of are 0.
struct RoutingSummary {
  std::uint64_t prefill_steps = 0;
  std::uint64_t decode_steps = 0;
  std::uint64_t sequences = 0;
  std::uint64_t decode_tokens = 0;
  double distinct_experts = 0;  ///< that a layer of a decode step needs, the mean
  double prefill_experts = 0;   ///< the same of a prefill step

  /// Share of a token's experts that the sequence's token before it had too.
  OverLayers overlap;
  /// Share of tokens, of the second half of them, whose first expert is the one that in the first half
  /// followed most often on the first expert of the layer before.
  OverLayers next_layer;
  /// Share of picks that go to the eighth of the experts that is picked most.
  OverLayers skew;

  std::vector<std::uint64_t> capacities;  ///< in experts: a sixteenth of a layer to the half of it
  std::uint64_t resident = 0;             ///< `kResidentPercent` of a layer, in experts
  std::vector<PolicyFigures> policies;
};

inline constexpr std::uint64_t kResidentPercent = 40;

/// Cost: about 10 us for each layer and token. Errors: of the policies.
[[nodiscard]] Result<RoutingSummary> summarize(const moe::RoutingTrace& trace);

}  // namespace harvest::cli
