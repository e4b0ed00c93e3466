// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <memory>
#include <string>

/// What the examples' servers stand in: a machine of real size, of which models of some MiB would never feel
/// the limits, made as small as they are. GPU 0 serves, the others are its peers.
namespace harvest::transformer {

/// `system` as `load_machine` takes it. The peers' owners hold all but `idle_bytes` of each, beside what
/// `small_cache_config` leaves them. Errors: as `load_machine`.
[[nodiscard]] Result<std::unique_ptr<SimulatedBackend>> make_small_machine(const std::string& system,
                                                                           std::uint64_t idle_bytes,
                                                                           std::uint64_t seed);

/// For GPU 0: small segments, a small reserve, and a monitor that is awake.
[[nodiscard]] PeerCacheConfig small_cache_config();

/// Of batches of copies, `rate` fail in flight, as many are refused, and as many are slow; of mappings on
/// GPUs as many fail.
[[nodiscard]] FaultPlan faults_of_copies(double rate);

inline constexpr std::uint64_t kSmallestIdleBytes = 8 << 20;  ///< that peers lend at all

}  // namespace harvest::transformer
