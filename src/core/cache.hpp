// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/policy.hpp>
#include <harvest/stats.hpp>
#include <harvest/topology.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/annotated_mutex.hpp"
#include "core/access_log.hpp"
#include "core/object_table.hpp"
#include "core/stream_set.hpp"
#include "memory/pool.hpp"
#include "policy/shadow_curve.hpp"

/// What is behind `PeerCache`. Two planes:
///
/// - The read path (read_path.cpp) touches the object table, the access log and one `Reader` of its own
///   stream. It never takes the control lock.
/// - The control plane (everything else) runs under `control_`: writing, moving copies between tiers,
///   watching the peers, giving memory back. User callbacks are collected in `told_` and made after the
///   lock is gone (I8).
namespace harvest::core {

/// What a fill is for, where no reclaim's number says so.
inline constexpr std::uint64_t kPromotion = 0;
inline constexpr std::uint64_t kReclaimIsOver = UINT64_MAX;  ///< a fenced segment may outlast its reclaim

/// A copy being written in the background from another copy, which it keeps pinned. Readers see it when it
/// is complete, never before: if it fails, nobody has been told of it (I3).
struct Fill {
  Object* object = nullptr;  ///< whose copy in tier `to` is written
  Tier to = Tier::none;
  Object* source =
      nullptr;  ///< the same object; or, in a move between peers, the one that `object` will replace
  Tier from = Tier::none;
  EventId done = EventId::none;
  std::uint64_t reclaim = kPromotion;  ///< the reclaim that this move serves, or none that is still open
};

/// One copy of one generation, in a list of things to look at later.
struct CopyRef {
  Object* object = nullptr;
  Generation generation = 0;
  Tier tier = Tier::none;

  [[nodiscard]] bool is_live() const {
    return object->generation.load(std::memory_order_relaxed) == generation &&
           object->copy(tier).state() == CopyState::live;
  }
};

/// A promotion to begin.
struct Wish {
  CopyRef copy;
  bool by_caller = false;  ///< `prefetch`: may evict without asking the tier's admission
};

/// An erased `external_host` object whose memory work in flight may still read.
struct Settling {
  Key key;
  Generation generation = 0;
  std::vector<EventId> events;
};

/// A reclaim under way, or its memory.
struct Reclaim {
  std::uint64_t id = 0;
  bool by_monitor = false;
  TimeNs begun_ns = 0;
  TimeNs deadline_ns = 0;
  ReclaimReport report;
};

/// What the monitor knows of a peer.
///
/// Invariant: the pool maps more only while mapped + segment <= allowed_bytes.
struct Peer {
  DeviceId device = kHost;
  std::unique_ptr<memory::Pool> pool;
  StreamId background = StreamId::none;  ///< on the peer, for copies into and out of it

  MemoryInfo sampled;
  TimeNs sampled_ns = 0;
  TimeNs next_sample_ns = 0;
  std::uint64_t others_bytes = 0;  ///< used on the device and not by us, at the last sample
  double burst_bytes = 0;          ///< largest rise of that within one sample seen lately
  std::uint64_t allowed_bytes = 0;
  std::uint64_t reserve_bytes = 0;
  double growth_tokens_bytes = 0;
  std::map<std::uint32_t, std::uint64_t> tenant_bytes;  ///< slots in use here, by tenant
  TimeNs no_growth_before_ns = 0;
  TimeNs last_shrink_ns = 0;

  bool lost = false;              ///< for good
  TimeNs suspended_until_ns = 0;  ///< out of service after a failed copy, until then
  TimeNs suspension_ns = 0;       ///< doubles with every failure that comes soon
  std::string why_out_of_service;
};

/// The scratch of one stream's fetches, so that submitting one allocates nothing, and the events by which
/// `poll` hears how they ended. Fetches on one stream follow each other anyway, so its lock is no bottleneck.
struct Reader {
  static constexpr std::size_t kBatch = 1024;
  static constexpr std::size_t kWatches = 256;

