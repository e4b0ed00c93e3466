// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <vector>

#include "transformer/random.hpp"

namespace harvest::transformer {

struct OwnerStats {
  std::uint64_t reclaims = 0;
  std::uint64_t returned_bytes = 0;  ///< by the deadline
  std::uint64_t late = 0;            ///< reclaims of which something was to follow
  std::uint64_t bursts = 0;          ///< memory that they took without a word
  std::uint64_t refused = 0;         ///< memory that was given back, and then was not there
};

/// Those to whom the peers belong. They need their memory in bursts: they take what is free, they ask for
/// more with deadlines that are short, and they let go of it again.
class BurstyOwners {
 public:
  /// One on each peer does something every `period_ns` on average.
  BurstyOwners(SimulatedBackend& backend, PeerCache& cache, TimeNs period_ns, std::uint64_t seed);

  /// Whether one of them wants to do something now.
  [[nodiscard]] bool due() const;
  /// Does what is due. Moves virtual time where an owner waits for its memory.
  void act();
  [[nodiscard]] const OwnerStats& stats() const { return stats_; }

 private:
  struct Owner {
    DeviceId device = kHost;
    std::uint64_t burst_bytes = 0;  ///< that it holds beyond what it always holds
    TimeNs next_ns = 0;
  };
  void act(Owner& owner);
  void reclaim(Owner& owner);
  void take(Owner& owner, std::uint64_t bytes);
  void schedule(Owner& owner);

  SimulatedBackend& backend_;
  PeerCache& cache_;
  TimeNs period_ns_;
  Random random_;
  std::vector<Owner> owners_;
  OwnerStats stats_;
};

}  // namespace harvest::transformer
