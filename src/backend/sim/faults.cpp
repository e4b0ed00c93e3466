// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/faults.hpp"

#include <utility>

namespace harvest::sim {

FaultInjector::FaultInjector(std::uint64_t seed, FaultPlan plan) : seed_(seed) {
  const MutexLock lock(mutex_);
  install(std::move(plan));
}

void FaultInjector::install(FaultPlan plan) {
  plan_ = std::move(plan);
  // In the order of `Fault`.
  const std::array<FaultTrigger, kFaults> triggers{plan_.refuse_copy,  plan_.fail_copy, plan_.slow_copy,
                                                   plan_.corrupt_copy, plan_.fail_map,  plan_.fail_host_map,
                                                   plan_.late_event,   plan_.slow_query};
  for (std::size_t i = 0; i < kFaults; ++i) states_[i] = {triggers[i], 0, Random{mix(seed_, i + 1)}};
}

bool FaultInjector::happens(Fault fault) {
  const MutexLock lock(mutex_);
  State& state = states_[static_cast<std::size_t>(fault)];
  ++state.occasions;
  const bool by_chance = state.trigger.rate > 0 && state.random.next_unit() < state.trigger.rate;
  return by_chance || state.occasions == state.trigger.at;
}

double FaultInjector::slow_copy_factor() const {
  const MutexLock lock(mutex_);
  return plan_.slow_copy_factor;
}

TimeNs FaultInjector::late_event_ns() const {
  const MutexLock lock(mutex_);
  return plan_.late_event_ns;
}

TimeNs FaultInjector::slow_query_ns() const {
  const MutexLock lock(mutex_);
  return plan_.slow_query_ns;
}

TimeNs FaultInjector::stale_free_ns() const {
  const MutexLock lock(mutex_);
  return plan_.stale_free_ns;
}

void FaultInjector::set_plan(FaultPlan plan) {
  const MutexLock lock(mutex_);
  install(std::move(plan));
}

}  // namespace harvest::sim
