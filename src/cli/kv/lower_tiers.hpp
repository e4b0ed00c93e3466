// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/block_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cli/kv/serve.hpp"

namespace harvest::cli {

/// What a server keeps below its pages: a BlockCache, its PeerCache, and the owners of the peers. The pages
/// are addresses of a simulated GPU; a block is one page, and what it holds is known by a stamp.
class LowerTiers {
 public:
  /// For `pages` pages. `compute` is the server's stream. Errors: of the backend and the caches.
  [[nodiscard]] static Result<std::unique_ptr<LowerTiers>> create(SimulatedBackend& backend,
                                                                  const ServeRun& run, ServeStrategy strategy,
                                                                  std::uint32_t pages, StreamId compute);
  /// Requires: no load is alive.
  ~LowerTiers();
  LowerTiers(const LowerTiers&) = delete;
  LowerTiers& operator=(const LowerTiers&) = delete;

  /// Prefixes, for whoever begins with them.
  [[nodiscard]] kv::BlockCache& blocks() { return *blocks_; }
  /// Blocks of sequences that wait for their next turn: on peers, as long as their owners let them; then in
  /// host memory. Requires: sequences take turns.
  [[nodiscard]] kv::BlockCache& parked() { return *parked_; }

  /// How much longer than a lookup expects loading takes: naive copies are issued one by one.
  [[nodiscard]] TimeNs issue_ns(const kv::PrefixMatch& match) const;
  /// Loads behind all work of the compute stream; where copies are naive their issue comes first.
  [[nodiscard]] Result<kv::BlockLoad> load(kv::BlockCache& cache, std::span<const Key> keys,
                                           std::span<const std::uint32_t> pages,
                                           const kv::PrefixMatch& match);
  /// Whether the GPU waits until all of a load is there.
  [[nodiscard]] bool naive() const { return naive_; }

  /// The page holds this block from now on: says so to all who want to know, and keeps it beyond the page.
  Status computed(std::span<const Key> keys, std::span<const std::uint32_t> pages, const Key& parent);
  /// The page holds this from now on.
  void stamp(std::uint32_t page, const Key& content);
  Status park(std::span<const Key> keys, std::span<const std::uint32_t> pages);
  /// Whether the page holds this block's content.
  [[nodiscard]] bool holds(std::uint32_t page, const Key& key) const;

  /// Does what is due and answers when there is more.
  TimeNs poll();
  [[nodiscard]] const OwnerFigures& owners() const { return owners_->figures(); }

 private:
  explicit LowerTiers(SimulatedBackend& backend) : backend_(backend) {}
  [[nodiscard]] std::byte* address(std::uint32_t page) const { return pages_ + page * block_bytes_; }

  SimulatedBackend& backend_;
  StreamId compute_ = StreamId::none;
  std::byte* pages_ = nullptr;
  std::uint64_t block_bytes_ = 0;
  std::unique_ptr<Owners> owners_;
  std::unique_ptr<PeerCache> cache_;
  std::unique_ptr<kv::BlockCache> blocks_;
  std::unique_ptr<kv::BlockCache> parked_;
  bool naive_ = false;
  std::uint64_t fragment_bytes_ = 0;
  std::array<TimeNs, kTiers> fragment_ns_{};  ///< to issue one, by tier
};

}  // namespace harvest::cli
