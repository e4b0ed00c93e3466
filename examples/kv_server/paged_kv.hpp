// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/block_cache.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "kv_server/kv_pages.hpp"
#include "kv_server/page_pool.hpp"

namespace harvest::kv_server {

struct PagedKvStats {
  std::uint64_t shared_tokens = 0;    ///< of prompts, found in pages that were there
  std::uint64_t promised_tokens = 0;  ///< of prompts, loaded, if they come
  std::uint64_t lost_blocks = 0;      ///< of these; they did not
  std::uint64_t declined_loads = 0;   ///< that would have taken longer than computing
  std::uint64_t refused_loads = 0;    ///< that could not be begun: all was computed
  std::uint64_t dropped_blocks = 0;   ///< made way in the pages
};

/// Keys and values in pages, which are fewer than all sequences need. A prompt's beginning may be in pages
/// still: then it is shared; or in the cache of blocks: then it is loaded, layer by layer while the first
/// step already computes. What a sequence has computed is shared with others and stored as soon as a block is
/// full.
class PagedKv : public KvMemory {
 public:
  struct Config {
    std::uint32_t sequences = 1;
    std::uint32_t block_pages = 1;
    std::uint64_t seed = 0;  ///< of the order in which pages are handed out
  };

  /// Where others get to act, as they do around a server that does not stand still.
  struct Pauses {
    std::function<Status()> before_layer;
    std::function<Status()> before_load;  ///< after the prompt was looked up
  };

  /// All outlive it. Without `blocks` nothing is shared or kept, and all is computed.
  PagedKv(const KvPages& pages, kv::BlockCache* blocks, Config config, StreamId stream, Pauses pauses);

  KvRow keys(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) override;
  KvRow values(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) override;

  Result<std::optional<std::uint32_t>> enter(std::uint32_t sequence, std::span<const std::uint32_t> prompt,
                                             std::uint32_t positions) override;
  Status order_behind(std::uint32_t layer, std::span<const Row> rows) override;
  std::vector<KvRange> confirm(std::span<const Row> rows) override;
  Status keep(std::uint32_t sequence, std::span<const std::uint32_t> tokens) override;
  void leave(std::uint32_t sequence) override;

  [[nodiscard]] const PagedKvStats& stats() const { return stats_; }

 private:
  struct Sequence {
    explicit Sequence(std::uint32_t block_tokens) : keys(block_tokens) {}
    kv::BlockKeys keys;
    std::vector<std::uint32_t> pages;  ///< the table: page i has the tokens from i * page_tokens on
    std::vector<bool> shared;          ///< by block
    std::size_t kept = 0;              ///< blocks from the first on that were offered to others
    std::optional<kv::BlockLoad> load;
    std::size_t first_loaded = 0;  ///< block
  };

  [[nodiscard]] KvRow row(std::uint32_t layer, std::uint32_t part, std::uint32_t sequence,
                          std::uint32_t position) const;
  /// Shares what is in pages, and takes pages for the rest. False: there are not enough.
  Result<bool> take_pages(Sequence& sequence, std::size_t most_known, std::size_t blocks);
  /// Answers how many blocks need not be computed, with those that are shared.
  Result<std::size_t> begin_load(Sequence& sequence, std::size_t most_known);
  void let_go(Sequence& sequence);
  [[nodiscard]] std::span<const std::uint32_t> block_pages(const Sequence& sequence, std::size_t first,
                                                           std::size_t count) const;
  /// Calls `visit(place, sequence)` for each of these rows' sequences that is being loaded.
  template <typename Visit>
  void for_each_loading(std::span<const Row> rows, Visit visit);

  const KvPages& pages_;
  kv::BlockCache* blocks_;
  Config config_;
  std::uint32_t block_tokens_;
  StreamId stream_;
  Pauses pauses_;
  PagePool pool_;
  std::vector<std::optional<Sequence>> sequences_;
  PagedKvStats stats_;
};

}  // namespace harvest::kv_server