  struct Item {
    Object* object;
    Tier tier;
    DeviceId device;
    const std::byte* source;
    std::uint32_t index;  ///< in the caller's batch
  };
  /// The end of one group of copies; no event if none could be recorded.
  struct Watch {
    EventId event = EventId::none;
    DeviceId source = kHost;
  };
  /// An item that was read behind a write under way. Its copy is pinned, so that the write's event can be
  /// asked how it ended: not even another copy that came in its place says so.
  struct Early {
    const FetchItem* item;
    Object* object;
    Tier tier;
  };
  /// For a fetch that waits: how its copies end, and what it read early.
  struct Ending {
    std::vector<Watch> watches;
    std::vector<Early> early;
  };

  Mutex mutex;
  StreamId side HARVEST_GUARDED_BY(mutex) = StreamId::none;  ///< carries host reads beside peer reads
  std::vector<Item> items HARVEST_GUARDED_BY(mutex);
  std::vector<harvest::Copy> copies HARVEST_GUARDED_BY(mutex);
  std::vector<Watch> watches HARVEST_GUARDED_BY(mutex);
};

/// Whether a refused copy says that a device or path does not work, and not that the call was wrong.
[[nodiscard]] inline bool is_trouble(const Error& error) {
  return error.code != ErrorCode::invalid_argument && error.code != ErrorCode::not_found &&
         error.code != ErrorCode::not_supported;
}

class Cache {
 public:
  Cache(Backend& backend, PeerCacheConfig config, Topology topology);
  ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  /// Second half of construction. Errors as `PeerCache::create`.
  [[nodiscard]] Status start();

  // --- read_path.cpp
  Status fetch(std::span<FetchItem> items, StreamId stream);
  Status fetch_and_wait(std::span<FetchItem> items, StreamId stream) HARVEST_EXCLUDES(control_);
  [[nodiscard]] Lease acquire(const Key& key, StreamId stream);
  [[nodiscard]] Tier locate(const Key& key) const { return table_.peek(key); }

  // --- write_path.cpp
  Result<Generation> put(const Key& key, const void* source, std::uint64_t bytes, const PutOptions& options)
      HARVEST_EXCLUDES(control_);
  Status erase(const Key& key) HARVEST_EXCLUDES(control_);
  Status forget_stream(StreamId stream) HARVEST_EXCLUDES(control_);

  // --- promotion.cpp
  std::size_t prefetch(std::span<const Key> keys, Tier tier) HARVEST_EXCLUDES(control_);

  // --- revocation.cpp
  Result<ReclaimReport> reclaim(DeviceId device, std::uint64_t bytes, TimeNs deadline_ns)
      HARVEST_EXCLUDES(control_);
  Result<ReclaimId> begin_reclaim(DeviceId device, std::uint64_t bytes, TimeNs deadline_ns)
      HARVEST_EXCLUDES(control_);
  [[nodiscard]] Result<ReclaimReport> reclaim_status(ReclaimId id) const HARVEST_EXCLUDES(control_);

  // --- background.cpp
  TimeNs poll() HARVEST_EXCLUDES(control_);
  Status settle(TimeNs deadline_ns) HARVEST_EXCLUDES(control_);

  // --- inspection.cpp
  [[nodiscard]] CacheStats stats() const HARVEST_EXCLUDES(control_);
  [[nodiscard]] Status audit() const HARVEST_EXCLUDES(control_);
  [[nodiscard]] Backend& backend() const { return backend_; }
  [[nodiscard]] const Topology& topology() const { return topology_; }
  [[nodiscard]] const PeerCacheConfig& config() const { return config_; }

