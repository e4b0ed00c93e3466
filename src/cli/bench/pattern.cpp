// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/pattern.hpp"

#include <algorithm>
#include <cstring>

namespace harvest::cli::bench {
namespace {

constexpr std::uint64_t kMostStagingBytes = 64ULL << 20;
constexpr std::uint64_t kWordBytes = sizeof(std::uint64_t);
constexpr std::uint8_t kSpoilt = 0xA5;

std::uint64_t word_at(std::uint64_t seed, std::uint64_t index) {
  return (seed * 0xD1342543DE82EF95ULL + index + 1) * 0x9E3779B97F4A7C15ULL;
}

/// The pattern from its word `first` on.
void write_words(std::byte* to, std::uint64_t bytes, std::uint64_t seed, std::uint64_t first) {
  for (std::uint64_t at = 0; at < bytes; at += kWordBytes) {
    const std::uint64_t word = word_at(seed, first + at / kWordBytes);
    std::memcpy(to + at, &word, std::min(kWordBytes, bytes - at));
  }
}

}  // namespace

void write_pattern(std::byte* to, std::uint64_t bytes, std::uint64_t seed) {
  write_words(to, bytes, seed, 0);
}

std::uint64_t count_wrong(const std::byte* from, std::uint64_t bytes, std::uint64_t seed,
                          std::uint64_t offset_bytes) {
  std::uint64_t wrong = 0;
  for (std::uint64_t at = 0; at < bytes; at += kWordBytes) {
    const std::uint64_t word = word_at(seed, (offset_bytes + at) / kWordBytes);
    const std::uint64_t here = std::min(kWordBytes, bytes - at);
    if (std::memcmp(from + at, &word, here) == 0) continue;
    const auto* expected = reinterpret_cast<const std::byte*>(&word);
    for (std::uint64_t i = 0; i < here; ++i) wrong += from[at + i] != expected[i] ? 1 : 0;
  }
  return wrong;
}

Result<PatternCarrier> PatternCarrier::create(Backend& backend, DeviceId gpu, std::uint64_t most_bytes) {
  auto staging = Segment::map(backend, kHost, std::min(most_bytes, kMostStagingBytes), {&gpu, 1});
  if (!staging) return tl::unexpected(staging.error());
  return PatternCarrier(std::move(*staging));
}

Status PatternCarrier::write(const Stream& stream, DeviceId device, std::byte* to, std::uint64_t bytes,
                             std::uint64_t seed) const {
  if (device == kHost) {
    write_pattern(to, bytes, seed);
    return {};
  }
  for (std::uint64_t done = 0; done < bytes; done += staging_.bytes()) {
    const std::uint64_t part = std::min(staging_.bytes(), bytes - done);
    write_words(staging_.data(), part, seed, done / kWordBytes);
    if (Status given = stream.copy({kHost, device}, to + done, staging_.data(), part); !given) return given;
    if (Status there = stream.wait(); !there) return there;
  }
  return {};
}

Status PatternCarrier::spoil(const Stream& stream, DeviceId device, std::byte* at, std::uint64_t bytes) {
  if (device == kHost) {
    std::memset(at, kSpoilt, bytes);
    return {};
  }
  if (Status given = stream.backend().fill(stream.id(), device, at, bytes, kSpoilt); !given) return given;
  return stream.wait();
}

Result<std::uint64_t> PatternCarrier::count_wrong_at(const Stream& stream, DeviceId device,
                                                     const std::byte* from, std::uint64_t bytes,
                                                     std::uint64_t seed, std::uint64_t offset_bytes) const {
  if (device == kHost) return count_wrong(from, bytes, seed, offset_bytes);
  std::uint64_t wrong = 0;
  for (std::uint64_t done = 0; done < bytes; done += staging_.bytes()) {
    const std::uint64_t part = std::min(staging_.bytes(), bytes - done);
    if (Status given = stream.copy({device, kHost}, staging_.data(), from + done, part); !given)
      return tl::unexpected(given.error());
    if (Status there = stream.wait(); !there) return tl::unexpected(there.error());
    wrong += count_wrong(staging_.data(), part, seed, offset_bytes + done);
  }
  return wrong;
}

}  // namespace harvest::cli::bench
