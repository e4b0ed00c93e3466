// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/keys.hpp>
#include <harvest/kv/layout.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

/// KV-cache blocks that do not fit on the GPU. An engine keeps its pages; what leaves them is stored here, on
/// peers and in host memory, and comes back when a prompt begins with the same tokens:
///
///     auto blocks = kv::BlockCache::create(*peer_cache, {.layout = layout, .block_pages = 16});
///     const auto keys = kv::block_keys(prompt, (*blocks)->block_tokens());
///     const auto found = (*blocks)->lookup(keys);                  // how many blocks, from where, how long
///     auto load = (*blocks)->load(keys.first(found.blocks), pages, copies);
///     for (layer = 0; ...) {
///       load->order_behind(layer, compute);                        // `compute` waits for this layer alone
///       launch_attention(layer, compute);
///     }
///     if (const auto lost = load->finish(); !lost.empty()) recompute(lost);  // before a token is shown
///     ...
///     (*blocks)->store(keys, pages, compute);                      // behind the work that fills the pages
///     (*blocks)->order_behind_stores(pages, compute);              // before other work fills them anew
namespace harvest::kv {

/// Something that happened to a block; told to `BlockCacheConfig::on_event`. Events tell of stores, and of
/// what the PeerCache's events tell; not of `erase`, whose caller knows, nor of copies on peers that come and
/// go beside one on the host.
struct BlockEvent {
  enum class Kind : std::uint8_t {
    stored,   ///< a lookup finds it from now on
    moved,    ///< its fastest copy is in another tier now
    removed,  ///< a lookup finds it no more
  };
  Kind kind = Kind::stored;
  Key key{};
  Tier tier = Tier::none;  ///< where it is now
};
[[nodiscard]] std::string_view to_string(BlockEvent::Kind kind);

struct BlockCacheConfig {
  KvLayout layout;
  /// Of the engine's pages that make a block, the unit that is named, stored and loaded. Small blocks share
  /// more, large ones travel faster: docs/benchmarks/kv.md. 0: as `default_block_tokens` says.
  std::uint32_t block_pages = 0;
  /// Mixed into the keys; two caches on one PeerCache differ here.
  std::uint64_t key_space = 0x4b76'426c'6f63'6b73;

  /// Where blocks are kept: `managed_host` (in host memory, copies on peers), `spill` (on a peer, in host
  /// memory when the peer is full or wants its memory back), `lossy` (on peers alone, gone with them).
  Backing backing = Backing::managed_host;
  std::uint32_t tenant = 0;  ///< as `PutOptions::tenant`
  /// What computing a token anew takes. A lookup's answer and evictions weigh it against loading.
  double recompute_ns_per_token = 0;

  /// Layers that come with one event. 0: as few as keep the fastest wire busy.
  std::uint32_t group_layers = 0;
  /// For how long the host's wire is given copies ahead; `poll` has to be called at least that often to keep
  /// it busy, and a load that is cancelled waits for what was given. What peers have is given at once, so
  /// that no load holds their memory for longer than the copies take.
  TimeNs ahead_ns = 50'000'000;
  /// Blocks on their way from pages into the cache at a time; each takes memory of its size on the consumer.
  std::uint32_t store_buffers = 2;

  /// Called by `poll`, `settle`, `hear` and `BlockLoad::finish`, outside of all locks, by one thread at a
  /// time and in the order of what happened; it may call the cache. It may not throw.
  std::function<void(const BlockEvent&)> on_event{};
};

/// Of whole pages, as many tokens as make the largest layer's part of a block 1 MiB; at most 512, at least
/// one page. Requires: a layer that keeps something, `page_tokens` > 0.
[[nodiscard]] std::uint32_t default_block_tokens(std::span<const KvLayer> layers, std::uint32_t page_tokens);

/// A prompt's longest prefix that need not be computed.
struct PrefixMatch {
  std::size_t blocks = 0;                     ///< from the first on, without a gap
  std::vector<Tier> tiers;                    ///< of each of these; `local`: in pages that `note_local` named
  std::array<std::uint64_t, kTiers> bytes{};  ///< to load, by tier; 0 for `local`
  TimeNs load_ns = 0;                         ///< expected from now on, behind loads that were begun before
  TimeNs first_layers_ns = 0;                 ///< until the first group of layers is there
  TimeNs recompute_ns = 0;  ///< instead, by `recompute_ns_per_token`; of blocks that are not local
};

class BlockCache;

/// Blocks on their way into pages. Move-only, for one thread. When it is destroyed it is cancelled, and
/// waits for copies that were given already: they write the pages.
class BlockLoad {
 public:
  BlockLoad() = default;
  BlockLoad(BlockLoad&& other) noexcept;
  BlockLoad& operator=(BlockLoad&& other) noexcept;
  ~BlockLoad();

