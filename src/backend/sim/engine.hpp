// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/simulated_backend.hpp>

#include <functional>
#include <memory>
#include <vector>

#include "backend/sim/fabric.hpp"
#include "backend/sim/work.hpp"

namespace harvest::sim {

/// Runs work on streams and keeps the time: in virtual time or with threads. Thread-safe.
/// Functions with the names of `Backend`'s do what those say.
class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  virtual StreamId create_stream(DeviceId device) = 0;
  virtual Status destroy_stream(StreamId stream) = 0;
  virtual Result<DeviceId> stream_device(StreamId stream) const = 0;

  virtual Result<EventId> record_event(StreamId stream, TimeNs late_ns) = 0;
  virtual void release_event(EventId event) = 0;
  virtual EventState query_event(EventId event) = 0;
  virtual Status stream_wait(StreamId stream, EventId event) = 0;
  virtual EventState wait_event(EventId event, TimeNs deadline_ns) = 0;

  /// Work to fill in and to give to `submit`, which takes it in any case.
  virtual Work* new_work() = 0;
  virtual Status submit(StreamId stream, Work* work) = 0;

  /// Takes back work that was not submitted.
  virtual void drop_work(Work* work) = 0;

  virtual TimeNs now_ns() const = 0;
  virtual void sleep_until(TimeNs until_ns) = 0;

  /// A call of the driver that blocks for so long.
  virtual void spend(TimeNs ns) = 0;

  /// The fabric lost a link or a device: work under way that needs it fails now.
  virtual void fail_broken_work() = 0;

  /// What happens by itself from now on, instead of what was set before.
  virtual void set_schedule(std::vector<ScheduledFault> schedule) = 0;

  /// Folds something observable into the trace.
  virtual void note(std::uint64_t what) = 0;
  virtual std::uint64_t trace_hash() const = 0;
  virtual std::uint64_t completed_copy_bytes() const = 0;
  virtual std::uint64_t failed_copies() const = 0;
};

/// What the engine needs of the backend. `apply` is called with the engine's lock held and calls no
/// function of the engine.
struct EngineSetup {
  const Fabric& fabric;
  const Effects& effects;
  std::function<void(const ScheduledFault&)> apply;
  std::uint64_t seed = 0;
};

[[nodiscard]] std::unique_ptr<Engine> make_virtual_engine(EngineSetup setup);
[[nodiscard]] std::unique_ptr<Engine> make_threaded_engine(EngineSetup setup);

}  // namespace harvest::sim
