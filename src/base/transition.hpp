// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>

namespace harvest {

/// One change of state that may happen. A table of them is all that a thing's life can be.
template <typename State>
struct Transition {
  State from;
  State to;

  bool operator==(const Transition&) const = default;
};
template <typename State>
Transition(State, State) -> Transition<State>;  // clang 14 does not deduce it by itself

template <typename State, std::size_t N>
[[nodiscard]] constexpr bool is_legal(const std::array<Transition<State>, N>& table, State from, State to) {
  for (const Transition<State>& legal : table)
    if (legal == Transition<State>{from, to}) return true;
  return false;
}

}  // namespace harvest
