// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/block_cache.hpp>

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/annotated_mutex.hpp"
#include "base/key_hash.hpp"
#include "kv/block_shape.hpp"
#include "kv/lanes.hpp"

/// What is behind `BlockCache`. Its parts, by file:
///   block_cache.cpp   how it begins and ends; the face
///   lookup.cpp        prefixes, residency, events, statistics
///   load.cpp          how blocks come: pieces, wires, layers
///   retry.cpp         what failed on its way, from elsewhere
///   store.cpp         how blocks are gathered and kept
namespace harvest::kv {

class BlockCache::Impl {
 public:
  static Result<std::unique_ptr<Impl>> create(PeerCache& cache, BlockCacheConfig config);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] const BlockShape& shape() const { return shape_; }
  [[nodiscard]] const BlockCacheConfig& config() const { return config_; }
  /// Between keys of ours and of the PeerCache, either way.
  [[nodiscard]] Key object_key(const Key& key) const { return {key.high ^ config_.key_space, key.low}; }

  // --- lookup.cpp
  PrefixMatch lookup(std::span<const Key> keys) HARVEST_EXCLUDES(mutex_);
  Status note_local(std::span<const Key> keys, std::span<const std::uint32_t> pages) HARVEST_EXCLUDES(mutex_);
  void forget_local(std::span<const Key> keys) HARVEST_EXCLUDES(mutex_);
  std::vector<std::uint32_t> local_pages(const Key& key) HARVEST_EXCLUDES(mutex_);
  Tier locate(const Key& key) HARVEST_EXCLUDES(mutex_);
  Status erase(const Key& key) HARVEST_EXCLUDES(mutex_);
  void hear(const CacheEvent& event) HARVEST_EXCLUDES(mutex_);
  BlockCacheStats stats() HARVEST_EXCLUDES(mutex_);

  // --- load.cpp
  Result<std::uint64_t> load(std::span<const Key> keys, std::span<const std::uint32_t> pages, StreamId stream)
      HARVEST_EXCLUDES(mutex_);
  Status order_behind(std::uint64_t load, std::uint32_t layer, StreamId stream) HARVEST_EXCLUDES(mutex_);
  bool done(std::uint64_t load) HARVEST_EXCLUDES(mutex_);
  std::vector<std::uint32_t> finish(std::uint64_t load) HARVEST_EXCLUDES(mutex_);
  Status cancel(std::uint64_t load, StreamId stream) HARVEST_EXCLUDES(mutex_);
  void forget(std::uint64_t load) HARVEST_EXCLUDES(mutex_);
  std::array<std::uint64_t, kTiers> bytes_of(std::uint64_t load) HARVEST_EXCLUDES(mutex_);

  // --- store.cpp
  Result<std::size_t> store(std::span<const Key> keys, std::span<const std::uint32_t> pages, StreamId stream,
                            const std::optional<Key>& parent) HARVEST_EXCLUDES(mutex_);
  std::size_t storing(std::span<const Key> keys) HARVEST_EXCLUDES(mutex_);
  Status order_behind_stores(std::span<const std::uint32_t> pages, StreamId stream) HARVEST_EXCLUDES(mutex_);
  void poll() HARVEST_EXCLUDES(mutex_);
  Status settle(TimeNs deadline_ns) HARVEST_EXCLUDES(mutex_);

