// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <cstdint>
#include <random>
#include <string_view>
#include <vector>

/// The workloads of the peers' owners: how much of its own memory each uses, over time.
namespace harvest::cli {

enum class OwnerActivity : std::uint8_t {
  none,    ///< the peers stand idle
  steady,  ///< always the median of the bursty owner
  bursty,  ///< rises and falls, see `OwnerModel`
};

/// Errors: not_found, with the known names.
[[nodiscard]] Result<OwnerActivity> parse_owner_activity(std::string_view name);

/// One bursty owner. Its figures are those of a public study of 144 inference pods on 48 GiB GPUs: 23 GiB
/// used at the median and 37 at the 99th percentile; 9.4 rises of at least 1 GiB an hour, 3.0 of 5 and 0.5
/// of 10; sizes of a rise 3.1 / 8.4 / 14.4 GiB (p50 / p90 / p99), none above 31.7.
///
/// An owner is calm for a while and busy for a while (exponential times, busy 40 % of it for 1 h on
/// average). When it is busy, steps come as a Poisson process, half of them rises. The size of a step is
/// log-normal around 3.1 GiB (sigma 0.7, cut to 1..31.7). Up or down is drawn with odds that pull the use
/// back to its median: P(up) = 1 / (1 + exp((use - 23 GiB) / 1 GiB)). Over long runs this gives p99 36 GiB,
/// 9.4 / 2.4 / 0.5 rises an hour, sizes 3.2 / 7.7 / 15.7 GiB. Memory that is free now stays free for 57
/// minutes with odds .75 / .50 / .40 for 16 / 20 / 24 GiB of 48, where the study saw .87 / .72 / .20.
class OwnerModel {
 public:
  explicit OwnerModel(std::uint64_t seed, std::uint64_t most_bytes);

  /// When the use changes next.
  [[nodiscard]] TimeNs next_ns() const { return next_ns_; }
  [[nodiscard]] std::uint64_t use_bytes() const { return use_bytes_; }
  /// Takes the step of `next_ns` and answers the new use.
  std::uint64_t step();

  static constexpr std::uint64_t kMedianBytes = 23ULL << 30;

 private:
  void draw_next();
  [[nodiscard]] double exponential_ns(double mean_ns);

  std::mt19937_64 random_;
  std::uint64_t most_bytes_;
  std::uint64_t use_bytes_;
  TimeNs next_ns_ = 0;
  TimeNs phase_end_ns_ = 0;
  bool busy_ = false;
};

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
