// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "core/copy_state.hpp"
#include "memory/pool.hpp"

namespace harvest::core {

/// One copy, for the control plane.
struct Copy {
  Copy() = default;
  Copy(const Copy&) = delete;

  bool has_slot = false;  ///< false for `external_host` memory, which is the caller's
  memory::Slot slot;
  DeviceId device = kHost;
  EventId ready = EventId::none;  ///< completes the write; kept until no reader can be waiting for it

  [[nodiscard]] bool has_bytes() const { return slot.address != nullptr; }
  [[nodiscard]] CopyState state() const { return state_; }

  /// The one way from state to state. Requires: `kCopyTransitions` has the step.
  void become(CopyState to);

  /// As if it had never been. Requires: not seen by readers, and nobody reads it any more.
  void clear();

 private:
  Copy& operator=(const Copy&) = default;  // only `clear` does: it looks at the state first

  CopyState state_ = CopyState::none;
};

/// A set of tiers, one bit each.
using TierSet = std::uint32_t;
[[nodiscard]] constexpr TierSet tier_bit(Tier tier) {
  return 1U << static_cast<std::uint32_t>(tier);
}
inline constexpr TierSet kAllTiers = 0b111;

/// An object. The first cache line is what a read touches, without a lock; the last part belongs to the
/// control lock. Objects are recycled but never freed while the table lives, so a reader may follow a
/// stale index: it pins first and compares the key after.
struct alignas(64) Object {
  // --- the read path: one cache line ---

  /// Pins of each tier (16 bits each, from bit 0), then one `visible` and one `pending` bit for each tier.
  /// Only changed by read-modify-write, so that a reader's pin on a recycled object is never lost.
  std::atomic<std::uint64_t> meta{0};
  std::atomic<std::uint64_t> key_high{0};
  std::atomic<std::uint64_t> key_low{0};
  std::atomic<std::uint32_t> next{0};  ///< in the chain of its bucket
  std::atomic<std::uint32_t> index{0};
  std::array<std::atomic<std::byte*>, kTiers> address{};
  /// One bit for each stream that was given work on the object, 63 for all streams from 63 on.
  std::atomic<std::uint64_t> used_by{0};

  // --- read now and then ---

  std::atomic<std::uint64_t> bytes{0};
  std::atomic<Generation> generation{0};
  std::array<std::atomic<EventId>, kTiers> ready{};
  std::array<std::atomic<DeviceId>, kTiers> device{};

  // --- the control plane ---

  std::array<Copy, kTiers> copies{};
  Key key;
  Backing backing = Backing::managed_host;
  bool evictable = false;
  bool linked = false;  ///< readers can find it
  TierSet wished = 0;   ///< tiers for which a promotion waits in the queue
  std::uint32_t tenant = 0;
  double recompute_cost_ns = 0;
  double heat = 0;  ///< reads, each halved for every `kHeatHalfLifeNs` that has passed since
  TimeNs heat_at_ns = 0;
  std::optional<Key> parent;  ///< what it is of no use without

