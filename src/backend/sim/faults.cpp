// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/faults.hpp"

#include <fmt/format.h>

#include <cmath>
#include <utility>

namespace harvest::sim {
namespace {

constexpr TimeNs kLongestNs = 3'600'000'000'000;  // an hour

Status check_time(std::string_view field, TimeNs ns) {
  if (ns >= 0 && ns <= kLongestNs) return {};
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is {}, the limits are 0 and {} (an hour)", field, ns, kLongestNs));
}

Status check_scheduled(const ScheduledFault& fault, std::size_t index, const Machine& machine) {
  using Kind = ScheduledFault::Kind;
  const bool of_link = fault.kind == Kind::link_down || fault.kind == Kind::link_up;
  if (of_link && machine.find_link(fault.route.from, fault.route.to) == nullptr)
    return fail(ErrorCode::invalid_argument,
                fmt::format("schedule[{}] names the link from device {} to device {}, which is not there",
                            index, fault.route.from, fault.route.to));
  const auto gpus = static_cast<DeviceId>(machine.devices.size() - 1);
  const DeviceId first = fault.kind == Kind::lose_device ? 0 : kHost;
  if (!of_link && (fault.device < first || fault.device >= gpus))
    return fail(ErrorCode::invalid_argument,
                fmt::format("schedule[{}] names device {}, the limits are {} and {}", index, fault.device,
                            first, gpus - 1));
  return {};
}

}  // namespace

Status check_plan(const FaultPlan& plan, const Machine& machine) {
  for (const auto& [field, trigger] : {std::pair{"refuse_copy", plan.refuse_copy},
                                       {"fail_copy", plan.fail_copy},
                                       {"slow_copy", plan.slow_copy},
                                       {"corrupt_copy", plan.corrupt_copy},
                                       {"fail_map", plan.fail_map},
                                       {"fail_host_map", plan.fail_host_map},
                                       {"late_event", plan.late_event},
                                       {"slow_query", plan.slow_query}})
    if (!(trigger.rate >= 0 && trigger.rate <= 1))
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{}.rate is {}, the limits are 0 and 1", field, trigger.rate));
  if (!std::isfinite(plan.slow_copy_factor) || plan.slow_copy_factor < 1)
    return fail(ErrorCode::invalid_argument,
                fmt::format("slow_copy_factor is {}, a finite number from 1", plan.slow_copy_factor));
  for (const auto& [field, ns] : {std::pair{"late_event_ns", plan.late_event_ns},
                                  {"slow_query_ns", plan.slow_query_ns},
                                  {"stale_free_ns", plan.stale_free_ns}})
    if (Status status = check_time(field, ns); !status) return status;
  for (std::size_t i = 0; i < plan.schedule.size(); ++i)
    if (Status status = check_scheduled(plan.schedule[i], i, machine); !status) return status;
  return {};
}

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