  /// Work given to `stream` from now on runs after the keys and values of `layer` of all blocks, as far as
  /// they come, are in their pages; those of earlier layers too. Does not wait. A block that is lost on its
  /// way does not hold this up: `finish` tells. Errors: invalid_argument (no such layer or stream),
  /// not_supported (the stream is being captured).
  Status order_behind(std::uint32_t layer, StreamId stream);

  /// True when nothing is under way: `finish` waits no more, unless something failed and is fetched anew.
  [[nodiscard]] bool done();

  /// Waits, and answers the places in `keys` of blocks that did not come, in order: they are to be
  /// recomputed, their pages hold nothing that means something, and what was computed from them means nothing
  /// either. What failed on its way was tried again from elsewhere before, unless work was ordered behind it
  /// or it was cancelled. Empty: all is there. The answer is good until the next call, as long as this lives.
  /// Of layers with a window the blocks before a lost one have come only as far as the end of the last needs
  /// them: who computes the lost one loads those before it anew, as a prefix of their own.
  std::span<const std::uint32_t> finish();

  /// What was not given to a wire yet does not come; those blocks count as not come. Work given to `stream`
  /// from now on runs after what was given: the pages may be used for something else there.
  Status cancel(StreamId stream);

  /// By tier, so far.
  [[nodiscard]] std::array<std::uint64_t, kTiers> bytes() const;

 private:
  friend class BlockCache;
  BlockLoad(BlockCache* cache, std::uint64_t id) : cache_(cache), id_(id) {}
  BlockCache* cache_ = nullptr;
  std::uint64_t id_ = 0;
  std::vector<std::uint32_t> lost_;
};

/// Counters since the cache was made, of blocks unless they say bytes.
struct BlockCacheStats {
  std::uint64_t lookups = 0;                   ///< calls
  std::uint64_t looked_up = 0;                 ///< in them: `== found[...] summed + not_found`
  std::array<std::uint64_t, kTiers> found{};   ///< of usable prefixes, by tier
  std::uint64_t not_found = 0;                 ///< behind the prefix, or in no tier
  std::array<std::uint64_t, kTiers> loaded{};  ///< of loads that were destroyed, by where they came from
  std::array<std::uint64_t, kTiers> loaded_bytes{};  ///< by tier; of copies that were given
  std::uint64_t loads = 0;
  std::uint64_t retried = 0;    ///< a copy failed, and another tier was asked
  std::uint64_t recompute = 0;  ///< of loads that were destroyed, the rest: gone, failed, or cancelled
  std::uint64_t stores_asked =
      0;  ///< `== stored + stores_known + stores_refused + stores_given_up + under way`
  std::uint64_t stored = 0;
  std::uint64_t stores_known = 0;     ///< were in the cache already
  std::uint64_t stores_refused = 0;   ///< no room, or a copy failed
  std::uint64_t stores_given_up = 0;  ///< their pages were wanted for something else first
  std::uint64_t stored_bytes = 0;
};

/// All functions may be called from any thread; they take one lock, for microseconds, and wait for the GPU
/// only where they say so. `poll` must be called often: it gives queued copies to the wires, and stores what
/// was gathered. `PeerCacheConfig::on_event` may call them, but for `settle` and `BlockLoad::finish`, which
/// may wait for the very call that tells.
class BlockCache {
 public:
  /// `cache` outlives the answer; a local budget of its would keep second copies on the consumer: give it
  /// none. Takes memory of the consumer: `store_buffers` blocks, and eleven times the largest piece of a
  /// block that travels by itself (16 MiB at most, or one layer's part if that is larger), through which they
  /// are scattered, unless pages are large enough to be copied to directly. Errors: invalid_argument (names
  /// the field, value and limit), out_of_memory, unavailable.
  [[nodiscard]] static Result<std::unique_ptr<BlockCache>> create(PeerCache& cache, BlockCacheConfig config);