 private:
  // --- read_path.cpp: one batch of at most Reader::kBatch items
  // What tells how the copies ended goes to `ending`, or to the reader's own watches for `poll` if that is
  // null.
  void fetch_batch(Reader& reader, std::span<FetchItem> items, StreamId stream, Reader::Ending* ending);
  void resolve(Reader& reader, std::span<FetchItem> items, StreamId stream, Reader::Ending* ending)
      HARVEST_REQUIRES(reader.mutex);
  static void note_early(Reader::Ending& ending, const FetchItem& item, const Pinned& pinned);
  [[nodiscard]] std::vector<const FetchItem*> end_early(const Reader::Ending& ending)
      HARVEST_EXCLUDES(control_);
  void balance(Reader& reader, std::span<FetchItem> items) HARVEST_REQUIRES(reader.mutex);
  void submit(Reader& reader, std::span<FetchItem> items, StreamId stream, Reader::Ending* ending)
      HARVEST_REQUIRES(reader.mutex);
  [[nodiscard]] Status submit_group(Reader& reader, std::span<const Reader::Item> group,
                                    std::span<const FetchItem> items, StreamId stream, Reader::Ending* ending)
      HARVEST_REQUIRES(reader.mutex);
  void serve_from_next_tier(Reader& reader, FetchItem& item, Tier failed, StreamId stream,
                            Reader::Ending* ending) HARVEST_REQUIRES(reader.mutex);
  [[nodiscard]] StreamId side_stream(Reader& reader, StreamId stream, bool host_beside_others)
      HARVEST_REQUIRES(reader.mutex);
  void watch(Reader& reader, StreamId stream, DeviceId source, Reader::Ending* ending)
      HARVEST_REQUIRES(reader.mutex);
  void remember(Reader& reader, Reader::Watch watch) HARVEST_REQUIRES(reader.mutex);
  [[nodiscard]] std::uint64_t bit_of(const Reader& reader) const {
    return 1ULL << (&reader - readers_.data());
  }
  [[nodiscard]] bool wait_for_write(StreamId stream, const Pinned& pinned);
  [[nodiscard]] Status check_not_capturing(StreamId stream) const;
  [[nodiscard]] Status check_fetch(std::span<const FetchItem> items, StreamId stream) const;
  [[nodiscard]] Reader& reader_of(StreamId stream);
  void note_use(Object& object, StreamId stream);

  // --- write_path.cpp
  [[nodiscard]] Status check_put(const void* source, std::uint64_t bytes, const PutOptions& options) const;
  [[nodiscard]] Result<Generation> put_on_stream(const Key& key, const void* source, std::uint64_t bytes,
                                                 const PutOptions& options, StreamId stream)
      HARVEST_REQUIRES(control_);
  [[nodiscard]] Status write_object(Object& object, const void* source, const PutOptions& options,
                                    StreamId stream) HARVEST_REQUIRES(control_);
  [[nodiscard]] Status write_copy(Object& object, Tier tier, const void* source, DeviceId source_device,
                                  StreamId stream) HARVEST_REQUIRES(control_);
  [[nodiscard]] Result<EventId> copy_and_record(StreamId stream, Route route, const harvest::Copy& run)
      HARVEST_REQUIRES(control_);
  void write_faster_copies(Object& object, const void* source, const PutOptions& options, StreamId stream)
      HARVEST_REQUIRES(control_);
  void retire(Object& object, DropReason reason) HARVEST_REQUIRES(control_);

  // --- tiers.cpp: copies come and go
  struct Place {
    memory::Pool* pool = nullptr;
    memory::Allocation allocation;
  };
  [[nodiscard]] std::optional<Place> allocate(Tier tier, Object& object, bool may_evict)
      HARVEST_REQUIRES(control_);
  [[nodiscard]] std::optional<Place> allocate_on_peer(Object& object) HARVEST_REQUIRES(control_);
  [[nodiscard]] std::optional<Place> allocate_from(memory::Pool& pool, Object& object)
      HARVEST_REQUIRES(control_);
  [[nodiscard]] std::optional<Place> evict_for(Tier tier, Object& object) HARVEST_REQUIRES(control_);
  [[nodiscard]] bool has_room(Tier tier, const Object& object) HARVEST_REQUIRES(control_);
  [[nodiscard]] bool evictable(const Object& object, Tier tier) const HARVEST_REQUIRES(control_);
  void evict_copy(Object& object, Tier tier) HARVEST_REQUIRES(control_);
  [[nodiscard]] std::vector<PeerSnapshot> snapshot_peers(const Object& object) HARVEST_REQUIRES(control_);
  void make_room_in_segment(memory::Pool& pool, std::uint32_t segment, Tier tier, const Key& incoming)
      HARVEST_REQUIRES(control_);

