// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

/// What the objects of a life hold: every word tells whose it is, so that a wrong word also tells where it
/// came from, and a scan of memory finds a tenant's words wherever they were left.
namespace harvest::simulator {

/// One word, before it is mixed: version (unique for each put of a life), tenant, position.
struct Word {
  std::uint32_t version = 0;  ///< below 2^24
  std::uint8_t tenant = 0;    ///< below 4
  std::uint32_t index = 0;    ///< of 8 bytes, from 0; below 2^24
};

namespace words {

inline constexpr std::uint64_t kMagic =
    0x5;  ///< in the top 4 bits, so that other bytes rarely look like words
inline constexpr std::uint64_t kOdd = 0xBF58476D1CE4E5B9ULL;

/// The inverse of an odd number modulo 2^64, by Newton's method.
constexpr std::uint64_t inverse(std::uint64_t odd) {
  std::uint64_t x = odd;
  for (int i = 0; i < 6; ++i) x *= 2 - odd * x;
  return x;
}

constexpr std::uint64_t mix(std::uint64_t plain) {
  const std::uint64_t z = plain * kOdd;
  return z ^ (z >> 32);
}
constexpr std::uint64_t unmix(std::uint64_t mixed) {
  return (mixed ^ (mixed >> 32)) * inverse(kOdd);
}

/// 14 bits of magic, 2 of tenant, 24 of version, 24 of index.
constexpr std::uint64_t base(std::uint32_t version, std::uint8_t tenant) {
  return kMagic << 50 | static_cast<std::uint64_t>(tenant) << 48 | static_cast<std::uint64_t>(version) << 24;
}

}  // namespace words

inline void write_words(std::byte* to, std::uint64_t bytes, std::uint32_t version, std::uint8_t tenant) {
  const std::uint64_t base = words::base(version, tenant);
  for (std::uint64_t at = 0; at < bytes; at += 8) {
    const std::uint64_t word = words::mix(base | at / 8);
    std::memcpy(to + at, &word, std::min<std::uint64_t>(8, bytes - at));
  }
}

/// The offset of the first word that is not right; `bytes` if all are.
inline std::uint64_t first_wrong_word(const std::byte* from, std::uint64_t bytes, std::uint32_t version,
                                      std::uint8_t tenant) {
  const std::uint64_t base = words::base(version, tenant);
  std::uint64_t at = 0;
  for (; at + 8 <= bytes; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, from + at, 8);
    if (word != words::mix(base | at / 8)) return at;
  }
  const std::uint64_t last = words::mix(base | at / 8);
  if (std::memcmp(from + at, &last, bytes - at) != 0) return at;
  return bytes;
}

/// What a whole word says, if it is one of ours: of one of the versions below `versions`. Memory that was
/// never written may hold anything, even a word of a life that was before.
inline std::optional<Word> read_word(const std::byte* from, std::uint32_t versions) {
  std::uint64_t word = 0;
  std::memcpy(&word, from, sizeof word);
  const std::uint64_t plain = words::unmix(word);
  if (plain >> 50 != words::kMagic || (plain >> 24 & 0xFFFFFF) >= versions) return std::nullopt;
  return Word{static_cast<std::uint32_t>(plain >> 24 & 0xFFFFFF), static_cast<std::uint8_t>(plain >> 48 & 3),
              static_cast<std::uint32_t>(plain & 0xFFFFFF)};
}

}  // namespace harvest::simulator
