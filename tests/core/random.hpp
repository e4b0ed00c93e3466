// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace harvest::testing {

/// A small generator whose sequence is the same on every machine, so that a failing seed can be run again.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL + 0x1234567) {}

  /// One of many generators of a seed. (Those of the other constructor, of seeds that follow each other, give
  /// the same sequence from one number on.)
  Random(std::uint64_t seed, std::uint64_t number)
      : state_(mix(mix(seed) ^ (number * 0xD1B54A32D192ED03ULL))) {}

  std::uint64_t next() { return mix(state_ += 0x9E3779B97F4A7C15ULL); }
  /// 0 .. limit-1
  std::uint64_t below(std::uint64_t limit) { return next() % limit; }
  /// first .. last
  std::uint64_t between(std::uint64_t first, std::uint64_t last) { return first + below(last - first + 1); }
  bool chance(double probability) { return static_cast<double>(next() >> 11) * 0x1p-53 < probability; }
  /// An index into `weights`, each as likely as its weight.
  std::size_t weighted(std::initializer_list<unsigned> weights) {
    return weighted(std::span<const unsigned>(weights.begin(), weights.size()));
  }
  std::size_t weighted(std::span<const unsigned> weights) {
    std::uint64_t sum = 0;
    for (const unsigned weight : weights) sum += weight;
    std::uint64_t at = below(sum);
    std::size_t index = 0;
    for (const unsigned weight : weights) {
      if (at < weight) return index;
      at -= weight;
      ++index;
    }
    return index;
  }

 private:
  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

}  // namespace harvest::testing