  void place(Object& object, Tier tier, const Place& place) HARVEST_REQUIRES(control_);
  void free_slot(Object& object, Tier tier, std::vector<EventId> events) HARVEST_REQUIRES(control_);
  void wait_for_slot(StreamId stream, const Place& place) HARVEST_REQUIRES(control_);
  void release_events(const Place& place) HARVEST_REQUIRES(control_);
  void reveal(Object& object, Tier tier) HARVEST_REQUIRES(control_);
  [[nodiscard]] static bool is_ranked(const Object& object, Tier tier);
  void enter_policy(Object& object, Tier tier) HARVEST_REQUIRES(control_);
  void drop_copy(Object& object, Tier tier, DropReason reason) HARVEST_REQUIRES(control_);
  bool finish_leaving(Object& object, Tier tier) HARVEST_REQUIRES(control_);
  [[nodiscard]] Result<EventId> record_apart(StreamId stream);
  [[nodiscard]] Result<EventId> try_record_apart(StreamId stream);
  [[nodiscard]] std::vector<StreamId> users_of(const Object& object) const HARVEST_REQUIRES(control_);
  [[nodiscard]] std::optional<std::vector<EventId>> events_of_users(const Object& object)
      HARVEST_REQUIRES(control_);
  [[nodiscard]] bool wipe(const memory::Slot& slot, DeviceId device, std::vector<EventId>& events)
      HARVEST_REQUIRES(control_);
  void forget_if_gone(Object& object) HARVEST_REQUIRES(control_);
  void lose(Object& object, DropReason reason) HARVEST_REQUIRES(control_);

  /// Whether an object survives without its copy in one tier. `perhaps`: the other copy is still being
  /// written, and may fail.
  enum class Elsewhere : std::uint8_t { nowhere, perhaps, surely };
  [[nodiscard]] Elsewhere elsewhere(const Object& object, Tier tier) const HARVEST_REQUIRES(control_);
  [[nodiscard]] bool in_fenced_segment(const Copy& copy, Tier tier) const HARVEST_REQUIRES(control_);
  [[nodiscard]] static Tier best_source(const Object& object, Tier except);

  [[nodiscard]] bool begin_fill(Object& source, Tier from, Object& object, Tier to, Place place,
                                std::uint64_t reclaim) HARVEST_REQUIRES(control_);
  void finish_fills() HARVEST_REQUIRES(control_);
  void end_fill(const Fill& fill, bool arrived) HARVEST_REQUIRES(control_);
  void finish_all_leaving() HARVEST_REQUIRES(control_);

  // --- promotion.cpp: what is hot climbs
  bool wish(Object& object, Tier tier) HARVEST_REQUIRES(control_);
  bool enqueue(Object& object, Tier tier, bool by_caller) HARVEST_REQUIRES(control_);
  void promote_wished() HARVEST_REQUIRES(control_);
  void learn_from_reads() HARVEST_REQUIRES(control_);
  void shadow_access(const Object& object, Tier served) HARVEST_REQUIRES(control_);
  void heat_up(Object& object, TimeNs now_ns) HARVEST_REQUIRES(control_);
  [[nodiscard]] double heat_of(const Object& object, TimeNs now_ns) const HARVEST_REQUIRES(control_);

  // --- pressure.cpp
  void sample_peers() HARVEST_REQUIRES(control_);
  void sample(Peer& peer) HARVEST_REQUIRES(control_);
  void shrink_to_allowed(Peer& peer) HARVEST_REQUIRES(control_);
  [[nodiscard]] double most_tokens() const;
  [[nodiscard]] std::uint64_t growable_bytes(const Peer& peer, TimeNs now_ns) const
      HARVEST_REQUIRES(control_);
  [[nodiscard]] Status grow(Peer& peer, std::uint64_t object_bytes) HARVEST_REQUIRES(control_);
  void hear_of_trouble() HARVEST_REQUIRES(control_);
  void suspend(Peer& peer) HARVEST_REQUIRES(control_);
  void lose_device(Peer& peer, std::string why) HARVEST_REQUIRES(control_);
  void drop_copies_on(Peer& peer, DropReason reason) HARVEST_REQUIRES(control_);
  void resize_peer_policy() HARVEST_REQUIRES(control_);
  [[nodiscard]] static bool in_service(const Peer& peer, TimeNs now_ns) {
    return !peer.lost && now_ns >= peer.suspended_until_ns;
  }
  void report_trouble(DeviceId device);

