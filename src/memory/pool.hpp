// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/transition.hpp"

namespace harvest::memory {

/// How objects of one size lie in a segment.
struct SegmentPlan {
  std::uint64_t slot_bytes = 0;
  std::uint64_t segment_bytes = 0;
  std::uint32_t slots = 0;
};

/// The size class of an object: 16 classes a doubling, so that at most 1/16 of a slot is unused.
[[nodiscard]] std::uint64_t slot_bytes_for(std::uint64_t object_bytes);

/// The segment between `min_bytes` and `max_bytes` that wastes least on slots for such objects; a larger
/// object gets a segment of its own. Sizes are multiples of `granularity_bytes`.
[[nodiscard]] SegmentPlan plan_segment(std::uint64_t object_bytes, std::uint64_t min_bytes,
                                       std::uint64_t max_bytes, std::uint64_t granularity_bytes);

/// A slot in use: {segment, index} names it, `address` and `bytes` say where it is.
struct Slot {
  std::uint32_t segment = 0;
  std::uint32_t index = 0;
  std::byte* address = nullptr;
  std::uint64_t bytes = 0;
};

/// A slot, and the work that still reads what it held: whoever fills it makes its stream wait for the
/// events first, then releases them.
struct Allocation {
  Slot slot;
  std::vector<EventId> after;
};

/// Life of one segment.
enum class SegmentState : std::uint8_t {
  unmapped,  ///< a hole: its number is free
  active,    ///< slots come and go
  fenced,    ///< being given back: nothing new comes in. When its last slot has drained, it may be unmapped
};

/// All that may happen to a segment. The model in tests/protocol has the same table.
inline constexpr std::array kSegmentTransitions{
    Transition{SegmentState::unmapped, SegmentState::active},  // Pool::grow
    Transition{SegmentState::active, SegmentState::fenced},    // Pool::fence; there is no way back
    Transition{SegmentState::fenced, SegmentState::unmapped},  // Pool::unmap, once it is drained
};

/// One physical allocation, cut into slots of one size. The last slot takes what the others leave, so
/// that the slots fill the segment exactly.
///
/// Invariant: used + draining + free_slots.size() == slots, and owners[i] != 0 for exactly the used ones.
struct Segment {
  std::byte* base = nullptr;
  std::uint64_t bytes = 0;
  std::uint64_t slot_bytes = 0;
  std::uint32_t slots = 0;
  std::uint32_t used = 0;
  std::uint32_t draining = 0;
  std::vector<std::uint32_t> free_slots;
  std::vector<std::uint32_t> owners;  ///< by slot: the number that `allocate` was given, 0 if not used

  [[nodiscard]] SegmentState state() const { return state_; }
  [[nodiscard]] bool mapped() const { return state_ != SegmentState::unmapped; }
  [[nodiscard]] bool fenced() const { return state_ == SegmentState::fenced; }
  [[nodiscard]] bool empty() const { return used == 0 && draining == 0; }
  [[nodiscard]] bool drained() const { return fenced() && empty(); }
  [[nodiscard]] std::uint64_t bytes_of(std::uint32_t index) const {
    return index + 1 < slots ? slot_bytes : bytes - slot_bytes * (slots - 1);
  }
  [[nodiscard]] bool is_valid() const;

  /// The one way from state to state. Requires: `kSegmentTransitions` has the step.
  void become(SegmentState to);

 private:
  SegmentState state_ = SegmentState::unmapped;
};

/// Gives the device the work of wiping a slot, after `events`, and adds the event that ends it to them. False
/// if that is not to be had now.
using Wipe = std::function<bool(const Slot& slot, std::vector<EventId>& events)>;

struct PoolConfig {
  DeviceId device = kHost;
  std::uint64_t budget_bytes = 0;
  std::uint64_t segment_min_bytes = 0;
  std::uint64_t segment_max_bytes = 0;
  std::vector<DeviceId> readers;
  Wipe wipe{};  ///< for slots that are released `to_wipe`
};

/// The memory that we hold on one device, in segments; host memory is just another device. Memory comes
/// with `grow` and goes, a segment at a time, with `fence` ... `unmap`. Not thread-safe.
///
/// Invariant (I7): used + free + draining == mapped <= budget (while the budget is not lowered).
class Pool {
 public:
  Pool(Backend& backend, PoolConfig config);
  /// Gives all back but segments with a slot in use, which stay mapped for good. Requires: no work touches
  /// the others any more.
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// A slot in memory that is mapped already, for `owner` (not 0): a free one in the fullest segment of
  /// its class, or one of an empty segment that is cut anew, or one that is still draining. Nothing if
  /// there is none.
  [[nodiscard]] std::optional<Allocation> allocate(std::uint64_t object_bytes, std::uint32_t owner);

