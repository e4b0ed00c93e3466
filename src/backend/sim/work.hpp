// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <cstdint>
#include <vector>

#include "backend/sim/content_map.hpp"
#include "backend/sim/memory.hpp"

namespace harvest::sim {

/// One run of a batch and the ranges that it must find alive when it ends.
struct PlacedCopy {
  Copy copy;
  Range* destination = nullptr;
  Range* source = nullptr;
  std::uint64_t digest = 0;  ///< of the source's content when the copy began
};

/// One piece of a stream's work.
struct Work {
  enum class Kind : std::uint8_t { copy, fill, kernel, wait, record };
  Kind kind = Kind::kernel;
  std::uint32_t link = 0;          ///< of copy and fill: whose bandwidth and ports it takes
  std::vector<PlacedCopy> copies;  ///< of copy; of fill the one destination
  std::uint64_t bytes = 0;         ///< in all
  std::uint8_t value = 0;          ///< of fill
  TimeNs duration_ns = 0;          ///< of kernel; of record how late its event is
  EventId event = EventId::none;   ///< of wait and record
  double slow_factor = 1;
  bool fails = false;     ///< in flight, by a planned fault
  bool corrupts = false;  ///< arrives with other content, by a planned fault

  // Kept by the engine.
  enum class Phase : std::uint8_t { queued, delayed, flowing };
  Phase phase = Phase::queued;
  std::uint32_t stream = 0;
  std::uint32_t flow = 0;
  std::uint64_t serial =
      0;  ///< another one for each use, so that a timer of an earlier use is known as stale
  Work* next = nullptr;
};

/// Forgets what the work was, and keeps its room.
void reset(Work& work);

/// What work does to memory. A destination is poison from begin to finish, and gets the source's bytes
/// only if these were the same at both: so a reader that does not wait, a writer that does not wait,
/// and a copy of what has not arrived each show up as wrong bytes. Phantom bytes carry the same by
/// their identity. Thread-safe for distinct work.
class Effects {
 public:
  /// `contents` is null with real bytes.
  explicit Effects(ContentMap* contents) : contents_(contents) {}

  void begin(Work& work) const;

  /// After `begin`. If it did not succeed the destination stays poison.
  void finish(Work& work, bool succeeded) const;

  /// The work is over, begun or not: its ranges may be unmapped.
  static void let_go(Work& work);

 private:
  ContentMap* contents_;
};

}  // namespace harvest::sim
