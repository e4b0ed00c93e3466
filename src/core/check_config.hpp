// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/topology.hpp>

namespace harvest::core {

/// The first thing in `config` that cannot be meant on this machine, with field, value and limit.
/// Errors: as `PeerCache::create`.
[[nodiscard]] Status check_config(const PeerCacheConfig& config, const Topology& topology);

/// Whether anything of `device` is left beside its owner's reserve and the margin that growth keeps.
[[nodiscard]] bool leaves_room(const PressureConfig& pressure, const DeviceInfo& device);

}  // namespace harvest::core