 private:
  /// One block of a load.
  struct Block {
    Key key{};                      ///< as the PeerCache knows it
    Lease lease;                    ///< until all its pieces were given
    Tier tier = Tier::none;         ///< that it comes from
    std::uint32_t pieces_left = 0;  ///< to be given
    bool failed = false;            ///< a copy of it did, or could not be given
    bool lost = false;              ///< is to be recomputed
  };
  struct PieceRef {
    std::uint32_t block = 0;
    std::uint32_t piece = 0;
  };
  struct Load {
    std::uint64_t id = 0;
    std::vector<Block> blocks;
    std::vector<std::uint32_t> pages;
    std::deque<PieceRef> waiting;        ///< for the host's wire, in the order of layers
    EventId begin = EventId::none;       ///< behind what may still use the pages
    std::array<bool, kLanes> ordered{};  ///< lanes that wait for `begin`
    std::vector<FlightNumbers> groups;   ///< the last flights of each group of layers
    std::uint32_t flying = 0;            ///< pieces
    bool let_go = false;                 ///< other work was told that it may use the pages
    std::array<std::uint64_t, kTiers> bytes{};
  };
  /// A block on its way from pages into the cache.
  struct Item {
    Key key{};                    ///< as the PeerCache knows it
    std::optional<Key> parent{};  ///< the engine's; none for the first of a prompt
    std::vector<std::uint32_t> pages;
    SharedEvent begin;  ///< behind the work that fills the pages
    std::uint32_t buffer = 0;
    EventId event = EventId::none;  ///< behind its gather, and then behind its copies into the cache
    enum class State : std::uint8_t { queued, gathering, gathered, putting, writing, written, judged };
    State state = State::queued;
    bool unwanted = false;  ///< erased on its way
  };
  struct WireFigures {
    double ns_per_byte = 0;
    TimeNs start_ns = 0;
  };

  Impl(PeerCache& cache, BlockCacheConfig config, BlockShape shape);
  Status begin_life();
  void know_wires();
  [[nodiscard]] bool copies_directly() const;
  [[nodiscard]] std::span<const std::uint32_t> pages_of(const Load& load, std::uint32_t block) const {
    return std::span(load.pages).subspan(block * shape_.pages(), shape_.pages());
  }
  [[nodiscard]] Status check(std::span<const Key> keys, std::span<const std::uint32_t> pages,
                             StreamId stream) const;
  [[nodiscard]] Status check_stream(StreamId stream) const;
  [[nodiscard]] Status check_pages(std::size_t blocks, std::span<const std::uint32_t> pages) const;
  [[nodiscard]] TimeNs wire_ns(Wire wire, std::uint64_t bytes) const;
  [[nodiscard]] std::byte* store_buffer(std::uint32_t number) const {
    return store_memory_ + number * buffer_bytes_;
  }

  // --- lookup.cpp
  [[nodiscard]] std::uint64_t bytes_to_load(std::size_t block, std::size_t blocks) const;
  [[nodiscard]] std::uint64_t tokens_behind(std::size_t block, std::size_t blocks) const {
    return (blocks - block - 1) * block_tokens_;
  }
  [[nodiscard]] std::uint64_t host_bytes_waiting() const HARVEST_REQUIRES(mutex_);
  void happened(BlockEvent::Kind kind, const Key& object, Tier tier) HARVEST_REQUIRES(mutex_);
  void tell() noexcept HARVEST_EXCLUDES(mutex_);

