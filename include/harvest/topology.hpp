// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace harvest {

/// What is known of a path beyond what the driver claims.
enum class PathState : std::uint8_t {
  untested,  ///< not tried: the backend holds no bytes to compare, or a test was not asked for
  verified,  ///< a pattern went over it and came back whole
  failed,    ///< the pattern did not come back; the path is not used
};
[[nodiscard]] std::string_view to_string(PathState state);

/// A link and what a test of it said.
struct Path {
  LinkInfo link;
  PathState state = PathState::untested;
  std::string reason;  ///< why it failed, or who said so
};

/// What the caller knows of a path, better than a test: one that he trusts, or one not to be used. A path of
/// which this is said is not tested.
struct PathVerdict {
  Route route;
  PathState state = PathState::failed;
};

/// A peer as a source for a consumer, best first in `Topology::rank_peers`.
struct PeerRank {
  DeviceId device = kHost;
  double fetch_ns = 0;  ///< expected time to bring the asked number of bytes to the consumer, alone
};

/// The devices of a machine and the paths between them, as they were when it was probed. A value: copy
/// it, keep it, read it from any thread.
class Topology {
 public:
  /// Reads devices and links and, if `verify`, sends a pattern over every path and compares it: peer
  /// access is a claim, and some machines corrupt silently (docs/cuda.md, rule 8). Where the backend holds no
  /// bytes the paths stay `untested`. Blocks for about 1 ms a path; needs 2 MiB free on each device.
  /// A path or device that fails is marked, not an error. `verdicts` stand in the place of tests.
  /// Errors: invalid_argument (no GPU at all, two verdicts on one path), not_found (a verdict on a path that
  /// is not there).
  [[nodiscard]] static Result<Topology> probe(Backend& backend, bool verify = true,
                                              std::span<const PathVerdict> verdicts = {});

  [[nodiscard]] const BackendInfo& backend() const { return backend_; }
  /// GPUs by id, the host last.
  [[nodiscard]] std::span<const DeviceInfo> devices() const { return devices_; }
  [[nodiscard]] std::span<const Path> paths() const { return paths_; }

  /// Null if there is no such device or path.
  [[nodiscard]] const DeviceInfo* device(DeviceId id) const;
  [[nodiscard]] const Path* path(DeviceId from, DeviceId to) const;

  /// True if bytes of `peer` can be read by `consumer` directly, as far as is known: both directions
  /// have peer access and neither failed its test.
  [[nodiscard]] bool usable_as_peer(DeviceId peer, DeviceId consumer) const;

  /// issue + latency + bytes / bandwidth, or +infinity where no path is.
  [[nodiscard]] double expected_copy_ns(DeviceId from, DeviceId to, std::uint64_t bytes) const;

  /// The peers that `consumer` can use, fastest first for an object of `bytes` bytes; ties by id.
  [[nodiscard]] std::vector<PeerRank> rank_peers(DeviceId consumer, std::uint64_t bytes) const;

 private:
  BackendInfo backend_;
  std::vector<DeviceInfo> devices_;
  std::vector<Path> paths_;
};

}  // namespace harvest
