// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/block_cache.hpp>
#include <harvest/peer_cache.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cli/bench/machine.hpp"
#include "cli/bench/pattern.hpp"
#include "cli/bench/resources.hpp"
#include "cli/models.hpp"

namespace harvest::cli::bench {

/// A prefix that is brought back from one tier.
struct ReloadCase {
  Model model;
  std::uint64_t tokens = 0;
  std::uint32_t page_tokens = 16;
  std::uint64_t block_tokens = 0;  ///< 0: the library's default
  kv::KvArrangement arrangement = kv::KvArrangement::layer_first;
  Tier tier = Tier::peer;
};

struct ReloadTimes {
  TimeNs first_layers_ns = 0;  ///< until work on layer 0 can begin
  TimeNs all_ns = 0;
};

/// An engine's pages and a cache of blocks that has a prefix in one tier alone. The prefix comes to other
/// pages than it left from, and no two neighbours stay neighbours. What arrived is compared with what left.
class ReloadWorld {
 public:
  /// Errors: out_of_memory where the prefix does not fit on the consumer, or in the tier.
  [[nodiscard]] static Result<std::unique_ptr<ReloadWorld>> create(const MeasuredMachine& machine,
                                                                   DeviceId consumer, DeviceId peer,
                                                                   const ReloadCase& what);

  /// By `BlockCache::load`.
  [[nodiscard]] Result<ReloadTimes> load();
  /// By a copy call for each run of bytes that lies together in a page, one after the other, on one stream.
  [[nodiscard]] Result<ReloadTimes> naive();

  [[nodiscard]] std::uint64_t bytes() const { return keys_.size() * blocks_->block_bytes(); }
  [[nodiscard]] std::uint64_t blocks() const { return keys_.size(); }
  [[nodiscard]] std::uint64_t block_tokens() const { return blocks_->block_tokens(); }
  [[nodiscard]] std::uint64_t wrong_runs() const { return wrong_runs_; }

 private:
  ReloadWorld(const MeasuredMachine& machine, DeviceId consumer, const ReloadCase& what, Stream stream)
      : machine_(machine),
        backend_(machine.backend()),
        consumer_(consumer),
        case_(what),
        stream_(std::move(stream)) {}
  [[nodiscard]] Status map();
  [[nodiscard]] Status store(DeviceId peer);
  [[nodiscard]] Status write_contents();
  [[nodiscard]] Status spoil();
  [[nodiscard]] Status compare();
  template <typename Visit>
  [[nodiscard]] Status visit_runs(Visit visit) const;
  [[nodiscard]] Result<bool> holds(const std::byte* run, std::uint64_t bytes, std::size_t tensor,
                                   std::uint64_t offset);

  const MeasuredMachine& machine_;
  Backend& backend_;
  DeviceId consumer_;
  ReloadCase case_;
  kv::KvLayout layout_;
  std::uint32_t block_pages_ = 1;
  std::vector<Segment> memory_;
  std::vector<kv::KvTensor> tensors_;
  std::vector<Key> keys_;
  std::vector<std::uint32_t> from_;  ///< pages that the prefix was computed in
  std::vector<std::uint32_t> to_;    ///< and those that it comes back to
  std::uint64_t wrong_runs_ = 0;
  std::optional<PatternCarrier> pattern_;  ///< where memory holds bytes
  Stream stream_;
  std::unique_ptr<PeerCache> cache_;
  std::unique_ptr<kv::BlockCache> blocks_;  ///< goes first
};

}  // namespace harvest::cli::bench
