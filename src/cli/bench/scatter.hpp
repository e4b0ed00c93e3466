// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <vector>

#include "cli/bench/link.hpp"
#include "cli/bench/pattern.hpp"
#include "cli/bench/resources.hpp"
#include "cli/bench/timing.hpp"

namespace harvest::cli::bench {

/// 0..n-1 in an order in which no two neighbours stay neighbours, as far as n allows.
[[nodiscard]] std::vector<std::uint64_t> scattered_order(std::uint64_t n);

struct ScatterPoint {
  std::uint64_t run_bytes = 0;
  std::uint64_t runs = 0;
  [[nodiscard]] std::uint64_t total_bytes() const { return run_bytes * runs; }
};

/// Batches of scattered runs over one link.
class ScatterMeter {
 public:
  /// `gpu` drives the copies: one of the route's ends.
  [[nodiscard]] static Result<ScatterMeter> create(Backend& backend, Route route, DeviceId gpu,
                                                   std::uint64_t most_bytes);
  /// The median of `times` batches. Errors: copy_failed, also where a byte was wrong.
  [[nodiscard]] Result<double> bytes_per_s(const ScatterPoint& point, std::uint64_t times);

 private:
  ScatterMeter(Route route, Ends ends, PatternCarrier pattern, Gate gate, Stream stream)
      : route_(route),
        ends_(std::move(ends)),
        pattern_(std::move(pattern)),
        gate_(std::move(gate)),
        stream_(std::move(stream)) {}
  [[nodiscard]] Status check(const ScatterPoint& point, const std::vector<std::uint64_t>& order) const;

  Route route_;
  Ends ends_;
  PatternCarrier pattern_;
  Gate gate_;
  Stream stream_;
};

}  // namespace harvest::cli::bench
