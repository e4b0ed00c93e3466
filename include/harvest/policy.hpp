// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Decisions as objects that know nothing of caches, devices or time: what goes for room, what may
/// come in, and onto which peer. They are chosen by name, a test can drive each without a cache, and
/// a user can hand in their own. None is thread-safe: the cache calls them under its control lock,
/// never on the read path.
namespace harvest {

/// What a policy may know of an object.
struct ObjectFacts {
  std::uint64_t bytes = 1;
  double reload_cost_ns = 1;  ///< what a miss costs: the time to get it back; at least 0, may be infinite
  /// What it is of no use without: the block before it in a chain of KV blocks. It need not be resident.
  std::optional<Key> parent{};
};

/// Ranks the residents of one tier and names the one to evict.
///
/// The caller tells of each `insert`, `hit` and `erase`, and asks `evict` when it needs room for an
/// incoming object. A policy keeps what history it needs of keys that were evicted (ghosts): a name and a
/// size each, for objects of at most 8 times `capacity_bytes` together. The same calls give the same
/// answers. Cost: O(1) or O(log n) a call, 0.1 to 0.5 us with its cache misses; `evict` also asks about each
/// resident that comes before the victim and may not go.
class EvictionPolicy {
 public:
  /// True if a resident may be evicted now (it is not leased, not being copied).
  using Evictable = std::function<bool(const Key&)>;

  EvictionPolicy() = default;
  EvictionPolicy(const EvictionPolicy&) = delete;
  EvictionPolicy& operator=(const EvictionPolicy&) = delete;
  virtual ~EvictionPolicy() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;

  /// The room that residents share; may change at any time (a peer shrinks and grows).
  virtual void set_capacity(std::uint64_t capacity_bytes) = 0;

  /// `key` is now resident. Requires: it was not.
  virtual void insert(const Key& key, const ObjectFacts& facts) = 0;

  /// `key` was read. Requires: it is resident.
  virtual void hit(const Key& key) = 0;

  /// `key` left for a reason that is not this policy's (erased, revoked) and is forgotten. No-op if it is
  /// not resident.
  virtual void erase(const Key& key) = 0;

  /// Chooses the resident that goes so that `incoming` can come, removes it from the residents and
  /// answers it; nothing if no resident is `evictable`. A caller that needs more room asks again.
  /// Answering `incoming` itself means: do not admit it (only policies that can bypass do so).
  virtual std::optional<Key> evict(const Key& incoming, const ObjectFacts& facts,
                                   const Evictable& evictable) = 0;

  [[nodiscard]] virtual bool contains(const Key& key) const = 0;
  [[nodiscard]] virtual std::size_t size() const = 0;
};

/// Says whether an object that asks to come into a tier is worth the write.
class AdmissionPolicy {
 public:
  AdmissionPolicy() = default;
  AdmissionPolicy(const AdmissionPolicy&) = delete;
  AdmissionPolicy& operator=(const AdmissionPolicy&) = delete;
  virtual ~AdmissionPolicy() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;

  /// How much the tier holds: a history reaches back over a multiple of it.
  virtual void set_capacity(std::uint64_t capacity_bytes) = 0;

  /// `key` was asked for, wherever it was then.
  virtual void record(const Key& key, const ObjectFacts& facts) = 0;

  /// True if `key` may come in. `has_room` says that nothing must go for it.
  [[nodiscard]] virtual bool admit(const Key& key, const ObjectFacts& facts, bool has_room) = 0;
};

/// What placement may know of a peer when an object looks for one.
struct PeerSnapshot {
  DeviceId device = kHost;
  std::uint64_t free_slot_bytes = 0;    ///< room in segments that are mapped already
  std::uint64_t growable_bytes = 0;     ///< what may still be mapped there, reserve and budget respected
  std::uint64_t used_bytes = 0;         ///< ours, in use
  std::uint64_t tenant_used_bytes = 0;  ///< of those, the asking tenant's
  double fetch_ns = 0;                  ///< expected time to fetch the object from there, alone
  double load = 0;                      ///< share of the path's bandwidth in use lately, 0..1
  double stable_ns = 0;                 ///< how long its memory has been ours without a shrink
};

struct PlacementRequest {
  std::uint64_t bytes = 0;
};

/// Chooses the peer for an object. A pure function of its arguments.
class PlacementPolicy {
 public:
  PlacementPolicy() = default;
  PlacementPolicy(const PlacementPolicy&) = delete;
  PlacementPolicy& operator=(const PlacementPolicy&) = delete;
  virtual ~PlacementPolicy() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;

