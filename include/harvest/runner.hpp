// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <memory>

namespace harvest {

class PeerCache;

/// Owns a thread that calls `PeerCache::poll` again and again, with a pause between. For programs without a
/// loop of their own; not for the simulated backend in virtual time, where whoever drives the clock polls.
class Runner {
 public:
  /// Starts. `cache` outlives the runner. `pause_ns` is the time between two polls.
  explicit Runner(PeerCache& cache, TimeNs pause_ns = 1'000'000);

  /// Stops after the poll that is running.
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace harvest