  // --- revocation.cpp
  Reclaim& open_reclaim(Peer& peer, std::uint64_t bytes, TimeNs deadline_ns, bool by_monitor)
      HARVEST_REQUIRES(control_);
  void advance_reclaims() HARVEST_REQUIRES(control_);
  void fence_cheapest(Peer& peer, TimeNs now_ns) HARVEST_REQUIRES(control_);
  [[nodiscard]] double value_of(const memory::Segment& segment, TimeNs now_ns) const
      HARVEST_REQUIRES(control_);
  void empty_segment(Peer& peer, std::uint32_t segment) HARVEST_REQUIRES(control_);
  void move_away(Peer& peer, Object& object, std::uint64_t reclaim) HARVEST_REQUIRES(control_);
  void unmap_drained(Peer& peer) HARVEST_REQUIRES(control_);
  void credit_reclaims(const Peer& peer, std::uint64_t bytes) HARVEST_REQUIRES(control_);
  [[nodiscard]] Reclaim* find_reclaim(std::uint64_t id) HARVEST_REQUIRES(control_);
  [[nodiscard]] Reclaim* first_open_reclaim(DeviceId device) HARVEST_REQUIRES(control_);
  [[nodiscard]] static DropReason revocation_reason(const Reclaim* reclaim);

  // --- background.cpp
  void work() HARVEST_REQUIRES(control_);
  bool work_until(TimeNs deadline_ns, const std::function<bool()>& done) HARVEST_EXCLUDES(control_);
  void settle_pending() HARVEST_REQUIRES(control_);
  void lose_unwritten(Object& object) HARVEST_REQUIRES(control_);
  void hear_of_fetches() HARVEST_REQUIRES(control_);
  void collect_pools() HARVEST_REQUIRES(control_);
  void deliver_events() HARVEST_EXCLUDES(control_);
  [[nodiscard]] bool idle() const HARVEST_REQUIRES(control_);
  void tell(CacheEvent::Kind kind, const Object& object, DeviceId device) HARVEST_REQUIRES(control_);

  // --- all
  [[nodiscard]] memory::Pool* pool_of(Tier tier, DeviceId device) const HARVEST_REQUIRES(control_);
  [[nodiscard]] Peer* find_peer(DeviceId device) HARVEST_REQUIRES(control_);
  [[nodiscard]] EvictionPolicy& eviction(Tier tier) HARVEST_REQUIRES(control_) {
    return *eviction_[static_cast<std::size_t>(tier)];
  }
  [[nodiscard]] AdmissionPolicy& admission(Tier tier) HARVEST_REQUIRES(control_) {
    return *admission_[static_cast<std::size_t>(tier)];
  }
  [[nodiscard]] std::optional<policy::ShadowCurve>& shadow(Tier tier) HARVEST_REQUIRES(control_) {
    return shadow_[static_cast<std::size_t>(tier)];
  }
  [[nodiscard]] ObjectFacts facts_of(const Object& object, Tier tier) const;
  [[nodiscard]] StreamId stream_of(DeviceId device) HARVEST_REQUIRES(control_);
  [[nodiscard]] StreamId background_stream(Tier from, Tier to, DeviceId from_device, DeviceId to_device)
      HARVEST_REQUIRES(control_);
  [[nodiscard]] bool has_tier(Tier tier) const { return has_tier_[static_cast<std::size_t>(tier)]; }
  [[nodiscard]] Status make_policies() HARVEST_REQUIRES(control_);
  [[nodiscard]] std::unique_ptr<memory::Pool> make_pool(memory::PoolConfig config) HARVEST_REQUIRES(control_);
  void measure_paths();
  [[nodiscard]] Status make_peers() HARVEST_REQUIRES(control_);
  void drain_everything() HARVEST_REQUIRES(control_);
  void drain(memory::Pool& pool) HARVEST_REQUIRES(control_);

