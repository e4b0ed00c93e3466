// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/threaded_engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/assert.hpp"

namespace harvest::sim {
namespace {

constexpr TimeNs kCopyDelayNsMax = 50'000;
constexpr TimeNs kSliceNs = 2'000'000;  // how long a thread sleeps before it looks whether to stop

std::chrono::nanoseconds ns(TimeNs count) {
  return std::chrono::nanoseconds(count);
}

}  // namespace

std::unique_ptr<Engine> make_threaded_engine(EngineSetup setup) {
  return std::make_unique<ThreadedEngine>(std::move(setup));
}

ThreadedEngine::ThreadedEngine(EngineSetup setup) : setup_(std::move(setup)) {}

/// Work that has not begun by now never does.
ThreadedEngine::~ThreadedEngine() {
  stop_schedule();
  stopping_ = true;
  std::vector<std::unique_ptr<Stream>> streams;
  {
    const WriteLock lock(mutex_);
    streams.swap(streams_);
  }
  for (auto& stream : streams) {
    {
      const MutexLock lock(stream->mutex);  // so that the thread does not miss the call
    }
    stream->changed.notify_all();
    stream->thread.join();
    const MutexLock lock(stream->mutex);
    for (Item& item : stream->items) Effects::let_go(*item.work);
  }
}

// --- streams ------------------------------------------------------------------------------------------

StreamId ThreadedEngine::create_stream(DeviceId device) {
  const WriteLock lock(mutex_);
  auto stream = std::make_unique<Stream>();
  stream->device = device;
  stream->random = Random{mix(setup_.seed, streams_.size() + 1)};
  stream->thread = std::thread([this, raw = stream.get()] { serve(*raw); });
  streams_.push_back(std::move(stream));
  return StreamId{static_cast<std::uint32_t>(streams_.size())};
}

Result<ThreadedEngine::Stream*> ThreadedEngine::find(StreamId stream) const {
  const auto number = static_cast<std::uint32_t>(stream);
  const ReadLock lock(mutex_);
  if (number != 0 && number <= streams_.size() && streams_[number - 1]->alive)
    return streams_[number - 1].get();
  return fail(ErrorCode::not_found, fmt::format("no stream {}", number));
}

Status ThreadedEngine::destroy_stream(StreamId stream) {
  const auto found = find(stream);
  if (!found) return tl::unexpected(found.error());
  (*found)->alive = false;
  return {};
}

Result<DeviceId> ThreadedEngine::stream_device(StreamId stream) const {
  return find(stream).map([](const Stream* found) { return found->device; });
}

void ThreadedEngine::push(Stream& stream, Item item) {
  {
    const MutexLock lock(stream.mutex);
    stream.items.push_back(std::move(item));
  }
  stream.changed.notify_one();
}

void ThreadedEngine::serve(Stream& stream) {
  while (!stopping_) {
    Item item;
    {
      MutexLock lock(stream.mutex);
      if (stream.items.empty()) {
        if (!stopping_) lock.wait(stream.changed);
        continue;
      }
      item = std::move(stream.items.front());
      stream.items.pop_front();
    }
    run(stream, item);
    Effects::let_go(*item.work);
  }
}

// --- work ---------------------------------------------------------------------------------------------

Status ThreadedEngine::submit(StreamId stream, Work* raw) {
  std::unique_ptr<Work> work(raw);
  const auto found = find(stream);
  if (!found) {
    Effects::let_go(*work);
    return tl::unexpected(found.error());
  }
  push(**found, {std::move(work), nullptr});
  return {};
}

void ThreadedEngine::drop_work(Work* work) {
  Effects::let_go(*work);
  delete work;
}

void ThreadedEngine::run(Stream& stream, Item& item) {
  Work& work = *item.work;
  switch (work.kind) {
    case Work::Kind::wait: wait_for(*item.event); return;
    case Work::Kind::record: {
      const bool failed = std::exchange(stream.failed, false);
      pause(stream, work.duration_ns);
      {
        const MutexLock lock(item.event->mutex);
        item.event->state = failed ? EventState::failed : EventState::complete;
      }
      item.event->changed.notify_all();
      return;
    }
    default: break;
  }
  const bool succeeded = run_work(stream, work);
  if (!succeeded) stream.failed = true;
  if (work.kind != Work::Kind::copy) return;
  if (succeeded)
    completed_copy_bytes_.fetch_add(work.bytes, std::memory_order_relaxed);
  else
    failed_copies_.fetch_add(1, std::memory_order_relaxed);
}

/// False if it failed.
bool ThreadedEngine::run_work(Stream& stream, Work& work) {
  const auto broken = [&] {
    return setup_.fabric.is_lost(stream.device) ||
           (work.kind != Work::Kind::kernel && !setup_.fabric.is_usable(work.link));
  };
  if (broken()) return false;
  if (work.kind == Work::Kind::kernel) return pause(stream, work.duration_ns);
  setup_.effects.begin(work);
  const double factor = stream.random.next_unit() * work.slow_factor;
  pause(stream, static_cast<TimeNs>(factor * static_cast<double>(kCopyDelayNsMax)));
  const bool succeeded = !work.fails && !broken();
  setup_.effects.finish(work, succeeded);
  return succeeded;
}

/// Sleeps; false if the device was lost or the engine stops meanwhile.
bool ThreadedEngine::pause(const Stream& stream, TimeNs duration_ns) const {
  while (duration_ns > 0 && !stopping_ && !setup_.fabric.is_lost(stream.device)) {
    std::this_thread::sleep_for(ns(std::min(duration_ns, kSliceNs)));
    if (duration_ns != kNever) duration_ns -= std::min(duration_ns, kSliceNs);
  }
  return duration_ns <= 0;
}

// --- events -------------------------------------------------------------------------------------------

Result<EventId> ThreadedEngine::record_event(StreamId stream, TimeNs late_ns) {
  const auto found = find(stream);
  if (!found) return tl::unexpected(found.error());
  auto event = std::make_shared<Event>();
  EventId id = EventId::none;
  {
    const WriteLock lock(mutex_);
    id = EventId{next_event_++};
    events_.emplace(static_cast<std::uint64_t>(id), event);
  }
  auto work = std::make_unique<Work>();
  work->kind = Work::Kind::record;
  work->duration_ns = late_ns;
  push(**found, {std::move(work), std::move(event)});
  return id;
}

std::shared_ptr<ThreadedEngine::Event> ThreadedEngine::find(EventId event) const {
  const ReadLock lock(mutex_);
  const auto found = events_.find(static_cast<std::uint64_t>(event));
  HARVEST_ASSERT(found != events_.end(), "an event that never was or was released");
  return found->second;
}

void ThreadedEngine::release_event(EventId event) {
  const WriteLock lock(mutex_);
  HARVEST_ASSERT(events_.erase(static_cast<std::uint64_t>(event)) == 1,
                 "an event that never was or was released");
}

EventState ThreadedEngine::query_event(EventId event) {
  const std::shared_ptr<Event> found = find(event);
  const MutexLock lock(found->mutex);
  return found->state;
}

Status ThreadedEngine::stream_wait(StreamId stream, EventId event) {
  const auto found = find(stream);
  if (!found) return tl::unexpected(found.error());
  auto work = std::make_unique<Work>();
  work->kind = Work::Kind::wait;
  push(**found, {std::move(work), find(event)});
  return {};
}

EventState ThreadedEngine::wait_event(EventId event, TimeNs deadline_ns) {
  const std::shared_ptr<Event> found = find(event);
  MutexLock lock(found->mutex);
  for (TimeNs now = now_ns(); found->state == EventState::pending && now < deadline_ns; now = now_ns())
    lock.wait_for(found->changed, ns(std::min(deadline_ns - now, TimeNs{1'000'000'000})));
  return found->state;
}

void ThreadedEngine::wait_for(Event& event) {
  MutexLock lock(event.mutex);
  while (event.state == EventState::pending && !stopping_) lock.wait_for(event.changed, ns(kSliceNs));
}

// --- time ---------------------------------------------------------------------------------------------

TimeNs ThreadedEngine::now_ns() const {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_)
      .count();
}

void ThreadedEngine::sleep_until(TimeNs until_ns) {
  HARVEST_ASSERT(until_ns != kNever, "a sleep without end");
  std::this_thread::sleep_until(start_ + ns(until_ns));
}

void ThreadedEngine::set_schedule(std::vector<ScheduledFault> schedule) {
  stop_schedule();
  if (schedule.empty()) return;
  std::stable_sort(schedule.begin(), schedule.end(),
                   [](const ScheduledFault& a, const ScheduledFault& b) { return a.at_ns < b.at_ns; });
  const MutexLock lock(schedule_mutex_);
  schedule_stop_ = false;
  schedule_thread_ = std::thread([this, schedule = std::move(schedule)] { run_schedule(schedule); });
}

void ThreadedEngine::run_schedule(const std::vector<ScheduledFault>& schedule) {
  for (const ScheduledFault& fault : schedule) {
    for (TimeNs now = now_ns(); now < fault.at_ns && !schedule_stop_; now = now_ns())
      std::this_thread::sleep_for(ns(std::min(fault.at_ns - now, kSliceNs)));
    if (schedule_stop_) return;
    setup_.apply(fault);
  }
}

void ThreadedEngine::stop_schedule() {
  const MutexLock lock(schedule_mutex_);
  schedule_stop_ = true;
  if (schedule_thread_.joinable()) schedule_thread_.join();
}

}  // namespace harvest::sim