  /// One of `peers` with room (free or growable) for the object, or nothing.
  [[nodiscard]] virtual std::optional<DeviceId> choose(std::span<const PeerSnapshot> peers,
                                                       const PlacementRequest& request) const = 0;
};

/// Weights of the combination named `weighted`; each score lies in 0..1 and more is better.
struct PlacementWeights {
  double best_fit = 1;
  double locality = 1;
  double fairness = 1;
  double stability = 1;
};

/// Names that the `make_` functions know, the default first. `belady` needs the future and is not
/// among the eviction names: see `simulate_policy`.
[[nodiscard]] std::span<const std::string_view> eviction_policy_names();
[[nodiscard]] std::span<const std::string_view> admission_policy_names();
[[nodiscard]] std::span<const std::string_view> placement_policy_names();

/// Errors: not_found, with the list of known names in the message; invalid_argument for a weight that is
/// negative or not finite.
[[nodiscard]] Result<std::unique_ptr<EvictionPolicy>> make_eviction_policy(std::string_view name,
                                                                           std::uint64_t capacity_bytes);
[[nodiscard]] Result<std::unique_ptr<AdmissionPolicy>> make_admission_policy(std::string_view name,
                                                                             std::uint64_t capacity_bytes);
[[nodiscard]] Result<std::unique_ptr<PlacementPolicy>> make_placement_policy(
    std::string_view name, const PlacementWeights& weights = {});

/// Makes `base` keep to the order of prefixes, under the name "prefix_" and its own: what has resident
/// children (objects that were inserted with it as `parent`) goes only if nothing else may, and so does the
/// parent of the object that room is made for. Nothing more: `base` ranks as before, and a parent that is not
/// there, or a cycle of parents, holds up nobody. An `evict` passes over at most `most_passed` residents for
/// their children's sake and then takes the next, so that long chains which are read often cannot make it
/// slow; no limit keeps the order strictly. Policies by name have the default, which
/// docs/benchmarks/policies.md explains. Cost: a look-up for each call, and for each resident that is passed;
/// memory for the residents that have a parent, and for those parents.
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_prefix_aware(std::unique_ptr<EvictionPolicy> base,
                                                                std::size_t most_passed = 16);

/// What a policy did on a recorded sequence of accesses, each object one unit of room.
struct PolicyRun {
  std::uint64_t accesses = 0;
  std::uint64_t hits = 0;
  /// Of those, hits at which all accesses before them in their request hit too: a KV block is of use only
  /// behind its whole prefix. Equal to `hits` where nobody says what the requests are.
  std::uint64_t usable_hits = 0;
  [[nodiscard]] double hit_ratio() const { return share_of_accesses(hits); }
  [[nodiscard]] double usable_hit_ratio() const { return share_of_accesses(usable_hits); }

 private:
  [[nodiscard]] double share_of_accesses(std::uint64_t count) const {
    return accesses == 0 ? 0.0 : static_cast<double>(count) / static_cast<double>(accesses);
  }
};

/// Replays `accesses` through policy `name` (one of `eviction_policy_names()`, or `belady`: the offline
/// optimum with bypass) with room for `capacity_objects`. Every access admits unless the policy
/// bypasses. Cost: 0.1 to 0.8 us an access. Errors: not_found, invalid_argument (capacity 0).
[[nodiscard]] Result<PolicyRun> simulate_policy(std::string_view name, std::span<const Key> accesses,
                                                std::uint64_t capacity_objects);

/// The same at each of `capacities_objects`, in their order. `request_lengths` says how many accesses each
/// request made, in order, each of which needs all before it; empty: every access is a request of its own.
/// Cost: one pass for `lru` and `belady`, whatever the number of capacities; one for each with the others.
/// Errors: as `simulate_policy`; invalid_argument also where the requests do not add up to the accesses.
[[nodiscard]] Result<std::vector<PolicyRun>> simulate_policy_curve(
    std::string_view name, std::span<const Key> accesses, std::span<const std::uint64_t> capacities_objects,
    std::span<const std::uint64_t> request_lengths = {});

}  // namespace harvest
