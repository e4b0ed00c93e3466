// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <vector>

namespace harvest::cli::bench {

/// A consumer that always has one object more than there is room for on the peers, so that the cache is as
/// large as it may be. What does not fit, or has to leave, it forgets, and it wants something else instead:
/// so nothing is evicted, and what is written to peers is only what fills the room that owners leave.
class GreedyConsumer {
 public:
  static constexpr DeviceId kDevice = 0;
  static constexpr std::uint64_t kObjectBytes = 64ULL << 20;  ///< one fills a segment
  static constexpr std::size_t kReadObjects = 16;             ///< in a batch: 1 GiB

  /// `backing`: `external_host` (the bytes are in host memory too) or `spill` (on the peer alone).
  [[nodiscard]] static Result<std::unique_ptr<GreedyConsumer>> create(SimulatedBackend& backend,
                                                                      Backing backing, std::uint64_t seed);
  /// Requires: the cache that it used is gone.
  ~GreedyConsumer();
  GreedyConsumer(const GreedyConsumer&) = delete;
  GreedyConsumer& operator=(const GreedyConsumer&) = delete;

  /// For `PeerCacheConfig::on_event`.
  void hear(const CacheEvent& event);

  /// After a `poll`, with what `stats` says then: asks for more if peers have room. True if something is on
  /// its way to a peer, so that it is worth to poll and to come back soon.
  [[nodiscard]] Result<bool> want_more(PeerCache& cache, const CacheStats& stats);

  /// Fetches a batch of what lies on `device`, unless the batch before is still under way. Errors: the
  /// cache's.
  [[nodiscard]] Status read_from(PeerCache& cache, DeviceId device);

 private:
  GreedyConsumer(SimulatedBackend& backend, Backing backing, std::uint64_t seed)
      : backend_(backend), backing_(backing), random_(seed) {}

  void see_what_came(PeerCache& cache);
  /// False if it was not let onto a peer.
  [[nodiscard]] Result<bool> put_one(PeerCache& cache, std::uint64_t refused_before);
  [[nodiscard]] Status put_batch(PeerCache& cache, std::uint64_t refused_before);

  SimulatedBackend& backend_;
  Backing backing_;
  std::mt19937_64 random_;
  StreamId stream_ = StreamId::none;
  EventId read_ = EventId::none;  ///< the end of the last batch
  std::byte* source_ = nullptr;   ///< the bytes of all objects: nobody looks at them
  std::byte* destination_ = nullptr;
  std::uint64_t next_key_ = 1;  ///< none is used twice, so that no policy knows any
  std::size_t batch_ = 1;       ///< how many to ask for at once: doubles while all find room
  std::vector<std::uint64_t> asked_;
  std::vector<std::uint64_t> gone_;
  std::map<DeviceId, std::vector<std::uint64_t>> on_device_;  ///< some of them may have left since
};

}  // namespace harvest::cli::bench