  Backend& backend_;
  const PeerCacheConfig config_;
  const Topology topology_;
  std::array<bool, kTiers> has_tier_{};  ///< fixed by `start`
  /// How bytes of a device reach the consumer, by device id + 1; fixed by `start`.
  struct WayIn {
    double ns_per_byte = 0;
    bool beside_host = false;  ///< over other wires than the host's
  };
  std::vector<WayIn> ways_in_;

  // The read path's.
  ObjectTable table_;
  AccessLog log_;
  std::array<Reader, 64> readers_;
  std::atomic<std::uint64_t> watching_{
      0};  ///< one bit for each reader with fetches that `poll` is to hear of
  struct FetchCounters {
    std::atomic<std::uint64_t> fetches{0};
    std::atomic<std::uint64_t> items{0};
    std::atomic<std::uint64_t> fallbacks{0};
    std::array<std::atomic<std::uint64_t>, kTiers> bytes{};
  };
  FetchCounters fetched_;
  StreamSet shared_streams_{kOverflowStreamBit};  ///< those that read and share the overflow bit
  std::unique_ptr<std::atomic<std::uint32_t>[]>
      trouble_;  ///< by device: copies that failed since the last poll
  std::atomic<std::uint64_t> copies_in_trouble_{0};

  // The control plane's.
  mutable Mutex control_;
  std::unique_ptr<memory::Pool> local_ HARVEST_GUARDED_BY(control_);
  std::unique_ptr<memory::Pool> host_ HARVEST_GUARDED_BY(control_);
  std::vector<Peer> peers_ HARVEST_GUARDED_BY(control_);
  StreamId consumer_background_ HARVEST_GUARDED_BY(control_) = StreamId::none;
  std::array<std::unique_ptr<EvictionPolicy>, kTiers> eviction_ HARVEST_GUARDED_BY(control_);
  std::array<std::unique_ptr<AdmissionPolicy>, kTiers> admission_ HARVEST_GUARDED_BY(control_);
  /// What other sizes of a tier would serve; none for local.
  std::array<std::optional<policy::ShadowCurve>, kTiers> shadow_ HARVEST_GUARDED_BY(control_);
  std::unique_ptr<PlacementPolicy> placement_ HARVEST_GUARDED_BY(control_);
  std::uint64_t peer_capacity_bytes_ HARVEST_GUARDED_BY(control_) = 0;
  Generation next_generation_ HARVEST_GUARDED_BY(control_) = 1;

  std::vector<Fill> fills_ HARVEST_GUARDED_BY(control_);
  std::uint64_t filling_bytes_ HARVEST_GUARDED_BY(control_) = 0;
  std::vector<CopyRef> leaving_ HARVEST_GUARDED_BY(control_);  ///< out of sight, still pinned
  std::vector<CopyRef> pending_
      HARVEST_GUARDED_BY(control_);  ///< in sight, their write is not known to be complete
  std::vector<CopyRef> spent_
      HARVEST_GUARDED_BY(control_);  ///< complete; a reader may still use the ready event
  std::deque<Wish> wishes_ HARVEST_GUARDED_BY(control_);
  std::vector<AccessLog::Sample> samples_ HARVEST_GUARDED_BY(control_);  ///< scratch of `learn_from_reads`
  std::deque<Generation> failed_writes_
      HARVEST_GUARDED_BY(control_);  ///< the last few, for `put` calls that wait
  std::set<std::uint32_t> forgotten_streams_ HARVEST_GUARDED_BY(control_);  ///< ids are not used again
  std::vector<Settling> settling_ HARVEST_GUARDED_BY(control_);
  std::deque<Reclaim> reclaims_ HARVEST_GUARDED_BY(control_);
  std::uint64_t next_reclaim_ HARVEST_GUARDED_BY(control_) = 1;
  std::vector<CacheEvent> told_ HARVEST_GUARDED_BY(control_);
  CacheStats counters_ HARVEST_GUARDED_BY(control_);  ///< those that the read path does not count
};

}  // namespace harvest::core
