// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <cstdint>
#include <vector>

#include "base/assert.hpp"

namespace harvest::sim {

/// Streams in a row, linked through the streams themselves: a stream waits for one thing at a time.
struct WaitingStreams {
  std::uint32_t first = 0;  ///< 0: none, as StreamId
  std::uint32_t last = 0;
};

/// Events by id. A slot is used again when its event was released, has completed, and nobody waits;
/// the id's upper half then differs, so that a stale id is known as such. Not thread-safe.
class EventTable {
 public:
  struct Slot {
    EventState state = EventState::pending;
    std::uint32_t generation = 1;
    std::uint32_t holders = 0;  ///< the caller until release, the record until it completes, waits
    bool released = true;
    WaitingStreams waiting;
  };

  /// A pending event, held by the caller and by its record.
  EventId add() {
    if (free_.empty()) {
      free_.push_back(static_cast<std::uint32_t>(slots_.size()));
      slots_.emplace_back();
    }
    const std::uint32_t index = free_.back();
    free_.pop_back();
    Slot& slot = slots_[index];
    slot.state = EventState::pending;
    slot.holders = 2;
    slot.released = false;
    return EventId{(std::uint64_t{slot.generation} << 32U) | (index + 1)};
  }

  /// Requires: the event is there, for a caller not yet released.
  Slot& at(EventId event) {
    const auto index = static_cast<std::uint32_t>(static_cast<std::uint64_t>(event)) - 1;
    HARVEST_ASSERT(index < slots_.size(), "an event that never was");
    Slot& slot = slots_[index];
    HARVEST_ASSERT(slot.holders > 0 && slot.generation == static_cast<std::uint64_t>(event) >> 32U,
                   "an event that is over");
    return slot;
  }
  Slot& at_held_by_caller(EventId event) {
    Slot& slot = at(event);
    HARVEST_ASSERT(!slot.released, "an event that was released");
    return slot;
  }

  /// One holder less.
  void drop(EventId event) {
    Slot& slot = at(event);
    if (--slot.holders > 0) return;
    ++slot.generation;
    free_.push_back(static_cast<std::uint32_t>(static_cast<std::uint64_t>(event)) - 1);
  }

 private:
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
};

}  // namespace harvest::sim
