// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <cstdint>

#include "cli/bench/resources.hpp"

/// Bytes that tell every place of every seed apart, so that a lost, shifted or stale run shows. Whoever
/// measures a copy writes them first and compares them afterwards.
namespace harvest::cli::bench {

/// Requires: `to` is host memory that may be dereferenced.
void write_pattern(std::byte* to, std::uint64_t bytes, std::uint64_t seed);
/// How many bytes at `from` are not the pattern's from its byte `offset_bytes` (a multiple of 8) on.
[[nodiscard]] std::uint64_t count_wrong(const std::byte* from, std::uint64_t bytes, std::uint64_t seed,
                                        std::uint64_t offset_bytes = 0);

/// The same for any device's memory, through pinned host memory of its own.
class PatternCarrier {
 public:
  [[nodiscard]] static Result<PatternCarrier> create(Backend& backend, DeviceId gpu,
                                                     std::uint64_t most_bytes);

  [[nodiscard]] Status write(const Stream& stream, DeviceId device, std::byte* to, std::uint64_t bytes,
                             std::uint64_t seed) const;
  /// What no pattern is. Returns when it is there.
  [[nodiscard]] static Status spoil(const Stream& stream, DeviceId device, std::byte* at,
                                    std::uint64_t bytes);
  [[nodiscard]] Result<std::uint64_t> count_wrong_at(const Stream& stream, DeviceId device,
                                                     const std::byte* from, std::uint64_t bytes,
                                                     std::uint64_t seed,
                                                     std::uint64_t offset_bytes = 0) const;

 private:
  explicit PatternCarrier(Segment staging) : staging_(std::move(staging)) {}
  Segment staging_;
};

}  // namespace harvest::cli::bench
