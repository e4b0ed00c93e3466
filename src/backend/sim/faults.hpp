// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/simulated_backend.hpp>

#include <array>
#include <cstdint>

#include "backend/sim/mix.hpp"
#include "base/annotated_mutex.hpp"
#include "base/random.hpp"

namespace harvest::sim {

/// The faults that a trigger decides on.
enum class Fault : std::uint8_t {
  refuse_copy,
  fail_copy,
  slow_copy,
  corrupt_copy,
  fail_map,
  fail_host_map,
  late_event,
  slow_query,
};

/// Errors: invalid_argument, with the field, its value and its limits: what cannot be meant would otherwise
/// never happen, and a test would try nothing.
[[nodiscard]] Status check_plan(const FaultPlan& plan, const Machine& machine);

/// Decides whether a fault happens now. Each fault draws from its own random stream, so that one more
/// question about one does not move the others. Thread-safe.
class FaultInjector {
 public:
  FaultInjector(std::uint64_t seed, FaultPlan plan);

  /// Counts one more occasion for `fault` and says whether it happens.
  [[nodiscard]] bool happens(Fault fault) HARVEST_EXCLUDES(mutex_);

  /// The plan's figures: factors and times.
  [[nodiscard]] double slow_copy_factor() const HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] TimeNs late_event_ns() const HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] TimeNs slow_query_ns() const HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] TimeNs stale_free_ns() const HARVEST_EXCLUDES(mutex_);

  void set_plan(FaultPlan plan) HARVEST_EXCLUDES(mutex_);

 private:
  struct State {
    FaultTrigger trigger;
    std::uint64_t occasions = 0;
    Random random{0};
  };
  static constexpr std::size_t kFaults = 8;

  void install(FaultPlan plan) HARVEST_REQUIRES(mutex_);

  const std::uint64_t seed_;
  mutable Mutex mutex_;
  FaultPlan plan_ HARVEST_GUARDED_BY(mutex_);
  std::array<State, kFaults> states_ HARVEST_GUARDED_BY(mutex_);
};

}  // namespace harvest::sim
