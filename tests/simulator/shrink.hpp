// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "simulator/trial.hpp"

namespace harvest::simulator {

/// Looks for the smallest case that breaks the same invariant as `failed`: fewer operations, fewer faults, a
/// smaller machine. `tell` hears of each that is smaller. At most `attempts` lives.
[[nodiscard]] Outcome shrink(Outcome failed, TrialOptions options, int attempts,
                             const std::function<void(const Outcome& smaller)>& tell);

/// How many operations a case has.
[[nodiscard]] std::uint32_t operations_of(const Case& life);

}  // namespace harvest::simulator
