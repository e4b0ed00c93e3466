// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/policy.hpp>
#include <harvest/stats.hpp>
#include <harvest/status.hpp>
#include <harvest/topology.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

/// The cache. One `PeerCache` serves one consumer GPU: `put` gives it objects by key, `fetch` and
/// `acquire` read them from the best tier that has them, and `reclaim` gives a peer's memory back.
///
///     auto backend = make_simulated_backend(*machine_from_preset("dgx-h100"), {});
///     auto cache = PeerCache::create(*backend, {.consumer = 0, .host_budget_bytes = 8 * GiB});
///     (*cache)->put(key, weights, bytes, {.backing = Backing::external_host});
///     FetchItem item{.key = key, .destination = slot, .capacity_bytes = bytes};
///     (*cache)->fetch({&item, 1}, stream);           // ordered in `stream`; item.served says the tier
///     (*cache)->reclaim(peer, 4 * GiB, deadline);    // the owner wants its memory back
///
/// What always holds: bytes under one (key, generation) never change, a read delivers those bytes or
/// says that it does not have them; a peer's memory is given back whole or reported as late; objects
/// that are not `lossy` survive every revocation.
namespace harvest {

namespace core {
class Cache;
struct Object;
}  // namespace core

/// How one tier chooses what it keeps. Empty names mean the defaults: eviction `adaptive_2q` for local and
/// host, `lru_2` for peers; admission `second_hit` for local and peers, `always` for host.
struct TierPolicy {
  std::string eviction{};   ///< one of `eviction_policy_names()`
  std::string admission{};  ///< one of `admission_policy_names()`
};

/// How a peer's memory is watched. There is no signal for another process's allocations, so the
/// monitor samples; an owner that can, calls `PeerCache::reclaim` and waits (mode `cooperative`).
struct PressureConfig {
  TimeNs sample_interval_ns = 5'000'000;  ///< backs off where the query itself is slow
  /// Left free on every peer, whatever happens. The default is more than the largest single allocation
  /// that model servers commonly make; docs/benchmarks/owner.md has what each size harvests and harms.
  std::uint64_t reserve_bytes = 2ULL << 30;
  std::uint64_t growth_bytes_per_s = 16ULL << 30;  ///< how fast a peer's pool may grow
  TimeNs regrow_delay_ns = 1'000'000'000;          ///< no growth for this long after a shrink
  std::uint64_t hysteresis_bytes = 256ULL << 20;   ///< room beyond the reserve that growth leaves
};

/// Something that happened to an object by itself; told to `PeerCacheConfig::on_event`.
struct CacheEvent {
  enum class Kind : std::uint8_t {
    revoked,  ///< the peer copy left because its peer needs the memory; the object lives on elsewhere
    spilled,  ///< a `spill` object now lives in host memory or on another peer (see `device`)
    lost,     ///< the object is gone: `lossy` and revoked, or its only device died. Told exactly once
    evicted,  ///< an `evictable` object was dropped for room
    settled,  ///< nothing of ours reads the caller's memory of an erased or replaced `external_host` object
  };
  Kind kind = Kind::revoked;
  Key key{};
  Generation generation = 0;
  DeviceId device = kHost;
};
[[nodiscard]] std::string_view to_string(CacheEvent::Kind kind);

struct PeerCacheConfig {
  DeviceId consumer = 0;  ///< the GPU that reads
  /// Whose memory may be used. Empty: every usable peer that the consumer reads faster than host memory.
  std::vector<DeviceId> peers{};
  bool verify_paths = true;  ///< send a pattern over each path first; a peer whose path fails is not used
  std::vector<PathVerdict> path_verdicts{};  ///< what you know of paths better than that test

  std::uint64_t local_budget_bytes = 0;          ///< tier `local`: 0 means that the caller owns all buffers
  std::uint64_t peer_budget_bytes = UINT64_MAX;  ///< at most this much on each peer
  std::uint64_t host_budget_bytes = 4ULL << 30;  ///< pinned host memory for `managed_host` and spilled bytes

  std::uint64_t segment_min_bytes = 32ULL << 20;  ///< segments, the units of give-back, are this large
  std::uint64_t segment_max_bytes = 64ULL << 20;  ///< up to this; a larger object gets one of its own
  std::uint64_t host_chunk_bytes = 256ULL << 20;  ///< pinned memory grows by this; at most 1 GiB
  std::uint32_t max_objects = 1U << 18;           ///< 384 bytes each, touched as they are used

  TierPolicy local_policy{};
  TierPolicy peer_policy{};
  TierPolicy host_policy{};  ///< for objects put as `evictable`; others are never evicted from host
  std::string placement{};   ///< one of `placement_policy_names()`
  PlacementWeights placement_weights{};

  PressureConfig pressure{};
  /// Lets a batch that would keep the peers' wires busy longest read some objects from host memory at the
  /// same time, where they are too and both are different wires.
  bool balance_paths = true;
  /// Promotions and spills under way at once; a demand fetch never waits for more than this.
  std::uint64_t background_bytes = 256ULL << 20;

