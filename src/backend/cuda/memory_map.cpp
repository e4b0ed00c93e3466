// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/memory_map.hpp"

#include <iterator>
#include <limits>

#include "base/assert.hpp"

namespace harvest::cuda {
namespace {

const std::byte* end_of_addresses() {
  return reinterpret_cast<const std::byte*>(std::numeric_limits<std::uintptr_t>::max());
}

}  // namespace

bool MemoryMap::overlaps_locked(const std::byte* begin, std::uint64_t bytes) const {
  if (bytes == 0) return false;
  const auto after = ranges_.upper_bound(begin);
  if (after != ranges_.begin() && std::prev(after)->second.end() > begin) return true;
  // As a distance: `begin + bytes` of a caller's nonsense may be beyond all addresses.
  return after != ranges_.end() && static_cast<std::uint64_t>(after->first - begin) < bytes;
}

void MemoryMap::add(const KnownRange& range) {
  HARVEST_ASSERT(range.begin != nullptr && range.bytes != 0, "an empty range of memory");
  const WriteLock lock(mutex_);
  HARVEST_ASSERT(!overlaps_locked(range.begin, range.bytes), "a range of memory that is known already");
  ranges_.emplace(range.begin, range);
}

std::optional<KnownRange> MemoryMap::remove(const std::byte* begin) {
  const WriteLock lock(mutex_);
  const auto found = ranges_.find(begin);
  if (found == ranges_.end()) return std::nullopt;
  const KnownRange range = found->second;
  ranges_.erase(found);
  return range;
}

MemoryExtent MemoryMap::extent(const std::byte* address) const {
  const ReadLock lock(mutex_);
  const auto after = ranges_.upper_bound(address);
  if (after != ranges_.begin()) {
    const KnownRange& before = std::prev(after)->second;
    if (address < before.end()) return {before, before.begin, before.end()};
  }
  return {std::nullopt, address, after == ranges_.end() ? end_of_addresses() : after->first};
}

std::optional<KnownRange> MemoryMap::find(const std::byte* address) const {
  return extent(address).range;
}

bool MemoryMap::overlaps(const std::byte* begin, std::uint64_t bytes) const {
  const ReadLock lock(mutex_);
  return overlaps_locked(begin, bytes);
}

}  // namespace harvest::cuda