  /// True if `allocate` would find a slot.
  [[nodiscard]] bool has_room(std::uint64_t object_bytes) const;

  /// The size of the segment that `grow` would map for such objects; nothing if the budget forbids it.
  [[nodiscard]] std::optional<SegmentPlan> growth(std::uint64_t object_bytes) const;

  /// Maps one more segment. Errors: out_of_memory (budget or device; the message says which).
  [[nodiscard]] Status grow(std::uint64_t object_bytes);

  /// The slot is no longer used. It stays in draining until `events` (taken over) are complete, and is wiped
  /// after them if it is `to_wipe`. If that cannot be had now it is nobody's slot, and its segment does not
  /// go back, until `collect` could have it.
  void release(const Slot& slot, std::vector<EventId> events, bool to_wipe = false);

  /// Frees what has drained, and wipes what could not be wiped before.
  void collect();

  /// Nothing new comes into the segment. Requires: mapped.
  void fence(std::uint32_t segment);

  /// Returns a segment to the device. Requires: drained.
  [[nodiscard]] Status unmap(std::uint32_t segment);

  [[nodiscard]] const PoolConfig& config() const { return config_; }
  void set_budget(std::uint64_t bytes) { config_.budget_bytes = bytes; }

  /// All segments; those that are not `mapped()` are holes.
  [[nodiscard]] std::span<const Segment> segments() const { return segments_; }
  [[nodiscard]] std::uint64_t mapped_bytes() const { return mapped_bytes_; }
  [[nodiscard]] std::uint64_t used_bytes() const { return used_bytes_; }
  [[nodiscard]] std::uint64_t draining_bytes() const { return draining_bytes_; }
  [[nodiscard]] std::uint64_t free_bytes() const { return mapped_bytes_ - used_bytes_ - draining_bytes_; }
  [[nodiscard]] std::uint64_t fenced_bytes() const { return fenced_bytes_; }

  /// An event that some slot drains for, or none; to wait for progress.
  [[nodiscard]] EventId oldest_event() const;

  /// Recounts everything (I7). Linear.
  [[nodiscard]] bool is_valid() const;

 private:
  struct Draining {
    Slot slot;
    std::vector<EventId> events;
    bool to_wipe = false;  ///< the work of wiping it was not given yet
  };

  void try_to_wipe(Draining& entry) const;
  [[nodiscard]] bool is_room_for(const Draining& entry, std::uint64_t object_bytes) const;
  void cut(std::uint32_t segment, std::uint64_t slot_bytes, std::uint32_t slots);
  void index(std::uint32_t segment);
  void unindex(std::uint32_t segment);
  [[nodiscard]] std::optional<std::uint32_t> find_segment(std::uint64_t object_bytes) const;
  [[nodiscard]] std::optional<std::uint32_t> find_empty(std::uint64_t slot_bytes) const;
  [[nodiscard]] Slot take(std::uint32_t segment, std::uint32_t owner);

  Backend& backend_;
  PoolConfig config_;
  std::uint64_t granularity_bytes_ = 1;
  std::vector<Segment> segments_;
  std::vector<std::uint32_t> holes_;
  /// slot size -> {free slots, segment}, for segments that are not fenced and have free slots: the first
  /// is the fullest.
  std::map<std::uint64_t, std::set<std::pair<std::uint32_t, std::uint32_t>>> by_class_;
  std::set<std::pair<std::uint64_t, std::uint32_t>> empty_;  ///< {bytes, segment}, not fenced
  std::deque<Draining> draining_;
  std::uint64_t mapped_bytes_ = 0;
  std::uint64_t used_bytes_ = 0;
  std::uint64_t draining_bytes_ = 0;
  std::uint64_t fenced_bytes_ = 0;
};

}  // namespace harvest::memory
