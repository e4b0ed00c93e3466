// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <functional>
#include <vector>

#include "cli/bench/resources.hpp"
#include "cli/output.hpp"

/// How long work takes, on the machine's own clock.
namespace harvest::cli::bench {

/// Several measurements of one thing.
struct Spread {
  double median = 0;
  double least = 0;
  double most = 0;
  double p99 = 0;
};
/// Requires: at least one value.
[[nodiscard]] Spread spread_of(std::vector<double> values);
/// `{name: median, name_min: ..., name_max: ...}`, added to `json`.
void add_spread(Json& json, const std::string& name, const Spread& spread);

/// One timed piece of work.
struct GatedRun {
  TimeNs duration_ns = 0;
  TimeNs doubt_ns = 0;     ///< how much later than it was the host may have seen the begin or the end
  bool outlasted = false;  ///< it was still under way when `meanwhile` returned
  bool gated = true;  ///< false: it began before all of it was submitted, so the time is the submitter's too
};

using Submit = std::function<Status()>;

/// Holds a stream until all work to be timed is submitted, so that what is timed is the machine and not the
/// program that feeds it. The gate is a copy from the GPU to the host ahead in the same stream; there is no
/// other work whose length one chooses that every backend can be given. It is as long as it has to be:
/// where the work began before all was submitted, the run is repeated behind a gate of twice the length. Past
/// 4 GiB the run counts and is marked as not gated: drivers queue about a thousand calls and then make the
/// caller wait.
///
/// On real machines begin and end are seen by asking again and again. A host that is taken away from that in
/// the wrong moment sees them late; such a run is repeated too, a few times, and the surest one counts.
class Gate {
 public:
  /// For streams of `gpu`.
  [[nodiscard]] static Result<Gate> create(Backend& backend, DeviceId gpu);

  /// From the moment the gate opens until all of `submit`'s work on `stream` is done. `submit` may be called
  /// several times, each after the work before is done. `meanwhile` is called once, while the work that
  /// counts is under way.
  [[nodiscard]] Result<GatedRun> time(const Stream& stream, const Submit& submit,
                                      const Submit& meanwhile = nullptr);

 private:
  Gate(DeviceId gpu, std::uint64_t chunk_bytes) : gpu_(gpu), chunk_bytes_(chunk_bytes), bytes_(chunk_bytes) {}
  [[nodiscard]] Status close(const Stream& stream) const;
  [[nodiscard]] Result<GatedRun> time_once(const Stream& stream, const Submit& submit,
                                           const Submit& meanwhile) const;

  DeviceId gpu_;
  std::uint64_t chunk_bytes_;
  std::uint64_t bytes_;  ///< the gate's length; what was needed once is kept
  Segment on_gpu_;
  Segment on_host_;
};

/// How often to do work that took `once_ns` alone, so that the clock's own error (a few microseconds on real
/// machines, none in virtual time) stays far below one percent.
[[nodiscard]] std::uint64_t repeats_for(const Backend& backend, TimeNs once_ns);

}  // namespace harvest::cli::bench
