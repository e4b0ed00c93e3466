// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cli/bench/resources.hpp"
#include "cli/bench/timing.hpp"

namespace harvest::cli::bench {

/// One batch of reads: `objects` objects of `object_bytes` each from one tier.
struct FetchCase {
  Tier tier = Tier::host;
  std::uint64_t object_bytes = 0;
  std::uint64_t objects = 0;
  bool scattered = false;  ///< no two neighbours at the source are neighbours at the destination
  [[nodiscard]] std::uint64_t bytes() const { return object_bytes * objects; }
};

/// A cache that has the objects of one case in one tier alone, and somewhere to fetch them to. Each object's
/// bytes are its own, and all are compared after each read.
class FetchWorld {
 public:
  /// `peer` is nothing where only host memory is read.
  [[nodiscard]] static Result<std::unique_ptr<FetchWorld>> create(Backend& backend, DeviceId consumer,
                                                                  std::optional<DeviceId> peer,
                                                                  const FetchCase& what);

  /// The GPU's time for one fetch: the stream is held until it is submitted.
  [[nodiscard]] Result<GatedRun> fetch_gated(std::uint64_t repeats);
  /// The caller's time: from the call until all bytes are there.
  [[nodiscard]] Result<TimeNs> fetch_from_call();
  /// The same bytes by one copy call for each object, waiting for each or at the end.
  [[nodiscard]] Result<TimeNs> naive(bool waits_for_each);

  /// Bytes that were wrong after the reads so far.
  [[nodiscard]] std::uint64_t wrong_bytes() const { return wrong_bytes_; }

 private:
  FetchWorld(Backend& backend, DeviceId consumer, const FetchCase& what, Gate gate, Stream stream)
      : backend_(backend),
        consumer_(consumer),
        case_(what),
        gate_(std::move(gate)),
        stream_(std::move(stream)) {}
  [[nodiscard]] Status map();
  [[nodiscard]] Status store(std::optional<DeviceId> peer);
  [[nodiscard]] Status fetch();
  [[nodiscard]] Status spoil();
  [[nodiscard]] Status compare();

  Backend& backend_;
  DeviceId consumer_;
  FetchCase case_;
  std::vector<std::uint64_t> order_;  ///< the object that comes to each place
  std::vector<FetchItem> items_;
  std::uint64_t wrong_bytes_ = 0;
  Segment pool_;         ///< on the host: all objects' bytes, one after the other
  Segment back_;         ///< on the host: what arrived
  Segment destination_;  ///< on the consumer
  Gate gate_;
  Stream stream_;
  std::unique_ptr<PeerCache> cache_;  ///< goes first: it waits for its work
};

}  // namespace harvest::cli::bench
