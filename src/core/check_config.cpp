// SPDX-License-Identifier: Apache-2.0
#include "core/check_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace harvest::core {
namespace {

tl::unexpected<Error> wrong(std::string message) {
  return fail(ErrorCode::invalid_argument, std::move(message));
}

/// A pool that cannot hold one segment would never hold anything.
Status check_budget(std::string_view field, std::uint64_t bytes, const DeviceInfo& device) {
  const std::uint64_t least = device.segment_granularity_bytes;
  if (bytes == 0 || (bytes >= least && bytes <= device.total_bytes)) return {};
  return wrong(fmt::format("{} is {}, it is 0 or lies in {}..{}: one segment and all of {}", field, bytes,
                           least, device.total_bytes,
                           device.id == kHost ? "the host" : fmt::format("device {}", device.id)));
}

Status check_segment(const PeerCacheConfig& config, const DeviceInfo& device) {
  if (config.segment_max_bytes >= device.segment_granularity_bytes) return {};
  return wrong(fmt::format("segment_max_bytes is {}, a segment of device {} has at least {}",
                           config.segment_max_bytes, device.id, device.segment_granularity_bytes));
}

Status check_host(const PeerCacheConfig& config, const DeviceInfo& host) {
  constexpr std::uint64_t kMostChunkBytes = 1ULL << 30;  // longer registrations stall other processes
  const std::uint64_t least = std::max<std::uint64_t>(1, host.segment_granularity_bytes);
  if (config.host_chunk_bytes < least || config.host_chunk_bytes > kMostChunkBytes)
    return wrong(fmt::format("host_chunk_bytes is {}, it lies in {}..{}", config.host_chunk_bytes, least,
                             kMostChunkBytes));
  return check_budget("host_budget_bytes", config.host_budget_bytes, host);
}

Status check_pressure(const PressureConfig& pressure) {
  constexpr TimeNs kLongestNs = kNever / 2;  // what is added to a time must be a time
  if (pressure.sample_interval_ns < 1 || pressure.sample_interval_ns > kLongestNs)
    return wrong(fmt::format("pressure.sample_interval_ns is {}, it lies in 1..{}",
                             pressure.sample_interval_ns, kLongestNs));
  if (pressure.regrow_delay_ns < 0 || pressure.regrow_delay_ns > kLongestNs)
    return wrong(fmt::format("pressure.regrow_delay_ns is {}, it lies in 0..{}", pressure.regrow_delay_ns,
                             kLongestNs));
  if (pressure.growth_bytes_per_s == 0) return wrong("pressure.growth_bytes_per_s is 0, at least 1");
  return {};
}

/// A peer's sizes, whether it is named or chosen by the cache.
Status check_peer_sizes(const PeerCacheConfig& config, const DeviceInfo& peer) {
  if (config.peer_budget_bytes == 0) return {};
  if (config.peer_budget_bytes < peer.segment_granularity_bytes)
    return wrong(fmt::format("peer_budget_bytes is {}, it is 0 or at least one segment of device {}, {}",
                             config.peer_budget_bytes, peer.id, peer.segment_granularity_bytes));
  return check_segment(config, peer);
}

Status check_named_peer(const PeerCacheConfig& config, const Topology& topology, DeviceId id) {
  const DeviceInfo* device = topology.device(id);
  if (device == nullptr || id == kHost)
    return fail(ErrorCode::not_found, fmt::format("peer {} is not a GPU of this machine; it has {}", id,
                                                  topology.devices().size() - 1));
  if (id == config.consumer)
    return wrong(fmt::format("device {} is the consumer, it cannot be its own peer", id));
  if (std::count(config.peers.begin(), config.peers.end(), id) > 1)
    return wrong(fmt::format("peer {} is named twice", id));
  if (!topology.usable_as_peer(id, config.consumer)) {
    const Path* path = topology.path(id, config.consumer);
    return fail(ErrorCode::unavailable,
                fmt::format("peer {} cannot be used by consumer {}: {}", id, config.consumer,
                            path == nullptr                    ? "there is no path"
                            : path->state == PathState::failed ? path->reason
                                                               : "no peer access"));
  }
  if (!leaves_room(config.pressure, *device))
    return wrong(fmt::format(
        "pressure.reserve_bytes ({}) and hysteresis_bytes ({}) leave nothing of the {} "
        "bytes of peer {}",
        config.pressure.reserve_bytes, config.pressure.hysteresis_bytes, device->total_bytes, id));
  return check_peer_sizes(config, *device);
}

Status check_peers(const PeerCacheConfig& config, const Topology& topology) {
  for (const DeviceId id : config.peers)
    if (Status status = check_named_peer(config, topology, id); !status) return status;
  if (!config.peers.empty()) return {};
  for (const PeerRank& rank : topology.rank_peers(config.consumer, config.segment_max_bytes))
    if (Status status = check_peer_sizes(config, *topology.device(rank.device)); !status) return status;
  return {};
}

}  // namespace

bool leaves_room(const PressureConfig& pressure, const DeviceInfo& device) {
  return pressure.reserve_bytes < device.total_bytes &&
         pressure.hysteresis_bytes < device.total_bytes - pressure.reserve_bytes;
}

Status check_config(const PeerCacheConfig& config, const Topology& topology) {
  const DeviceInfo* consumer = topology.device(config.consumer);
  if (consumer == nullptr || config.consumer == kHost) {
    return fail(ErrorCode::not_found, fmt::format("consumer {} is not a GPU of this machine; it has {}",
                                                  config.consumer, topology.devices().size() - 1));
  }
  constexpr std::uint32_t kMostObjects = 1U << 28;
  if (config.max_objects == 0 || config.max_objects > kMostObjects)
    return wrong(fmt::format("max_objects is {}, it lies in 1..{}", config.max_objects, kMostObjects));
  if (config.background_bytes == 0) return wrong("background_bytes is 0, at least 1");
  if (config.segment_min_bytes == 0 || config.segment_min_bytes > config.segment_max_bytes)
    return wrong(fmt::format("segment_min_bytes is {}, it lies in 1..segment_max_bytes ({})",
                             config.segment_min_bytes, config.segment_max_bytes));
  if (config.local_budget_bytes != 0)
    if (Status status = check_segment(config, *consumer); !status) return status;
  if (Status status = check_budget("local_budget_bytes", config.local_budget_bytes, *consumer); !status)
    return status;
  if (Status status = check_host(config, *topology.device(kHost)); !status) return status;
  if (Status status = check_pressure(config.pressure); !status) return status;
  return check_peers(config, topology);
}

}  // namespace harvest::core
