// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <queue>
#include <vector>

#include "backend/sim/engine.hpp"
#include "backend/sim/event_table.hpp"
#include "backend/sim/flow_network.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::sim {

/// Streams, copy engines and flows as discrete events. What can start starts at once, at the time when
/// it was given or when what it waited for ended; ties go to what was given first.
class VirtualEngine final : public Engine {
 public:
  explicit VirtualEngine(EngineSetup setup);

  StreamId create_stream(DeviceId device) override HARVEST_EXCLUDES(mutex_);
  Status destroy_stream(StreamId stream) override HARVEST_EXCLUDES(mutex_);
  Result<DeviceId> stream_device(StreamId stream) const override HARVEST_EXCLUDES(mutex_);
  Result<EventId> record_event(StreamId stream, TimeNs late_ns) override HARVEST_EXCLUDES(mutex_);
  void release_event(EventId event) override HARVEST_EXCLUDES(mutex_);
  EventState query_event(EventId event) override HARVEST_EXCLUDES(mutex_);
  Status stream_wait(StreamId stream, EventId event) override HARVEST_EXCLUDES(mutex_);
  EventState wait_event(EventId event, TimeNs deadline_ns) override HARVEST_EXCLUDES(mutex_);
  Work* new_work() override HARVEST_EXCLUDES(mutex_);
  Status submit(StreamId stream, Work* work) override HARVEST_EXCLUDES(mutex_);
  void drop_work(Work* work) override HARVEST_EXCLUDES(mutex_);
  TimeNs now_ns() const override { return now_ns_.load(std::memory_order_acquire); }
  void sleep_until(TimeNs until_ns) override HARVEST_EXCLUDES(mutex_);
  void spend(TimeNs ns) override HARVEST_EXCLUDES(mutex_);
  void fail_broken_work() override HARVEST_EXCLUDES(mutex_);
  void set_schedule(std::vector<ScheduledFault> schedule) override HARVEST_EXCLUDES(mutex_);
  void note(std::uint64_t what) override HARVEST_EXCLUDES(mutex_);
  std::uint64_t trace_hash() const override HARVEST_EXCLUDES(mutex_);
  std::uint64_t completed_copy_bytes() const override HARVEST_EXCLUDES(mutex_);
  std::uint64_t failed_copies() const override HARVEST_EXCLUDES(mutex_);

 private:
  /// A stream's work in order. Its head runs, waits (`blocked`), or is about to start.
  struct Stream {
    DeviceId device = kHost;
    bool alive = true;
    bool blocked = false;
    bool failed = false;        ///< work since the last record did
    TimeNs events_from_ns = 0;  ///< no event completes before: one recorded earlier is late
    bool has_engine = false;    ///< a copy engine is its own, for the head that is about to start
    Work* head = nullptr;
    Work* tail = nullptr;
    std::uint32_t next_waiting = 0;
  };
  struct CopyEngines {
    std::uint32_t idle = 0;
    WaitingStreams waiting;
  };
  struct Timer {
    enum class Kind : std::uint8_t { work, event, schedule };
    TimeNs at_ns = 0;
    std::uint64_t order = 0;
    Kind kind = Kind::work;
    Work* work = nullptr;      ///< of kind work
    std::uint64_t serial = 0;  ///< of that use of it; of kind schedule: of that schedule
    EventId event = EventId::none;
    EventState state = EventState::complete;
    std::size_t index = 0;  ///< of kind schedule
    friend bool operator>(const Timer& a, const Timer& b) {
      return a.at_ns != b.at_ns ? a.at_ns > b.at_ns : a.order > b.order;
    }
  };

  Stream* find(StreamId stream) const HARVEST_REQUIRES(mutex_);
  Result<Stream*> find_alive(StreamId stream) const HARVEST_REQUIRES(mutex_);
  void push_waiting(WaitingStreams& row, std::uint32_t stream) HARVEST_REQUIRES(mutex_);
  std::uint32_t pop_waiting(WaitingStreams& row) HARVEST_REQUIRES(mutex_);

  Work* take_work() HARVEST_REQUIRES(mutex_);
  void give_back(Work* work) HARVEST_REQUIRES(mutex_);
  void append(StreamId stream, Work* work) HARVEST_REQUIRES(mutex_);
  void pop_head(Stream& stream) HARVEST_REQUIRES(mutex_);

  void run_ready() HARVEST_REQUIRES(mutex_);
  void pump(std::uint32_t stream) HARVEST_REQUIRES(mutex_);
  bool pass_wait(std::uint32_t stream, Work& work) HARVEST_REQUIRES(mutex_);
  void pass_record(Stream& stream, Work& work) HARVEST_REQUIRES(mutex_);
  bool try_start(std::uint32_t stream, Work& work) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] bool takes_engine(const Work& work) const;
  [[nodiscard]] bool is_broken(const Stream& stream, const Work& work) const;
  void release_engine(DeviceId device) HARVEST_REQUIRES(mutex_);
  void finish(Work& work, bool succeeded) HARVEST_REQUIRES(mutex_);
  void complete(EventId event, EventState state) HARVEST_REQUIRES(mutex_);

  void add_timer(Timer timer) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] bool is_stale(const Timer& timer) const HARVEST_REQUIRES(mutex_);
  [[nodiscard]] TimeNs next_ns() HARVEST_REQUIRES(mutex_);
  void step(TimeNs at_ns) HARVEST_REQUIRES(mutex_);
  void run_timer(const Timer& timer) HARVEST_REQUIRES(mutex_);
  void run_until(TimeNs until_ns) HARVEST_REQUIRES(mutex_);
  void fail_broken() HARVEST_REQUIRES(mutex_);
  [[nodiscard]] TimeNs now() const { return now_ns_.load(std::memory_order_relaxed); }

  const EngineSetup setup_;
  std::atomic<TimeNs> now_ns_{0};  ///< written under mutex_

  mutable Mutex mutex_;
  mutable std::deque<Stream> streams_ HARVEST_GUARDED_BY(mutex_);  ///< StreamId is the place + 1
  std::vector<CopyEngines> engines_ HARVEST_GUARDED_BY(mutex_);    ///< by Fabric::slot
  EventTable events_ HARVEST_GUARDED_BY(mutex_);
  FlowNetwork flows_ HARVEST_GUARDED_BY(mutex_);
  std::vector<Work*> work_of_flow_ HARVEST_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Work>> all_work_ HARVEST_GUARDED_BY(mutex_);
  Work* free_work_ HARVEST_GUARDED_BY(mutex_) = nullptr;
  std::priority_queue<Timer, std::vector<Timer>, std::greater<>> timers_ HARVEST_GUARDED_BY(mutex_);
  std::uint64_t next_order_ HARVEST_GUARDED_BY(mutex_) = 0;
  std::vector<std::uint32_t> ready_ HARVEST_GUARDED_BY(mutex_);  ///< streams to look at again
  std::vector<ScheduledFault> schedule_ HARVEST_GUARDED_BY(mutex_);
  std::uint64_t schedule_serial_ HARVEST_GUARDED_BY(mutex_) = 0;
  std::uint64_t trace_ HARVEST_GUARDED_BY(mutex_) = 0;
  std::uint64_t completed_copy_bytes_ HARVEST_GUARDED_BY(mutex_) = 0;
  std::uint64_t failed_copies_ HARVEST_GUARDED_BY(mutex_) = 0;
};

}  // namespace harvest::sim
