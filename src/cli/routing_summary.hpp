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

/// The hit ratio of a policy, over the caches of all layers.
struct HitCurve {
  std::string policy;
  std::vector<double> hit_ratios;  ///< by capacity
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

  /// With a cache for each layer, empty at the beginning: of experts one after the other.
  std::vector<std::uint64_t> capacities;  ///< in experts
  std::vector<HitCurve> curves;
  /// Of whole steps, by room for `kResidentPercent` of a layer's experts.
  std::vector<HitCurve> whole_steps;
};

inline constexpr std::uint64_t kResidentPercent = 40;

/// How far `summarize` tells that it is.
inline constexpr std::uint64_t kReplays = 16;

/// Cost: about 10 us for each layer and token.
[[nodiscard]] Result<RoutingSummary> summarize(const moe::RoutingTrace& trace, Progress& progress);

}  // namespace harvest::cli
