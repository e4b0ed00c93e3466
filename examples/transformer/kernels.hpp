// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/simulated_backend.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <deque>
#include <functional>

#include "transformer/random.hpp"

namespace harvest::transformer {

/// What a kernel does, for the time that it takes on the simulated GPU.
struct KernelWork {
  std::uint64_t bytes = 0;       ///< that it reads and writes
  std::uint64_t operations = 0;  ///< of floating point
};

/// Functions of this process that run as kernels would run on a stream of the simulated GPU: after what the
/// stream waits for, one after the other, each in its own time. A function is called when virtual time is
/// somewhere between its kernel's begin and end, where is drawn: memory that is not there yet by then, or not
/// there any more, shows as a wrong result.
class Kernels {
 public:
  /// No GPU: functions run at once.
  Kernels() : random_(0) {}
  /// A kernel takes `launch_ns`, at least 1, even if it does nothing.
  Kernels(SimulatedBackend& backend, StreamId stream, TimeNs launch_ns, std::uint64_t seed)
      : backend_(&backend), stream_(stream), launch_ns_(launch_ns), random_(seed) {}
  ~Kernels() { drop(); }
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  [[nodiscard]] StreamId stream() const { return stream_; }

  /// Gives the stream a kernel. `run` is called by `wait`. Errors: those of the backend.
  Status launch(KernelWork work, std::function<void()> run);

  /// Waits for all kernels, and calls their functions. Errors: copy_failed (the stream waited for a copy that
  /// failed), timed_out (virtual time passed a kernel's end before this was called, so that its function
  /// would see a later time's memory); the functions from there on are not called.
  Status wait();

  /// Forgets what is not waited for: its results are of no use.
  void drop();

 private:
  struct Kernel {
    EventId moment = EventId::none;  ///< in which the function is called
    TimeNs launched_ns = 0;
    std::function<void()> run;
  };
  TimeNs draw_moment(TimeNs whole_ns);
  Status wait_for(const Kernel& kernel);

  SimulatedBackend* backend_ = nullptr;
  StreamId stream_ = StreamId::none;
  TimeNs launch_ns_ = 0;
  Random random_;
  std::deque<Kernel> launched_;
};

}  // namespace harvest::transformer
