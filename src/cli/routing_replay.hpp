// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/routing.hpp>
#include <harvest/policy.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

/// What caches of experts would hit on a recording.
namespace harvest::cli {

/// The experts that one layer needs, step after step: in a step each once, ascending.
struct LayerAccesses {
  std::vector<Key> experts;
  std::vector<std::size_t> ends;  ///< of each step in `experts`
};

/// Of the decode steps.
[[nodiscard]] LayerAccesses layer_accesses(const moe::RoutingTrace& trace, std::uint32_t layer);

/// Replays whole layer steps, as the expert cache meets them: what a step needs is looked for at once, and
/// what it needs is not evicted for it. What finds no room is used and not kept. `name` as of
/// `simulate_policy`. Errors: not_found, invalid_argument (capacity 0).
[[nodiscard]] Result<PolicyRun> simulate_steps(std::string_view name, const LayerAccesses& accesses,
                                               std::uint64_t capacity_experts);

}  // namespace harvest::cli
