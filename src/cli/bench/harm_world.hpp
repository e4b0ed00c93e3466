// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/machine.hpp>
#include <harvest/peer_cache.hpp>

#include <cstdint>
#include <functional>
#include <vector>

#include "cli/owner_trace.hpp"

/// Owners that live as a recording says, beside a cache that takes what they leave: what it harvests, and
/// what that does to them. (The `Owner` of `bench reclaim`, which takes everything once, is another one.)
namespace harvest::cli::bench {

/// How an owner gets memory that the cache holds.
enum class ReclaimMode : std::uint8_t {
  watermark,    ///< it does not know of the cache and just allocates: what does not fit then, fails
  cooperative,  ///< it calls `PeerCache::reclaim` for what is missing, waits, and allocates
};
[[nodiscard]] std::string_view to_string(ReclaimMode mode);

/// How a rise reaches the device: the recording tells only that it came between two looks at it.
struct RiseShape {
  std::uint64_t bytes_per_s = 0;  ///< 0: at once, as one allocation
  std::uint64_t step_bytes = 0;   ///< else one allocation after another of this size
};

struct HarmSetting {
  ReclaimMode mode = ReclaimMode::cooperative;
  std::uint64_t reserve_bytes = 0;
  RiseShape rise;
  TimeNs deadline_ns = 0;  ///< of a cooperative owner's request
  Backing backing = Backing::external_host;
  std::uint64_t seed = 0;
  bool every_poll = false;  ///< leave none out: some thirty times slower
};

struct HarmFigures {
  double idle_gib_hours = 0;       ///< what the owners did not use
  double harvested_gib_hours = 0;  ///< of that, what the cache held
  std::uint64_t rises = 0;
  std::uint64_t failed_rises = 0;  ///< in which an allocation failed because of the cache's memory
  std::vector<TimeNs> reclaim_ns;  ///< how long the owner waited for each of its requests
  std::uint64_t late = 0;          ///< of those, how many took longer than the deadline
  std::uint64_t monitor_reclaims = 0;
  std::uint64_t populated_bytes = 0;  ///< written to peers to fill room
  std::uint64_t spilled_bytes = 0;    ///< moved away because their memory was wanted back
};

/// Runs the whole trace on a fresh machine, whose other tenants are none. `tell` hears from time to time how
/// much of it has passed. The same arguments give the same figures. Errors: of the backend and the cache;
/// unavailable, where an owner does not get its memory even by a request without a limit.
[[nodiscard]] Result<HarmFigures> run_harm(const Machine& machine, const OwnerTrace& trace,
                                           const HarmSetting& setting,
                                           const std::function<void(TimeNs)>& tell);

}  // namespace harvest::cli::bench
