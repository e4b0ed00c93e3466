// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "backend/sim/engine.hpp"
#include "backend/sim/mix.hpp"
#include "base/annotated_mutex.hpp"
#include "base/random.hpp"

namespace harvest::sim {

/// A thread for each stream, which really copies. Streams share no lock while they work: a race
/// detector sees no order between two of them but what events make. Copies take a short random time
/// of the seed, kernels their own; bandwidth and copy engines are not modelled.
class ThreadedEngine final : public Engine {
 public:
  explicit ThreadedEngine(EngineSetup setup);
  ~ThreadedEngine() override;

  StreamId create_stream(DeviceId device) override HARVEST_EXCLUDES(mutex_);
  Status destroy_stream(StreamId stream) override HARVEST_EXCLUDES(mutex_);
  Result<DeviceId> stream_device(StreamId stream) const override HARVEST_EXCLUDES(mutex_);
  Result<EventId> record_event(StreamId stream, TimeNs late_ns) override HARVEST_EXCLUDES(mutex_);
  void release_event(EventId event) override HARVEST_EXCLUDES(mutex_);
  EventState query_event(EventId event) override HARVEST_EXCLUDES(mutex_);
  Status stream_wait(StreamId stream, EventId event) override HARVEST_EXCLUDES(mutex_);
  EventState wait_event(EventId event, TimeNs deadline_ns) override HARVEST_EXCLUDES(mutex_);
  Work* new_work() override { return new Work; }
  void drop_work(Work* work) override;
  Status submit(StreamId stream, Work* work) override HARVEST_EXCLUDES(mutex_);
  TimeNs now_ns() const override;
  void sleep_until(TimeNs until_ns) override;
  void spend(TimeNs) override {}
  void fail_broken_work() override {}  // each copy looks at the fabric itself when it ends
  void set_schedule(std::vector<ScheduledFault> schedule) override;
  void note(std::uint64_t) override {}
  std::uint64_t trace_hash() const override { return 0; }
  std::uint64_t completed_copy_bytes() const override { return completed_copy_bytes_.load(); }
  std::uint64_t failed_copies() const override { return failed_copies_.load(); }

 private:
  struct Event {
    Mutex mutex;
    std::condition_variable changed;
    EventState state HARVEST_GUARDED_BY(mutex) = EventState::pending;
  };
  struct Item {
    std::unique_ptr<Work> work;
    std::shared_ptr<Event> event;  ///< of wait and record
  };
  struct Stream {
    DeviceId device = kHost;
    std::atomic<bool> alive{true};
    Random random{0};     ///< of its thread alone
    bool failed = false;  ///< of its thread alone: work since the last record did
    Mutex mutex;
    std::condition_variable changed;
    std::deque<Item> items HARVEST_GUARDED_BY(mutex);
    std::thread thread;
  };

  [[nodiscard]] Result<Stream*> find(StreamId stream) const HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] std::shared_ptr<Event> find(EventId event) const HARVEST_EXCLUDES(mutex_);
  void push(Stream& stream, Item item);
  void serve(Stream& stream);
  void run(Stream& stream, Item& item);
  bool run_work(Stream& stream, Work& work);
  void wait_for(Event& event);
  bool pause(const Stream& stream, TimeNs ns) const;
  void run_schedule(const std::vector<ScheduledFault>& schedule);
  void stop_schedule();

  const EngineSetup setup_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> completed_copy_bytes_{0}, failed_copies_{0};

  mutable SharedMutex mutex_;
  std::vector<std::unique_ptr<Stream>> streams_ HARVEST_GUARDED_BY(mutex_);  ///< StreamId is the place + 1
  std::unordered_map<std::uint64_t, std::shared_ptr<Event>> events_ HARVEST_GUARDED_BY(mutex_);
  std::uint64_t next_event_ HARVEST_GUARDED_BY(mutex_) = 1;

  Mutex schedule_mutex_;
  std::thread schedule_thread_ HARVEST_GUARDED_BY(schedule_mutex_);
  std::atomic<bool> schedule_stop_{false};
};

}  // namespace harvest::sim
