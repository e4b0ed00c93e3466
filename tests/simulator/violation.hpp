// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace harvest::simulator {

/// Ends the process: something that must hold does not. Every life runs in a process of its own, whose parent
/// reads the message; the first word is the invariant.
[[noreturn]] void violated(std::string_view invariant, std::string_view message);

template <typename... Arguments>
void require(bool holds, std::string_view invariant, fmt::format_string<Arguments...> message,
             Arguments&&... arguments) {
  if (!holds) [[unlikely]]
    violated(invariant, fmt::format(message, std::forward<Arguments>(arguments)...));
}

}  // namespace harvest::simulator