  /// Called by `poll`, `put`, `erase`, `settle` and the reclaims after their work, outside of all locks, by
  /// whichever thread did it, perhaps by two at once; it may call the cache. Never called on the read path.
  /// It may not throw: that stops the process.
  std::function<void(const CacheEvent&)> on_event{};
};

struct PutOptions {
  Backing backing = Backing::managed_host;
  DeviceId source_device = kHost;    ///< where `source` is
  StreamId stream = StreamId::none;  ///< orders the copies; none: `put` returns when they are done
  bool evictable = false;            ///< may be dropped for room; then a read says miss
  std::uint32_t tenant = 0;          ///< 0: none. Memory that held a tenant's bytes is wiped before reuse
  double recompute_cost_ns = 0;      ///< what losing it costs the caller; guides eviction and revocation
  /// What the object is of no use without, as a KV block without the block before it; it need not be in the
  /// cache. Eviction policies that know of prefixes (`prefix_lru` and the like) keep it while they keep this.
  std::optional<Key> parent{};
};

/// One object of a batch. The caller fills the first part, `fetch` the second.
struct FetchItem {
  Key key{};
  void* destination = nullptr;       ///< on the consumer
  std::uint64_t capacity_bytes = 0;  ///< of the destination; at least the object's size

  ErrorCode outcome =
      ErrorCode::ok;  ///< ok, not_found (a miss), invalid_argument (does not fit), unavailable
  Tier served = Tier::none;
  Generation generation = 0;
  std::uint64_t bytes = 0;  ///< the object's size
};

/// A pin on one copy of one object, and the only thing that exposes its address. While it is held the
/// bytes stay where they are. Releasing is cheap, and safe while GPU work given to the lease's stream is
/// still reading: the memory goes back only when that work is done. A graph that reads the bytes needs them
/// for as long as it may be launched: hold the lease until then. Move-only; not for two threads at once.
class Lease {
 public:
  Lease() = default;
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&& other) noexcept;
  ~Lease() { release(); }

  /// Empty after a miss, a release or a move.
  [[nodiscard]] explicit operator bool() const { return object_ != nullptr; }
  /// Why it is empty: not_found, busy (no stream was given and the bytes are still on their way),
  /// out_of_memory (too many leases on this copy; the limit is 32,767).
  [[nodiscard]] ErrorCode outcome() const { return outcome_; }

  [[nodiscard]] const std::byte* data() const { return address_; }
  [[nodiscard]] std::uint64_t bytes() const;
  [[nodiscard]] Generation generation() const;
  [[nodiscard]] Tier tier() const { return tier_; }
  /// The device whose memory `data` is in: the consumer, a peer, or the host.
  [[nodiscard]] DeviceId device() const;

  /// No work that reads the bytes may be given to the stream after this.
  void release();

 private:
  friend class core::Cache;
  const std::byte* address_ = nullptr;
  core::Object* object_ = nullptr;
  Tier tier_ = Tier::none;
  ErrorCode outcome_ = ErrorCode::not_found;
};

/// How a reclaim ended.
struct ReclaimReport {
  DeviceId device = kHost;
  std::uint64_t requested_bytes = 0;
  std::uint64_t returned_bytes = 0;  ///< physically: the backend's free count shows them
  std::uint64_t late_bytes = 0;      ///< still ours at the deadline; they follow as leases and copies end
  std::uint64_t spilled_bytes = 0;   ///< moved to another peer or to host memory
  std::uint64_t dropped_bytes = 0;   ///< copies of objects that live on elsewhere
  std::uint64_t lost_bytes = 0;      ///< `lossy` objects
  TimeNs duration_ns = 0;
  bool finished = false;  ///< nothing more is to come
};

/// Names a reclaim that was begun.
enum class ReclaimId : std::uint64_t { none = 0 };

/// All functions may be called from any thread unless they say otherwise.
///
/// The read path (`acquire`, `Lease::release`, submitting a `fetch`) takes no global lock, allocates no
/// memory and never waits for a reclaim. The rest takes one control lock, for microseconds; mapping
/// memory can make that milliseconds. The cache starts no thread: call `poll` often (a `Runner` does).
class PeerCache {
 public:
  /// Probes the machine and begins with empty pools. `backend` outlives the cache.
  /// Errors: invalid_argument (names the field, value and limit), not_found (device, policy, path),
  /// unavailable (a named peer that the consumer cannot reach), out_of_memory.
  [[nodiscard]] static Result<std::unique_ptr<PeerCache>> create(Backend& backend, PeerCacheConfig config);

  /// Waits for its GPU work and gives all memory back. Requires: no lease is held (one that is stops the
  /// process, and its key is named), no call is running, no stream that read from it is being captured.
  ~PeerCache();
  PeerCache(const PeerCache&) = delete;
  PeerCache& operator=(const PeerCache&) = delete;