  /// Waits for its GPU work and forgets its blocks. Requires: no load is alive.
  ~BlockCache();
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  [[nodiscard]] std::uint32_t block_tokens() const;
  [[nodiscard]] std::uint64_t block_bytes() const;
  /// Of a block in the PeerCache, where its bytes lie layer behind layer, in a layer part behind part.
  [[nodiscard]] Key object_key(const Key& key) const;

  // --- reading -----------------------------------------------------------------------------------

  /// `keys` are a prompt's blocks in order (`BlockKeys`). No promise: a block may go before it is loaded.
  /// Cost: about 0.1 us a block.
  [[nodiscard]] PrefixMatch lookup(std::span<const Key> keys);

  /// Brings blocks into pages: `block_pages` pages for each block, in order. After all work already on
  /// `stream` (which may still use the pages); until that work is done no more than the first pieces leave
  /// the peers, and an owner waits for it: where pages are free already, name a stream that has nothing to
  /// do. Layers with a window come only for the blocks that it reaches back on from the end of the last. An
  /// event is recorded on the stream: one of the caller's tells of failed work since then.
  /// Errors: invalid_argument (another number of pages, a page that there is not, twice the same page, the
  /// stream), not_supported (the stream is being captured), unavailable (the consumer is lost).
  [[nodiscard]] Result<BlockLoad> load(std::span<const Key> keys, std::span<const std::uint32_t> pages,
                                       StreamId stream);

  // --- writing -----------------------------------------------------------------------------------

  /// Keeps blocks beyond their pages, in the order of the prompt, from its beginning or behind blocks that
  /// `parent` is the last of. After all work already on `stream`, which fills the pages, and beside all later
  /// work: nothing that is given to `stream` later waits for this. Blocks that are here already are skipped.
  /// What failed work filled is not kept: the event that is recorded on `stream` for this tells of the work
  /// since the event before it, and one of the caller's tells of failed work since then. Answers how many are
  /// under way. `poll` and `settle` carry them on. Errors: as `load`.
  Result<std::size_t> store(std::span<const Key> keys, std::span<const std::uint32_t> pages, StreamId stream,
                            const std::optional<Key>& parent = {});

  /// Other content will be written to these pages by work that is given to `stream` from now on: that runs
  /// after what still reads them for a store. Stores of them that have not begun are given up. Errors:
  /// invalid_argument (the stream), not_supported (it is being captured).
  Status order_behind_stores(std::span<const std::uint32_t> pages, StreamId stream);

  /// Of how many of these a store has not ended: their pages may still be read, and lookups do not find them
  /// yet.
  [[nodiscard]] std::size_t storing(std::span<const Key> keys) const;

  /// Forgets a block. Loads of it that are under way go on. Errors: not_found.
  Status erase(const Key& key);

  // --- residency ---------------------------------------------------------------------------------

  /// The engine has these blocks in pages of its own (which may differ from block to block in nothing but
  /// their numbers: `block_pages` for each), until `forget_local`. Lookups answer `local` for them. Errors:
  /// invalid_argument, as `load`.
  Status note_local(std::span<const Key> keys, std::span<const std::uint32_t> pages);
  void forget_local(std::span<const Key> keys);
  /// The pages of a local block; empty if it is not.
  [[nodiscard]] std::vector<std::uint32_t> local_pages(const Key& key) const;

  /// Where a block would be served now: `none` if it is gone. A request's table of blocks is this for each.
  [[nodiscard]] Tier locate(const Key& key) const;

  // --- background --------------------------------------------------------------------------------

  /// Does what is due. Bounded, and does not wait for the GPU; it may map host memory, in a `put` of the
  /// PeerCache's.
  void poll();
  /// Polls and waits until no store is under way. Errors: timed_out.
  Status settle(TimeNs deadline_ns);
  /// For `PeerCacheConfig::on_event`: call it from there, so that `on_event` here tells of blocks that moved
  /// or went. What is none of its keys is ignored.
  void hear(const CacheEvent& event);

  [[nodiscard]] const BlockCacheConfig& config() const;
  [[nodiscard]] BlockCacheStats stats() const;

 private:
  friend class BlockLoad;
  class Impl;
  explicit BlockCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace harvest::kv