  // --- load.cpp
  void settle_flights() HARVEST_REQUIRES(mutex_);
  Load& find(std::uint64_t load) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] Lease lease(const Key& key) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] static Wire wire_of(const Lease& lease) {
    return lease.tier() == Tier::host ? Wire::host : Wire::peers;
  }
  void open_blocks(Load& load, std::span<const Key> keys) HARVEST_REQUIRES(mutex_);
  void plan(Load& load) HARVEST_REQUIRES(mutex_);
  void give_waiting(Load& load, std::optional<std::uint32_t> up_to_group) HARVEST_REQUIRES(mutex_);
  void give_all_ahead() HARVEST_REQUIRES(mutex_);
  void give(Load& load, const PieceRef& piece) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] std::uint64_t copy_to_pages(Load& load, const PieceRef& piece, std::size_t lane)
      HARVEST_REQUIRES(mutex_);
  [[nodiscard]] Status copy_through_buffer(Load& load, const PieceRef& piece, std::size_t lane)
      HARVEST_REQUIRES(mutex_);
  [[nodiscard]] Status copy_directly(Load& load, const PieceRef& piece, std::size_t lane)
      HARVEST_REQUIRES(mutex_);
  void order_lane(Load& load, std::size_t lane) HARVEST_REQUIRES(mutex_);
  void drop_waiting(Load& load) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] static FlightNumbers flights_of(const Load& load, std::size_t groups);
  void wait_for_flights(std::uint64_t load) HARVEST_EXCLUDES(mutex_);

  // --- retry.cpp
  void retry_failed(std::uint64_t load) HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] std::uint32_t take_buffer() HARVEST_EXCLUDES(mutex_);
  void wait_for_fetches() HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] bool fetch_anew(std::uint64_t load, std::uint32_t block) HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] bool scatter_anew(std::uint64_t load, std::uint32_t block, std::uint32_t buffer)
      HARVEST_EXCLUDES(mutex_);

  // --- store.cpp
  [[nodiscard]] bool is_stored_or_coming(const Key& key) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] Item* find_item(const Key& key) HARVEST_REQUIRES(mutex_);
  void begin_gathers() HARVEST_REQUIRES(mutex_);
  [[nodiscard]] std::optional<std::uint32_t> free_buffer() const HARVEST_REQUIRES(mutex_);
  Status gather(Item& item, std::uint32_t buffer) HARVEST_REQUIRES(mutex_);
  void settle_items() HARVEST_REQUIRES(mutex_);
  void put_gathered() HARVEST_EXCLUDES(mutex_);
  void put(const Key& key, const std::optional<Key>& parent, std::uint32_t buffer) HARVEST_EXCLUDES(mutex_);
  void show_written() HARVEST_EXCLUDES(mutex_);
  void leave_buffer(Item& item) HARVEST_REQUIRES(mutex_);

  PeerCache& cache_;
  Backend& backend_;
  const BlockCacheConfig config_;
  const BlockShape shape_;
  std::uint64_t block_tokens_ = 0;
  bool windows_ = false;     ///< some layers look back on a part of the tokens only
  bool direct_ = false;      ///< runs in pages are so large that copies go there without a lane's buffer
  bool wires_apart_ = true;  ///< peers and host can carry at the same time
  std::array<WireFigures, kWires> wires_{};
  std::byte* store_memory_ = nullptr;
  std::uint64_t buffer_bytes_ = 0;       ///< from one store buffer to the next
  std::vector<StreamId> store_streams_;  ///< one for each
  /// Of what is fetched anew. The PeerCache records events on streams that fetched, at any time: on a
  /// store's, between a gather and its own event, one would take the news that the gather failed.
  StreamId fetch_stream_ = StreamId::none;

  Mutex mutex_;
  Lanes lanes_ HARVEST_GUARDED_BY(mutex_);
  std::deque<Load> loads_ HARVEST_GUARDED_BY(mutex_);
  std::uint64_t next_load_ HARVEST_GUARDED_BY(mutex_) = 1;
  std::deque<Item> items_ HARVEST_GUARDED_BY(mutex_);
  std::vector<bool> buffer_used_ HARVEST_GUARDED_BY(mutex_);
  std::uint32_t buffers_wanted_ HARVEST_GUARDED_BY(mutex_) = 0;  ///< by loads that fetch anew: they go first
  bool putting_ HARVEST_GUARDED_BY(mutex_) = false;              ///< one thread at a time
  /// Written well, so that reading them waits for nothing; by keys of the PeerCache, and where events last
  /// said that they are.
  std::unordered_map<Key, Tier, KeyHash> stored_ HARVEST_GUARDED_BY(mutex_);
  std::unordered_map<Key, std::vector<std::uint32_t>, KeyHash> local_ HARVEST_GUARDED_BY(mutex_);
  std::vector<BlockEvent> events_ HARVEST_GUARDED_BY(mutex_);  ///< to be told, in the order of what happened
  bool telling_ HARVEST_GUARDED_BY(mutex_) = false;            ///< one thread at a time
  std::vector<Copy> copies_ HARVEST_GUARDED_BY(mutex_);
  std::vector<BlockShape::LayerRange> ranges_ HARVEST_GUARDED_BY(mutex_);
  BlockCacheStats stats_ HARVEST_GUARDED_BY(mutex_);
};

}  // namespace harvest::kv
