// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "cli/owner_trace.hpp"

/// The workloads of the peers' owners: how much of its own memory each uses, over time.
namespace harvest::cli {

enum class OwnerActivity : std::uint8_t {
  none,    ///< the peers stand idle
  steady,  ///< always the median of the study
  bursty,  ///< rises and falls, see `OwnerModel`
};

/// Errors: not_found, with the known names.
[[nodiscard]] Result<OwnerActivity> parse_owner_activity(std::string_view name);

/// One bursty owner. Its figures are those of a public study of 144 inference pods on 48 GiB GPUs, which
/// looked every 57 seconds. In brackets the model's own over long runs, looked at in the same way:
///
/// - used: 23 GiB at the median (22.4), 37 at the 99th percentile (37.0);
/// - rises of at least 1 / 5 / 10 GiB an hour: 9.4 / 3.0 / 0.5 (9.4 / 3.0 / 0.51);
/// - size of a rise, p50 / p90 / p99: 3.1 / 8.4 / 14.4 GiB (3.2 / 8.3 / 14.3), the largest 31.7 (29.5);
/// - growth from one look to the next, p99.9: 16 GiB (16.1);
/// - memory that is free now stays free for 57 minutes with odds of .87 / .72 / .20 for 16 / 20 / 24 GiB of
/// 48
///   (.87 / .71 / .19).
///
/// A phase lasts 6 hours on average. For its length the owner needs a level: about 22 GiB (normal,
/// sigma 1.3), in one phase of 20 anything from 24 to 40. On top of that come bursts, one at a time and a
/// minute or so each. How large they may be differs from phase to phase: small ones come in nearly all, large
/// ones in one of ten, many then. Without that, memory would not stay free as long as it does. Rises below 1
/// GiB are not modelled: the study tells nothing of them.
class OwnerModel {
 public:
  /// Uses at most `most_bytes`.
  OwnerModel(std::uint64_t seed, std::uint64_t most_bytes);

  /// When the use changes next.
  [[nodiscard]] TimeNs next_ns() const { return std::min(change_ns_, phase_end_ns_); }
  [[nodiscard]] std::uint64_t use_bytes() const;
  /// Takes the step of `next_ns` and answers the new use.
  std::uint64_t step();

  static constexpr std::uint64_t kMedianBytes = 23ULL << 30;
  static constexpr std::size_t kRiseKinds = 5;

 private:
  void begin_phase();
  void begin_burst();
  void await_burst();
  [[nodiscard]] double exponential_ns(double mean_ns);

  std::mt19937_64 random_;
  std::uint64_t most_bytes_;
  double level_gib_ = 0;
  double burst_gib_ = 0;                       ///< 0: none now
  std::array<double, kRiseKinds> per_hour_{};  ///< of each kind in this phase
  TimeNs now_ns_ = 0;
  TimeNs change_ns_ = 0;  ///< a burst begins, or the one that is there ends
  TimeNs phase_end_ns_ = 0;
};

/// What a bursty owner of each device uses for `duration_ns`, as a recording that ends with a row of each.
/// The same seed gives the same.
[[nodiscard]] OwnerTrace generate_owner_trace(std::span<const OwnedDevice> devices, TimeNs duration_ns,
                                              std::uint64_t seed);

/// What the owners of all peers asked for and got.
struct OwnerFigures {
  std::uint64_t rises = 0;
  std::uint64_t refused = 0;  ///< of those, not served even after a reclaim: an owner was harmed
  std::uint64_t bytes_requested = 0;
  std::uint64_t bytes_returned = 0;
  std::uint64_t late = 0;  ///< reclaims that did not end in time
  std::vector<TimeNs> reclaim_ns;
};

/// Drives the owners of `devices` on a simulated machine. An owner that wants memory and does not find it
/// free asks the cache for what is missing, waits at most a second, and then allocates.
class Owners {
 public:
  Owners(SimulatedBackend& backend, const std::vector<DeviceId>& devices, OwnerActivity activity,
         std::uint64_t seed);

  /// The next change of any owner; kNever if there is none.
  [[nodiscard]] TimeNs next_ns() const;

  /// Makes all changes that are due. `cache` may be null: then nobody is asked.
  void act(PeerCache* cache);

  [[nodiscard]] const OwnerFigures& figures() const { return figures_; }

 private:
  struct Owner {
    DeviceId device;
    OwnerModel model;
    std::uint64_t held_bytes = 0;
  };
  void change(Owner& owner, std::uint64_t wanted_bytes, PeerCache* cache);

  SimulatedBackend& backend_;
  std::vector<Owner> owners_;
  OwnerActivity activity_;
  OwnerFigures figures_;
};

}  // namespace harvest::cli
