// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <memory>

namespace harvest {

class PeerCache;

/// Owns a thread that calls `PeerCache::poll` when it wants to be called: often while something is under way,
/// seldom when nothing is. For programs without a loop of their own; not for the simulated backend in virtual
/// time, where whoever drives the clock polls.
class Runner {
 public:
  /// Starts. `cache` outlives the runner. Between two polls it waits for 10 us to `longest_pause_ns`.
  explicit Runner(PeerCache& cache, TimeNs longest_pause_ns = 1'000'000);

  /// Stops after the poll that is running.
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace harvest
