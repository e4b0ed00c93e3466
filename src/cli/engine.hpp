// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/trace.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_set>
#include <vector>

#include "cli/ceiling.hpp"

namespace harvest::cli {

/// What one run of a trace showed.
struct EngineFigures {
  std::uint64_t accesses = 0;  ///< blocks of all requests: == hits + misses
  std::array<std::uint64_t, kTiers> hits{};
  std::uint64_t misses = 0;
  std::array<std::uint64_t, kTiers> bytes_from{};
  std::uint64_t puts_refused = 0;
  std::uint64_t lost = 0;         ///< objects that went without having been evicted
  std::uint64_t wrong_bytes = 0;  ///< of blocks whose content is not theirs; a block counts whole
  std::vector<TimeNs> reload_ns;  ///< of each request that brought blocks back, in order
};

/// An inference engine as the cache sees it: brings a request's known prefix back, computes the rest, stores
/// that. It runs on phantom bytes: what a block holds is its stamp. Not thread-safe.
class Engine {
 public:
  /// `most_blocks` is the longest request's length: the engine's buffer has room for it.
  /// Errors: those of the backend (out_of_memory where the buffer does not fit beside the cache's memory).
  [[nodiscard]] static Result<std::unique_ptr<Engine>> create(SimulatedBackend& backend, DeviceId device,
                                                              std::uint64_t block_bytes,
                                                              std::uint64_t most_blocks);
  /// Requires: the cache that was served is gone.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// For `PeerCacheConfig::on_event`.
  void hear(const CacheEvent& event);

  /// Serves one request at the time that it is. Errors: of the cache or the backend, where going on would
  /// make figures that mean nothing.
  [[nodiscard]] Status serve(PeerCache& cache, const TraceRequest& request);

  /// Requires: all requests are served. Counts objects that have vanished since.
  void finish(const PeerCache& cache);

  [[nodiscard]] const EngineFigures& figures() const { return figures_; }
  /// Blocks stored, and blocks brought back from below the local tier, in order.
  [[nodiscard]] const std::vector<BlockUse>& uses() const { return uses_; }

 private:
  Engine(SimulatedBackend& backend, std::uint64_t block_bytes);

  [[nodiscard]] std::size_t known_prefix(const PeerCache& cache, const TraceRequest& request);
  [[nodiscard]] Result<std::size_t> bring_back(PeerCache& cache, const TraceRequest& request,
                                               std::size_t prefix);
  [[nodiscard]] Status store(PeerCache& cache, const TraceRequest& request, std::size_t begin);
  void count_hit(std::uint64_t block, Tier tier, const std::byte* address);
  [[nodiscard]] Status wait_for(StreamId stream);
  [[nodiscard]] std::byte* buffer(std::size_t block) const { return buffer_ + block * block_bytes_; }

  SimulatedBackend& backend_;
  std::uint64_t block_bytes_;
  std::byte* buffer_ = nullptr;  ///< block i of the request that is served lies in its i-th part
  StreamId compute_ = StreamId::none;
  StreamId copies_ = StreamId::none;  ///< carries the blocks that are stored
  std::uint32_t request_ = 0;
  std::unordered_set<std::uint64_t> stored_;  ///< blocks that the cache took and did not say it dropped
  struct Leased {
    std::size_t block;  ///< its place in the request
    Lease lease;
  };
  std::vector<Leased> leased_;
  std::vector<FetchItem> items_;
  std::vector<std::size_t> fetched_;  ///< the place in the request of each item
  EngineFigures figures_;
  std::vector<BlockUse> uses_;
};

}  // namespace harvest::cli
