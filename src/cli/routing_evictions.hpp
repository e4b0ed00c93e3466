// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/routing.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

/// What the expert cache's own evictions miss: one cache for all layers, where `routing_replay` has one for
/// each.
namespace harvest::cli {

struct EvictionFigures {
  std::string eviction;   ///< one of `moe::expert_eviction_names()`, or `belady`
  double miss_ratio = 0;  ///< of the experts that decode's layer steps need; 0 if there are none
};

/// Replays decode's layer steps through a `moe::ExpertCache` with `slots` slots, empty at the beginning, on a
/// simulated machine without peers; each step's experts have come before the next step begins. Errors:
/// not_found (a name), invalid_argument (fewer than 2 slots).
[[nodiscard]] Result<EvictionFigures> replay_eviction(std::string_view name, const moe::RoutingTrace& trace,
                                                      std::uint64_t slots);

/// What no eviction can beat: keeps, of what is there and what a layer step needs, those that are needed
/// soonest. It need not keep what it uses.
[[nodiscard]] EvictionFigures replay_belady(const moe::RoutingTrace& trace, std::uint64_t slots);

/// Each of the evictions, and Belady's last.
[[nodiscard]] Result<std::vector<EvictionFigures>> replay_evictions(const moe::RoutingTrace& trace,
                                                                    std::uint64_t slots);

}  // namespace harvest::cli
