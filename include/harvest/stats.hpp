// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace harvest {

/// Why a copy left a tier, or an object the cache.
enum class DropReason : std::uint8_t {
  evicted,      ///< a policy chose it for room
  reclaimed,    ///< an owner asked for its memory
  pressure,     ///< the monitor saw the owner's need
  replaced,     ///< `put` gave the key new bytes
  erased,       ///< the caller said so
  device_lost,  ///< its device or path left service
  copy_failed,  ///< the copy that should have filled it failed
};
inline constexpr std::size_t kDropReasons = 7;
[[nodiscard]] std::string_view to_string(DropReason reason);

/// One pool. `used + free + draining == mapped` (I7).
struct PoolStats {
  DeviceId device = kHost;
  Tier tier = Tier::none;
  bool in_service = true;
  std::string out_of_service_reason;
  std::uint64_t budget_bytes = 0;
  std::uint64_t mapped_bytes = 0;
  std::uint64_t used_bytes = 0;
  std::uint64_t free_bytes = 0;
  std::uint64_t draining_bytes = 0;  ///< still read by work in flight
  std::uint64_t segments = 0;
  std::uint64_t device_free_bytes = 0;  ///< as last sampled; peers only
  std::uint64_t reserve_bytes = 0;      ///< as in force; peers only
  std::uint64_t allowed_bytes = 0;      ///< what the last sample lets us hold; peers only
};

/// What a tier of some size would do.
struct ShadowPoint {
  std::uint64_t capacity_bytes = 0;
  double hit_ratio = 0;  ///< share of the reads that reach the tier
};

/// Counters since the cache was made. Read while others write, they are near each other in time, not of
/// one instant.
struct CacheStats {
  /// Items of `fetch` and calls of `acquire`: `reads == hits[local] + hits[peer] + hits[host] + misses`.
  std::uint64_t reads = 0;
  std::array<std::uint64_t, kTiers> hits{};  ///< by the Tier that served
  std::uint64_t misses = 0;

  std::uint64_t fetches = 0;                          ///< batches
  std::uint64_t fetched_items = 0;                    ///< items that were served
  std::array<std::uint64_t, kTiers> fetched_bytes{};  ///< by the Tier that served
  std::uint64_t fetch_fallbacks = 0;                  ///< items served from a lower tier after a failed copy
  std::uint64_t failed_copies = 0;                    ///< of any kind, at submission or in flight

  std::uint64_t puts = 0;  ///< calls: `puts == stored + refused`
  std::uint64_t puts_stored = 0;
  std::uint64_t puts_refused = 0;
  std::array<std::uint64_t, kTiers> written_bytes{};  ///< into each tier, by put, promotion and spill

  std::uint64_t promotions = 0;  ///< begun: `== completed + failed + under way`
  std::uint64_t promotions_completed = 0;
  std::uint64_t promotions_failed = 0;
  std::uint64_t admissions_asked = 0;    ///< how often a tier was asked to let an object in
  std::uint64_t admissions_refused = 0;  ///< of those

  /// Copies that left each tier, by reason.
  std::array<std::array<std::uint64_t, kDropReasons>, kTiers> dropped_copies{};
  std::uint64_t dropped(Tier tier, DropReason reason) const {
    return dropped_copies[static_cast<std::size_t>(tier)][static_cast<std::size_t>(reason)];
  }

  std::uint64_t objects = 0;          ///< alive now
  std::uint64_t objects_evicted = 0;  ///< dropped for room, from every tier
  std::uint64_t objects_lost = 0;     ///< `lossy` and revoked, or died with their device

  std::uint64_t reclaims = 0;  ///< asked for by owners or the monitor
  std::uint64_t reclaims_late = 0;
  std::uint64_t reclaim_requested_bytes = 0;
  std::uint64_t reclaim_returned_bytes = 0;
  std::uint64_t spilled_bytes = 0;

  std::uint64_t access_samples_lost = 0;  ///< reads that the policies did not hear of: `poll` came too seldom
  std::vector<PoolStats> pools;           ///< local, peers in order, host

  /// What more memory would give, and less would cost, by Tier, for peers (together) and host: the hit ratio
  /// of LRU at half, 1, 1.25, 1.5, 2 and 4 times the present capacity, if it let everything in. Look at what
  /// is between the points: the tier's own policy and admission are others, so it does not hit as the second
  /// says. Peers hear of what local memory did not serve, the host of `managed_host` objects; the put of a
  /// key that the cache does not hold is a read that missed. An estimate, mostly within .01 for some thousand
  /// objects and more, of the last million reads or so, learnt in `poll` from a sample of at most 8,192
  /// objects; takes 1 MiB a tier. Empty for local, for a tier that this cache does not have, and before the
  /// first read.
  std::array<std::vector<ShadowPoint>, kTiers> shadow;
};

}  // namespace harvest