  [[nodiscard]] Copy& copy(Tier tier) { return copies[static_cast<std::size_t>(tier)]; }
  [[nodiscard]] const Copy& copy(Tier tier) const { return copies[static_cast<std::size_t>(tier)]; }
};

static_assert(sizeof(Object) == 384, "what PeerCacheConfig::max_objects says of their size");

inline constexpr std::uint64_t kPinBits = 16;
inline constexpr std::uint64_t kMaxPins = (1ULL << (kPinBits - 1)) - 1;
inline constexpr std::uint32_t kOverflowStreamBit = 63;

[[nodiscard]] constexpr std::uint64_t one_pin(Tier tier) {
  return 1ULL << (kPinBits * static_cast<std::uint64_t>(tier));
}
[[nodiscard]] constexpr std::uint64_t pins_of(std::uint64_t meta, Tier tier) {
  return (meta >> (kPinBits * static_cast<std::uint64_t>(tier))) & ((1ULL << kPinBits) - 1);
}
[[nodiscard]] constexpr std::uint64_t visible_bit(Tier tier) {
  return 1ULL << (48 + static_cast<std::uint64_t>(tier));
}
[[nodiscard]] constexpr std::uint64_t pending_bit(Tier tier) {
  return 1ULL << (51 + static_cast<std::uint64_t>(tier));
}

inline void unpin(Object& object, Tier tier) {
  object.meta.fetch_sub(one_pin(tier), std::memory_order_release);
}
[[nodiscard]] inline std::uint64_t pins(const Object& object, Tier tier) {
  return pins_of(object.meta.load(std::memory_order_acquire), tier);
}

/// Notes that `stream` was given work on the object. Requires: the caller holds a pin.
inline void mark_used_by(Object& object, StreamId stream) {
  const auto number = static_cast<std::uint32_t>(stream);
  const std::uint64_t bit = 1ULL << (number < kOverflowStreamBit ? number : kOverflowStreamBit);
  if ((object.used_by.load(std::memory_order_relaxed) & bit) == 0)
    object.used_by.fetch_or(bit, std::memory_order_relaxed);
}

/// What a look-up gives: an object with one more pin on one tier, or nothing.
struct Pinned {
  Object* object = nullptr;
  Tier tier = Tier::none;
  bool pending = false;   ///< readers must wait for `object->ready[tier]`
  bool too_many = false;  ///< there is a copy, but its pins are used up
};

/// Objects by key: chains of buckets that readers walk without a lock while one writer (who holds the
/// control lock) links and unlinks. A new generation is linked before the old one is unlinked, so a key
/// that exists is always found.
class ObjectTable {
 public:
  explicit ObjectTable(std::uint32_t max_objects);
  ~ObjectTable();
  ObjectTable(const ObjectTable&) = delete;
  ObjectTable& operator=(const ObjectTable&) = delete;

  // --- readers, any thread, no lock ---

  /// Pins the first of {local, peer, host} within `allowed` that holds `key`.
  [[nodiscard]] Pinned find_and_pin(const Key& key, TierSet allowed) const;

  /// The first tier in which `key` is visible, without pinning it.
  [[nodiscard]] Tier peek(const Key& key) const;

  // --- the writer, under the control lock ---

  /// A fresh object, not linked; null if there are `max_objects`.
  [[nodiscard]] Object* create(const Key& key, Generation generation);
  /// Gives an object back. Requires: not linked, no copies; a reader's short-lived pin may still come and go.
  void recycle(Object& object);
  void link(Object& object);
  void unlink(Object& object);
  [[nodiscard]] Object* find(const Key& key) const;
  [[nodiscard]] Object& at(std::uint32_t index) const { return objects_[index]; }
  /// How many are linked.
  [[nodiscard]] std::uint32_t size() const { return linked_; }
  [[nodiscard]] std::uint32_t max_objects() const { return max_objects_; }

  /// Calls `visit` for every object that was created and not recycled, in order of index.
  void for_each(const std::function<void(Object&)>& visit) const;

  /// Makes the copy readable. Its address, device and ready event are in place before it is seen.
  static void show(Object& object, Tier tier, bool pending);
  /// New readers no longer find the copy; who has pinned it keeps it.
  static void hide(Object& object, Tier tier);
  static void clear_pending(Object& object, Tier tier);

 private:
  static constexpr std::size_t kVersionStripes = 64;
  struct alignas(64) Version {
    std::atomic<std::uint64_t> value{0};
  };

  [[nodiscard]] std::size_t bucket_of(const Key& key) const;

  std::uint32_t max_objects_;
  std::uint32_t linked_ = 0;
  std::uint32_t constructed_ = 0;  ///< indices 1..constructed_ hold objects; 0 means none
  Object* objects_ = nullptr;      ///< raw memory, touched as objects are constructed
  std::vector<std::uint32_t> recycled_;
  std::vector<std::atomic<std::uint32_t>> heads_;
  std::size_t bucket_mask_;
  /// Changes when something is unlinked: a reader who missed looks again, for it may have followed a
  /// recycled object into another chain.
  mutable std::array<Version, kVersionStripes> versions_{};
};

}  // namespace harvest::core
