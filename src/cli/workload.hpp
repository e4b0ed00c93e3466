// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/machine.hpp>
#include <harvest/stats.hpp>
#include <harvest/trace.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cli/ceiling.hpp"
#include "cli/engine.hpp"
#include "cli/output.hpp"
#include "cli/owners.hpp"

namespace harvest::cli {

/// Recorded requests, the machine that they run on, and the memory that its cache may use.
struct Workload {
  Trace trace;
  Machine machine;
  std::uint64_t block_bytes = 0;
  std::uint64_t local_bytes = 0;
  std::uint64_t peer_bytes = 0;  ///< on each peer
  std::uint64_t host_bytes = 0;
  std::string policy;  ///< empty: the library's default
  OwnerActivity activity = OwnerActivity::none;
  std::uint64_t seed = 1;

  /// The longest request.
  [[nodiscard]] std::uint64_t most_blocks() const;
  [[nodiscard]] std::uint64_t unique_blocks() const;
};

struct RunFigures {
  bool with_peers = false;
  std::vector<DeviceId> peers;  ///< that the cache could use
  EngineFigures engine;
  OwnerFigures owners;
  CacheStats cache;
  TimeNs duration_ns = 0;  ///< of virtual time
  std::vector<BlockUse> uses;
};

/// Runs all requests on a fresh machine, in virtual time and phantom bytes. The same workload gives the
/// same figures. Errors: of the backend or the cache.
[[nodiscard]] Result<RunFigures> run_workload(const Workload& workload, bool with_peers, Progress& progress);

struct TimeSummary {
  TimeNs p50_ns = 0;
  TimeNs p99_ns = 0;
  TimeNs total_ns = 0;
};

/// Quantiles by nearest rank; zeros for nothing.
[[nodiscard]] TimeSummary summarize(std::span<const TimeNs> times_ns);

}  // namespace harvest::cli
