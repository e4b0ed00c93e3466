// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "simulator/plan.hpp"

/// Mistakes that the library makes on purpose (src/base/test_hooks.hpp), to see that the simulator sees them.
namespace harvest::simulator {

/// Whether this program is linked with the library that has test hooks.
[[nodiscard]] bool can_plant_bugs();

/// From here on the library makes this mistake. False if there is none of this name.
[[nodiscard]] bool plant_bug(std::string_view name);

/// For each mistake of the registry: at most `seeds` lives like `first`, until one fails. Prints a table;
/// answers an exit code: 0 if each was found.
[[nodiscard]] int find_planted_bugs(const Case& first, std::uint64_t seeds, std::uint32_t jobs);

}  // namespace harvest::simulator
