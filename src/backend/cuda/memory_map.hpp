// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <shared_mutex>

namespace harvest::cuda {

/// A range of memory that this backend allocated or registered. A copy never crosses its ends: the driver
/// refuses one that spans two allocations or two registrations.
struct KnownRange {
  std::byte* begin = nullptr;
  std::uint64_t bytes = 0;
  DeviceId device = kHost;          ///< where the memory is; on the host: pinned
  std::uint64_t accessible_by = 0;  ///< bit i: GPU i may address it

  [[nodiscard]] const std::byte* end() const { return begin + bytes; }
  [[nodiscard]] bool is_accessible_by(DeviceId gpu) const { return ((accessible_by >> gpu) & 1) != 0; }
};

/// All of them, by address. Memory that is not here is the caller's: a buffer on a GPU, or host memory that
/// may be pageable. Thread-safe. Cost of a look-up: a shared lock and a walk of logarithmic length.
class MemoryMap {
 public:
  void add(const KnownRange& range);
  /// The range that begins at `begin`, which is none of ours any more; nothing if there is none.
  std::optional<KnownRange> remove(const std::byte* begin);
  [[nodiscard]] std::optional<KnownRange> find(const std::byte* address) const;
  /// Whether any byte of the range is known.
  [[nodiscard]] bool overlaps(const std::byte* begin, std::uint64_t bytes) const;

 private:
  mutable std::shared_mutex mutex_;
  std::map<const std::byte*, KnownRange> ranges_;
};

}  // namespace harvest::cuda
