// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>

namespace harvest {

/// Spreads a key over all bits of the result, so that keys that are small numbers, or equal in their
/// high halves, make a good hash too. Not meant against an attacker who chooses the keys.
struct KeyHash {
  [[nodiscard]] std::size_t operator()(const Key& key) const noexcept {
    std::uint64_t bits = key.low ^ (key.high * 0x9e3779b97f4a7c15U);
    bits = (bits ^ (bits >> 32U)) * 0xd6e8feb86659fd93U;
    bits = (bits ^ (bits >> 29U)) * 0xa0761d6478bd642fU;
    return static_cast<std::size_t>(bits ^ (bits >> 32U));
  }
};

}  // namespace harvest
