// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <cstdint>

#include "cli/bench/pattern.hpp"
#include "cli/bench/resources.hpp"
#include "cli/bench/timing.hpp"

/// What one way between two devices gives, by copies as they are: the measure of all that goes over it.
namespace harvest::cli::bench {

/// Memory at both ends of a route, each within reach of the other where the machine allows it.
struct Ends {
  Segment source;
  Segment destination;
};
/// Errors: not_found (no such link), those of memory.
[[nodiscard]] Result<Ends> map_ends(Backend& backend, Route route, std::uint64_t bytes);

struct LinkFigure {
  std::uint64_t bytes = 0;           ///< of one copy
  std::uint64_t copies_per_run = 0;  ///< one after the other on one stream
  Spread bytes_per_s;
  bool gated = true;
  std::uint64_t wrong_bytes = 0;
};

class LinkMeter {
 public:
  /// For copies of up to `most_bytes`. The reading GPU drives the copy, or the one at the other end of host
  /// memory. Errors: not_found (no such link, or none of the ends is a GPU), those of memory.
  [[nodiscard]] static Result<LinkMeter> create(Backend& backend, Route route, std::uint64_t most_bytes);

  /// Warms up, times `runs` runs, and compares all bytes after each. Requires: bytes in 1..most_bytes.
  [[nodiscard]] Result<LinkFigure> measure(std::uint64_t bytes, std::uint64_t runs);

 private:
  LinkMeter(Route route, Ends ends, PatternCarrier pattern, Gate gate, Stream stream)
      : route_(route),
        ends_(std::move(ends)),
        pattern_(std::move(pattern)),
        gate_(std::move(gate)),
        stream_(std::move(stream)) {}
  [[nodiscard]] Result<GatedRun> run(std::uint64_t bytes, std::uint64_t copies);

  Route route_;
  Ends ends_;
  PatternCarrier pattern_;
  Gate gate_;
  Stream stream_;
  std::uint64_t seed_ = 0;
};

}  // namespace harvest::cli::bench
