// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

#include "base/annotated_mutex.hpp"

namespace harvest::cuda {

/// A range of memory that this backend allocated or registered. A copy never crosses its ends: the driver
/// refuses one that spans two allocations or two registrations.
struct KnownRange {
  std::byte* begin = nullptr;
  std::uint64_t bytes = 0;
  DeviceId device = kHost;          ///< where the memory is; on the host: pinned
  std::uint64_t accessible_by = 0;  ///< bit i: GPU i may address it

  [[nodiscard]] const std::byte* end() const { return begin + bytes; }
  [[nodiscard]] bool is_accessible_by(DeviceId gpu) const {
    return gpu >= 0 && gpu < 64 && ((accessible_by >> gpu) & 1) != 0;
  }
};

/// What is at an address: a known range, or memory of which nothing is known up to where the next begins.
struct MemoryExtent {
  std::optional<KnownRange> range;
  const std::byte* begin = nullptr;  ///< the range's; the address that was asked about if it is in none
  const std::byte* end = nullptr;

  [[nodiscard]] bool contains(const std::byte* address) const { return begin <= address && address < end; }
};

/// All of them, by address. Memory that is not here is the caller's: a buffer on a GPU, or host memory that
/// may be pageable. Thread-safe. Cost of a look-up: a shared lock and a walk of logarithmic length.
///
/// Invariant: no two ranges overlap, and none is empty.
class MemoryMap {
 public:
  /// Requires: at least one byte, and none of them known.
  void add(const KnownRange& range);
  /// The range that begins at `begin`, which is none of ours any more; nothing if there is none.
  std::optional<KnownRange> remove(const std::byte* begin);
  [[nodiscard]] std::optional<KnownRange> find(const std::byte* address) const;
  [[nodiscard]] MemoryExtent extent(const std::byte* address) const;
  /// Whether any byte of the range is known.
  [[nodiscard]] bool overlaps(const std::byte* begin, std::uint64_t bytes) const;

 private:
  using Ranges = std::map<const std::byte*, KnownRange>;
  [[nodiscard]] bool overlaps_locked(const std::byte* begin, std::uint64_t bytes) const
      HARVEST_REQUIRES_SHARED(mutex_);

  mutable SharedMutex mutex_;
  Ranges ranges_ HARVEST_GUARDED_BY(mutex_);
};

}  // namespace harvest::cuda
