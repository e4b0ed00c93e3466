// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

namespace harvest::transformer {

/// The same numbers on every machine, which the standard library's distributions do not promise (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E37'79B9'7F4A'7C15);
    z = (z ^ (z >> 30)) * 0xBF58'476D'1CE4'E5B9;
    z = (z ^ (z >> 27)) * 0x94D0'49BB'1331'11EB;
    return z ^ (z >> 31);
  }
  /// From 0 to `limit` - 1. Requires: limit > 0.
  std::uint64_t below(std::uint64_t limit) { return next() % limit; }
  /// Both ends included.
  std::uint64_t between(std::uint64_t low, std::uint64_t high) { return low + below(high - low + 1); }
  /// From 0 to just below 1.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  bool chance(double probability) { return uniform() < probability; }
  /// Requires: there is one.
  template <typename Choices>
  auto one_of(const Choices& choices) {
    return choices[below(choices.size())];
  }
  /// With mean 1.
  double exponential() { return -std::log1p(-uniform()); }

 private:
  std::uint64_t state_;
};

/// Seeds of different things that come of one seed.
[[nodiscard]] inline std::uint64_t seed_of(std::uint64_t seed, std::uint64_t what) {
  Random random(seed * 0x1000'0000'1B3 + what);
  return random.next();
}

}  // namespace harvest::transformer
