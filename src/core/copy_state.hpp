// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include "base/transition.hpp"

namespace harvest::core {

/// Life of one copy of an object in one tier.
enum class CopyState : std::uint8_t {
  none,
  filling,  ///< being written in the background, readers do not see it
  live,     ///< readers see it
  leaving,  ///< no new reader; waits for leases, then for the work that still reads it
};

/// All that may happen to a copy. The model in tests/protocol has the same table, and a test compares them.
inline constexpr std::array kCopyTransitions{
    Transition{CopyState::none, CopyState::live},     // put: seen at once, with its completion event
    Transition{CopyState::none, CopyState::filling},  // promotions and moves: seen when complete
    Transition{CopyState::filling, CopyState::live},
    Transition{CopyState::filling, CopyState::none},  // it failed, or is not wanted any more
    Transition{CopyState::live, CopyState::leaving},
    Transition{CopyState::leaving, CopyState::none},
};

}  // namespace harvest::core
