// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace harvest::sim {

/// Folds a value into a hash: a multiply and xor-shift of 64 bits. Not for enemies.
constexpr std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash ^= value + 0x9E37'79B9'7F4A'7C15ULL;
  hash *= 0xD6E8'FEB8'6659'FD93ULL;
  return hash ^ (hash >> 32U);
}

}  // namespace harvest::sim
