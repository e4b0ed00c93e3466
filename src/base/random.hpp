// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace harvest {

/// A stream of random numbers from a seed, the same on every platform (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9E37'79B9'7F4A'7C15ULL;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30U)) * 0xBF58'476D'1CE4'E5B9ULL;
    z = (z ^ (z >> 27U)) * 0x94D0'49BB'1331'11EBULL;
    return z ^ (z >> 31U);
  }

  std::uint32_t next_bits() { return static_cast<std::uint32_t>(next() >> 32U); }

  /// In [0, 1).
  double next_unit() { return static_cast<double>(next() >> 11U) * 0x1.0p-53; }

  /// In [0, `end`), as even as 32 bits are. Requires: `end` > 0.
  std::uint32_t next_below(std::uint32_t end) {
    return static_cast<std::uint32_t>((std::uint64_t{next_bits()} * end) >> 32U);
  }

 private:
  std::uint64_t state_;
};

}  // namespace harvest
