// SPDX-License-Identifier: Apache-2.0
// The half of VirtualEngine that moves the clock: timers, ends of flows, scheduled faults.
#include <algorithm>

#include "backend/sim/mix.hpp"
#include "backend/sim/virtual_engine.hpp"

namespace harvest::sim {

void VirtualEngine::add_timer(Timer timer) {
  timer.order = next_order_++;
  timers_.push(timer);
}

bool VirtualEngine::is_stale(const Timer& timer) const {
  switch (timer.kind) {
    case Timer::Kind::work: return timer.work->serial != timer.serial;
    case Timer::Kind::schedule: return timer.serial != schedule_serial_;
    case Timer::Kind::event: return false;
  }
  return false;
}

TimeNs VirtualEngine::next_ns() {
  while (!timers_.empty() && is_stale(timers_.top())) timers_.pop();
  const TimeNs timer_ns = timers_.empty() ? kNever : timers_.top().at_ns;
  return std::min(timer_ns, flows_.next_end_ns());
}

/// The one thing that happens next, at `at_ns`, and what follows from it.
void VirtualEngine::step(TimeNs at_ns) {
  now_ns_.store(std::max(now(), at_ns), std::memory_order_release);
  if (flows_.next_end_ns() <= at_ns) {
    Work& work = *work_of_flow_[flows_.pop_ended(now())];
    finish(work, !work.fails);
  } else {
    const Timer timer = timers_.top();
    timers_.pop();
    run_timer(timer);
  }
  run_ready();
}

void VirtualEngine::run_timer(const Timer& timer) {
  switch (timer.kind) {
    case Timer::Kind::event: complete(timer.event, timer.state); return;
    case Timer::Kind::schedule:
      setup_.apply(schedule_[timer.index]);
      trace_ = mix(mix(trace_, static_cast<std::uint64_t>(now())), timer.index);
      fail_broken();
      return;
    case Timer::Kind::work: break;
  }
  Work& work = *timer.work;
  if (work.kind == Work::Kind::kernel) {
    finish(work, true);
    return;
  }
  const MachineLink& link = setup_.fabric.machine().links[work.link];
  work.phase = Work::Phase::flowing;
  work.flow = flows_.add(now(), static_cast<double>(work.bytes),
                         link.info.bandwidth_bytes_per_s / work.slow_factor, link.ports);
  if (work.flow >= work_of_flow_.size()) work_of_flow_.resize(work.flow + 1);
  work_of_flow_[work.flow] = &work;
}

void VirtualEngine::run_until(TimeNs until_ns) {
  for (TimeNs next = next_ns(); next != kNever && next <= until_ns; next = next_ns()) step(next);
  if (until_ns != kNever && until_ns > now()) now_ns_.store(until_ns, std::memory_order_release);
}

void VirtualEngine::sleep_until(TimeNs until_ns) {
  const MutexLock lock(mutex_);
  run_until(until_ns);
}

void VirtualEngine::spend(TimeNs ns) {
  const MutexLock lock(mutex_);
  run_until(now() + ns);
}

// --- faults and the trace -----------------------------------------------------------------------------

void VirtualEngine::fail_broken() {
  for (Stream& stream : streams_) {
    if (stream.head == nullptr || stream.head->phase == Work::Phase::queued) continue;
    Work& work = *stream.head;
    if (!is_broken(stream, work)) continue;
    if (work.phase == Work::Phase::flowing) flows_.remove(now(), work.flow);
    finish(work, false);
  }
}

void VirtualEngine::fail_broken_work() {
  const MutexLock lock(mutex_);
  fail_broken();
  run_ready();
}

void VirtualEngine::set_schedule(std::vector<ScheduledFault> schedule) {
  const MutexLock lock(mutex_);
  schedule_ = std::move(schedule);
  ++schedule_serial_;
  for (std::size_t i = 0; i < schedule_.size(); ++i)
    add_timer({.at_ns = std::max(schedule_[i].at_ns, now()),
               .kind = Timer::Kind::schedule,
               .serial = schedule_serial_,
               .index = i});
  run_until(now());
}

void VirtualEngine::note(std::uint64_t what) {
  const MutexLock lock(mutex_);
  trace_ = mix(trace_, what);
}

std::uint64_t VirtualEngine::trace_hash() const {
  const MutexLock lock(mutex_);
  return trace_;
}

std::uint64_t VirtualEngine::completed_copy_bytes() const {
  const MutexLock lock(mutex_);
  return completed_copy_bytes_;
}

std::uint64_t VirtualEngine::failed_copies() const {
  const MutexLock lock(mutex_);
  return failed_copies_;
}

}  // namespace harvest::sim
