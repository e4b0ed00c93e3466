// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/virtual_engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "backend/sim/mix.hpp"
#include "base/assert.hpp"

namespace harvest::sim {
namespace {

std::vector<double> port_rates(const Machine& machine) {
  std::vector<double> rates;
  for (const MachinePort& port : machine.ports) rates.push_back(port.bandwidth_bytes_per_s);
  return rates;
}

/// The end of a stretch of time that may be endless.
TimeNs later(TimeNs from_ns, TimeNs by_ns) {
  return by_ns >= kNever - from_ns ? kNever : from_ns + by_ns;
}

}  // namespace

std::unique_ptr<Engine> make_virtual_engine(EngineSetup setup) {
  return std::make_unique<VirtualEngine>(std::move(setup));
}

VirtualEngine::VirtualEngine(EngineSetup setup)
    : setup_(std::move(setup)), flows_(port_rates(setup_.fabric.machine())) {
  for (const MachineDevice& device : setup_.fabric.machine().devices)
    engines_.push_back({device.info.copy_engines, {}});
}

// --- streams ------------------------------------------------------------------------------------------

StreamId VirtualEngine::create_stream(DeviceId device) {
  const MutexLock lock(mutex_);
  streams_.emplace_back().device = device;
  return StreamId{static_cast<std::uint32_t>(streams_.size())};
}

VirtualEngine::Stream* VirtualEngine::find(StreamId stream) const {
  const auto number = static_cast<std::uint32_t>(stream);
  return number == 0 || number > streams_.size() ? nullptr : &streams_[number - 1];
}

Result<VirtualEngine::Stream*> VirtualEngine::find_alive(StreamId stream) const {
  Stream* found = find(stream);
  if (found != nullptr && found->alive) return found;
  return fail(ErrorCode::not_found, fmt::format("no stream {}", static_cast<std::uint32_t>(stream)));
}

Status VirtualEngine::destroy_stream(StreamId stream) {
  const MutexLock lock(mutex_);
  const auto found = find_alive(stream);
  if (!found) return tl::unexpected(found.error());
  (*found)->alive = false;
  return {};
}

Result<DeviceId> VirtualEngine::stream_device(StreamId stream) const {
  const MutexLock lock(mutex_);
  return find_alive(stream).map([](const Stream* found) { return found->device; });
}

void VirtualEngine::push_waiting(WaitingStreams& row, std::uint32_t stream) {
  streams_[stream - 1].next_waiting = 0;
  if (row.last == 0)
    row.first = stream;
  else
    streams_[row.last - 1].next_waiting = stream;
  row.last = stream;
}

std::uint32_t VirtualEngine::pop_waiting(WaitingStreams& row) {
  const std::uint32_t stream = row.first;
  if (stream == 0) return 0;
  row.first = streams_[stream - 1].next_waiting;
  if (row.first == 0) row.last = 0;
  return stream;
}

// --- events -------------------------------------------------------------------------------------------

Result<EventId> VirtualEngine::record_event(StreamId stream, TimeNs late_ns) {
  const MutexLock lock(mutex_);
  const auto found = find_alive(stream);
  if (!found) return tl::unexpected(found.error());
  const EventId event = events_.add();
  Work* record = take_work();
  record->kind = Work::Kind::record;
  record->event = event;
  record->duration_ns = late_ns;
  append(stream, record);
  run_ready();
  return event;
}

void VirtualEngine::release_event(EventId event) {
  const MutexLock lock(mutex_);
  events_.at_held_by_caller(event).released = true;
  events_.drop(event);
}

EventState VirtualEngine::query_event(EventId event) {
  const MutexLock lock(mutex_);
  return events_.at_held_by_caller(event).state;
}

Status VirtualEngine::stream_wait(StreamId stream, EventId event) {
  const MutexLock lock(mutex_);
  const auto found = find_alive(stream);
  if (!found) return tl::unexpected(found.error());
  EventTable::Slot& slot = events_.at_held_by_caller(event);
  if (slot.state != EventState::pending) return {};
  ++slot.holders;
  Work* wait = take_work();
  wait->kind = Work::Kind::wait;
  wait->event = event;
  append(stream, wait);
  run_ready();
  return {};
}

EventState VirtualEngine::wait_event(EventId event, TimeNs deadline_ns) {
  const MutexLock lock(mutex_);
  EventState state = events_.at_held_by_caller(event).state;
  while (state == EventState::pending) {
    const TimeNs next = next_ns();
    if (next == kNever && deadline_ns == kNever) break;  // nothing under way can complete it
    if (next > deadline_ns) {
      run_until(deadline_ns);
      break;
    }
    step(next);
    state = events_.at_held_by_caller(event).state;
  }
  return events_.at_held_by_caller(event).state;
}

void VirtualEngine::complete(EventId event, EventState state) {
  EventTable::Slot& slot = events_.at(event);
  slot.state = state;
  trace_ = mix(mix(trace_, static_cast<std::uint64_t>(now())), static_cast<std::uint64_t>(state));
  while (const std::uint32_t stream = pop_waiting(slot.waiting)) {
    streams_[stream - 1].blocked = false;
    ready_.push_back(stream);
  }
  events_.drop(event);
}

// --- work ---------------------------------------------------------------------------------------------

Work* VirtualEngine::take_work() {
  if (free_work_ == nullptr) {
    all_work_.push_back(std::make_unique<Work>());
    free_work_ = all_work_.back().get();
  }
  Work* work = free_work_;
  free_work_ = work->next;
  reset(*work);
  return work;
}

Work* VirtualEngine::new_work() {
  const MutexLock lock(mutex_);
  return take_work();
}

void VirtualEngine::give_back(Work* work) {
  work->next = free_work_;
  free_work_ = work;
}

void VirtualEngine::drop_work(Work* work) {
  Effects::let_go(*work);
  const MutexLock lock(mutex_);
  give_back(work);
}

Status VirtualEngine::submit(StreamId stream, Work* work) {
  const MutexLock lock(mutex_);
  if (const auto found = find_alive(stream); !found) {
    Effects::let_go(*work);
    give_back(work);
    return tl::unexpected(found.error());
  }
  append(stream, work);
  run_ready();
  return {};
}

void VirtualEngine::append(StreamId id, Work* work) {
  const auto number = static_cast<std::uint32_t>(id);
  Stream& stream = streams_[number - 1];
  work->stream = number;
  if (stream.tail == nullptr) {
    stream.head = work;
    ready_.push_back(number);
  } else {
    stream.tail->next = work;
  }
  stream.tail = work;
}

void VirtualEngine::pop_head(Stream& stream) {
  Work* work = stream.head;
  stream.head = work->next;
  if (stream.head == nullptr) stream.tail = nullptr;
  ++work->serial;  // timers of this use are stale from here on
  give_back(work);
}

void VirtualEngine::run_ready() {
  std::size_t next = 0;
  while (next < ready_.size()) pump(ready_[next++]);  // grows while it runs
  ready_.clear();
}

/// Starts what can start on a stream, until its head has to wait for something.
void VirtualEngine::pump(std::uint32_t number) {
  Stream& stream = streams_[number - 1];
  while (stream.head != nullptr && !stream.blocked) {
    Work& work = *stream.head;
    switch (work.kind) {
      case Work::Kind::record: pass_record(stream, work); break;
      case Work::Kind::wait:
        if (!pass_wait(number, work)) return;
        break;
      default:
        if (!try_start(number, work)) return;
    }
  }
}

void VirtualEngine::pass_record(Stream& stream, Work& work) {
  const EventState state = stream.failed ? EventState::failed : EventState::complete;
  stream.failed = false;
  // Events of one stream complete in order: a late one holds up those behind it.
  stream.events_from_ns = std::max(stream.events_from_ns, later(now(), work.duration_ns));
  if (stream.events_from_ns > now())
    add_timer(
        {.at_ns = stream.events_from_ns, .kind = Timer::Kind::event, .event = work.event, .state = state});
  else
    complete(work.event, state);
  pop_head(stream);
}

bool VirtualEngine::pass_wait(std::uint32_t number, Work& work) {
  Stream& stream = streams_[number - 1];
  EventTable::Slot& slot = events_.at(work.event);
  if (slot.state == EventState::pending) {
    stream.blocked = true;
    push_waiting(slot.waiting, number);
    return false;
  }
  events_.drop(work.event);
  pop_head(stream);
  return true;
}

bool VirtualEngine::takes_engine(const Work& work) const {
  return work.kind == Work::Kind::copy &&
         setup_.fabric.machine().links[work.link].info.kind != LinkKind::same_device;  // those are kernels
}

bool VirtualEngine::is_broken(const Stream& stream, const Work& work) const {
  if (setup_.fabric.is_lost(stream.device)) return true;
  return work.kind != Work::Kind::kernel && !setup_.fabric.is_usable(work.link);
}

/// The work at the head of a stream begins: true if it is over already.
bool VirtualEngine::try_start(std::uint32_t number, Work& work) {
  Stream& stream = streams_[number - 1];
  const bool has_engine = std::exchange(stream.has_engine, false);
  if (is_broken(stream, work)) {
    if (has_engine) release_engine(stream.device);
    finish(work, false);
    return true;
  }
  if (takes_engine(work) && !has_engine) {
    CopyEngines& engines = engines_[setup_.fabric.slot(stream.device)];
    if (engines.idle == 0) {
      stream.blocked = true;
      push_waiting(engines.waiting, number);
      return false;
    }
    --engines.idle;
  }
  stream.blocked = true;
  work.phase = Work::Phase::delayed;
  setup_.effects.begin(work);
  TimeNs delay = work.duration_ns;
  if (work.kind != Work::Kind::kernel) {
    const LinkInfo& link = setup_.fabric.machine().links[work.link].info;
    delay =
        link.issue_ns + link.latency_ns + static_cast<TimeNs>(work.copies.size() - 1) * link.issue_batched_ns;
  }
  const TimeNs at = later(now(), delay);
  if (at != kNever) add_timer({.at_ns = at, .work = &work, .serial = work.serial});
  return false;
}

/// A copy engine goes to whoever waited longest, so that nobody overtakes.
void VirtualEngine::release_engine(DeviceId device) {
  CopyEngines& engines = engines_[setup_.fabric.slot(device)];
  const std::uint32_t next = pop_waiting(engines.waiting);
  if (next == 0) {
    ++engines.idle;
    return;
  }
  streams_[next - 1].has_engine = true;
  streams_[next - 1].blocked = false;
  ready_.push_back(next);
}

/// The work at the head of its stream is over, begun or not.
void VirtualEngine::finish(Work& work, bool succeeded) {
  Stream& stream = streams_[work.stream - 1];
  const bool begun = work.phase != Work::Phase::queued;
  if (begun) setup_.effects.finish(work, succeeded);
  Effects::let_go(work);
  if (begun && takes_engine(work)) release_engine(stream.device);
  if (work.kind == Work::Kind::copy) {
    completed_copy_bytes_ += succeeded ? work.bytes : 0;
    failed_copies_ += succeeded ? 0 : 1;
  }
  if (!succeeded) stream.failed = true;
  trace_ = mix(mix(trace_, static_cast<std::uint64_t>(now())), work.stream * 2ULL + (succeeded ? 1 : 0));
  stream.blocked = false;
  ready_.push_back(work.stream);
  pop_head(stream);
}

}  // namespace harvest::sim