  // --- writing -----------------------------------------------------------------------------------

  /// Stores `bytes` bytes under `key` and answers the generation. A key that exists is replaced: from
  /// then on reads get the new bytes, and leases on the old ones stay good. `source` is read in the
  /// order of `options.stream` (an `external_host` source is not copied and stays the caller's).
  /// Errors: invalid_argument; not_supported (the stream is being captured); out_of_memory, unavailable,
  /// copy_failed: the key keeps its old content, unless the copy failed in flight, after the old content had
  /// made way; then the key is gone, and told as lost.
  Result<Generation> put(const Key& key, const void* source, std::uint64_t bytes,
                         const PutOptions& options = {});

  /// Forgets `key`. Leases stay good; memory returns to its pool when they end. Errors: not_found.
  Status erase(const Key& key);

  // --- reading -----------------------------------------------------------------------------------

  /// Copies a batch of objects to the caller's buffers on the consumer, from the fastest tier of each:
  /// after all work already given to `stream`, before all that is given later. Returns when the copies
  /// are submitted; each item tells its outcome. A copy that cannot be submitted is served from the
  /// next tier. Up to two paths (peers, host) carry a batch at the same time.
  /// A copy that fails in flight, after the call has returned, is noticed by `poll`, which takes its path out
  /// of service, but this caller is not told: who must know uses `fetch_and_wait`.
  /// Errors: invalid_argument (the stream is not the consumer's; null destination), not_supported (the stream
  /// is being captured into a graph: its replays would read memory that has changed hands).
  Status fetch(std::span<FetchItem> items, StreamId stream);

  /// As `fetch`, and waits. A copy that fails in flight is served again from the next tier, so that the
  /// items tell what really arrived.
  Status fetch_and_wait(std::span<FetchItem> items, StreamId stream);

  /// Pins the best copy for reading in place by work that is given to `stream` from now on; with
  /// `StreamId::none`, by the host. Of a copy that is still being written the stream's work waits for the
  /// write; that it failed in flight is told by `poll`'s events alone, as with `fetch`. Cost: about 50 ns.
  [[nodiscard]] Lease acquire(const Key& key, StreamId stream);

  /// Where a read of `key` would be served now. No promise, and not counted as an access.
  [[nodiscard]] Tier locate(const Key& key) const;

  /// Asks for copies in `tier` (`local` or `peer`) before they are needed; they come in the background,
  /// in order. Answers how many of `keys` are there or on their way. Keys that are not known are skipped;
  /// into `host`, `none` and a tier that this cache does not have nothing comes, and the answer is 0.
  std::size_t prefetch(std::span<const Key> keys, Tier tier);

  /// The caller's stream will be destroyed: waits until its work is done. Then comes
  /// `Backend::destroy_stream`, from which on nobody asks for the stream any more, and then its own end.
  Status forget_stream(StreamId stream);

  // --- giving back -------------------------------------------------------------------------------

  /// Gives `bytes` of `device` back to its owner and waits until that is done or `deadline_ns` (a point on
  /// the backend's clock) has passed. What is late goes on by itself, see `reclaim_status`. The pool does
  /// not grow into these bytes again before `PressureConfig::regrow_delay_ns`. Who asks for more than the
  /// cache holds there gets all of it; after the deadline, what can be had without waiting. Errors: not_found
  /// (not a peer of this cache), invalid_argument (0 bytes).
  Result<ReclaimReport> reclaim(DeviceId device, std::uint64_t bytes, TimeNs deadline_ns);

  /// The same without waiting: `poll` carries it on.
  Result<ReclaimId> begin_reclaim(DeviceId device, std::uint64_t bytes, TimeNs deadline_ns);
  /// Errors: not_found (never begun, or long ago: the last 64 are kept).
  [[nodiscard]] Result<ReclaimReport> reclaim_status(ReclaimId id) const;

  // --- background --------------------------------------------------------------------------------

  /// Does what is due: completes copies, samples the peers, shrinks, spills, promotes what is hot, tells
  /// events. Bounded; never waits for the GPU. Answers when it wants to be called again.
  TimeNs poll();

  /// Polls and waits until nothing is under way (promotions, spills, reclaims) or the deadline passes.
  /// Errors: timed_out.
  Status settle(TimeNs deadline_ns);

  // --- looking in --------------------------------------------------------------------------------

  [[nodiscard]] Backend& backend() const;
  [[nodiscard]] const Topology& topology() const;
  [[nodiscard]] const PeerCacheConfig& config() const;
  [[nodiscard]] CacheStats stats() const;

  /// Checks I7 (conservation) and the consistency of all tables. Cost: linear in the number of objects;
  /// for tests and debugging. Errors: invalid_argument with what does not hold.
  [[nodiscard]] Status audit() const;

 private:
  explicit PeerCache(std::unique_ptr<core::Cache> cache);
  std::unique_ptr<core::Cache> cache_;
};

}  // namespace harvest
