// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/simulated_backend.hpp>

#include <cstdint>
#include <map>
#include <memory_resource>
#include <optional>

#include "base/annotated_mutex.hpp"

namespace harvest::sim {

/// What lies in phantom memory: for every run of bytes, which part of which content. Thread-safe.
/// Cost of a call: logarithmic in the number of runs, and linear in the runs that it touches; what was
/// freed is kept for the next call, so steady work does not allocate.
///
/// Invariant: extents do not overlap; what no extent covers is undefined.
class ContentMap {
 public:
  ContentMap() : extents_(&memory_) {}

  /// Forgets what lies in the range.
  void clear(const std::byte* address, std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);

  void write(const std::byte* address, std::uint64_t bytes, Content content) HARVEST_EXCLUDES(mutex_);

  /// What lies in the range cannot be read.
  void write_poison(const std::byte* address, std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);

  /// Every byte of the range becomes `value`.
  void fill(const std::byte* address, std::uint64_t bytes, std::uint8_t value) HARVEST_EXCLUDES(mutex_);

  /// What one copy would read now: equal digests mean equal content. Then the destination is poison.
  [[nodiscard]] std::uint64_t begin_copy(std::byte* destination, const std::byte* source, std::uint64_t bytes)
      HARVEST_EXCLUDES(mutex_);

  /// The destination gets the source's content if its digest is still `digest`, else it stays poison.
  void finish_copy(std::byte* destination, const std::byte* source, std::uint64_t bytes, std::uint64_t digest)
      HARVEST_EXCLUDES(mutex_);

  /// The range is one contiguous part of one content.
  [[nodiscard]] std::optional<Content> read(const std::byte* address, std::uint64_t bytes) const
      HARVEST_EXCLUDES(mutex_);

 private:
  using Address = std::uintptr_t;
  struct Extent {
    Address end = 0;
    Content content;       ///< at the extent's first byte
    bool uniform = false;  ///< a fill: each byte is the same, there is no offset
    bool poison = false;
  };
  using Extents = std::pmr::map<Address, Extent>;

  static Content content_at(Address start, const Extent& extent, Address address);
  void put(Address start, Extent extent) HARVEST_REQUIRES(mutex_);
  void cut(Address start, Address end) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] std::uint64_t digest(Address start, Address end) const HARVEST_REQUIRES(mutex_);
  [[nodiscard]] Extents::const_iterator first_after(Address start) const HARVEST_REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::pmr::unsynchronized_pool_resource memory_;
  Extents extents_ HARVEST_GUARDED_BY(mutex_);
};

}  // namespace harvest::sim
