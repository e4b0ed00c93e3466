// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/content_map.hpp"

#include <algorithm>

#include "backend/sim/mix.hpp"

namespace harvest::sim {
namespace {

std::uintptr_t number(const std::byte* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

}  // namespace

Content ContentMap::content_at(Address start, const Extent& extent, Address address) {
  Content content = extent.content;
  if (!extent.uniform) content.offset_bytes += address - start;
  return content;
}

/// The first extent that ends after `start`.
ContentMap::Extents::const_iterator ContentMap::first_after(Address start) const {
  auto found = extents_.upper_bound(start);
  if (found != extents_.begin() && std::prev(found)->second.end > start) --found;
  return found;
}

/// Takes [start, end) out of all extents.
void ContentMap::cut(Address start, Address end) {
  auto it = extents_.upper_bound(start);
  if (it != extents_.begin() && std::prev(it)->second.end > start) --it;
  while (it != extents_.end() && it->first < end) {
    const Address extent_start = it->first;
    const Extent extent = it->second;
    if (extent_start < start) {
      it->second.end = start;
      ++it;
    } else {
      it = extents_.erase(it);
    }
    if (extent.end > end) {
      Extent rest = extent;
      rest.content = content_at(extent_start, extent, end);
      extents_.emplace_hint(it, end, rest);
    }
  }
}

void ContentMap::put(Address start, Extent extent) {
  const auto same = extents_.find(start);
  if (same != extents_.end() && same->second.end == extent.end) {
    same->second = extent;  // a slot that is written again: nothing moves
    return;
  }
  cut(start, extent.end);
  extents_.emplace(start, extent);
}

std::uint64_t ContentMap::digest(Address start, Address end) const {
  std::uint64_t digest = 1;
  Address at = start;
  for (auto it = first_after(start); it != extents_.end() && it->first < end; ++it) {
    const auto& [extent_start, extent] = *it;
    const Address from = std::max(extent_start, start);
    if (from > at) digest = mix(digest, at - start);  // a hole: undefined bytes
    const Content content = content_at(extent_start, extent, from);
    digest = mix(mix(digest, from - start), content.tag);
    digest = mix(digest, content.offset_bytes * 4 + (extent.uniform ? 2 : 0) + (extent.poison ? 1 : 0));
    at = std::min(extent.end, end);
  }
  return mix(digest, at - start);
}

void ContentMap::clear(const std::byte* address, std::uint64_t bytes) {
  const MutexLock lock(mutex_);
  cut(number(address), number(address) + bytes);
}

void ContentMap::write(const std::byte* address, std::uint64_t bytes, Content content) {
  const MutexLock lock(mutex_);
  put(number(address), Extent{number(address) + bytes, content, false, false});
}

void ContentMap::write_poison(const std::byte* address, std::uint64_t bytes) {
  const MutexLock lock(mutex_);
  put(number(address), Extent{number(address) + bytes, {}, true, true});
}

void ContentMap::fill(const std::byte* address, std::uint64_t bytes, std::uint8_t value) {
  const MutexLock lock(mutex_);
  put(number(address),
      Extent{number(address) + bytes, Content{SimulatedBackend::fill_tag(value), 0}, true, false});
}

std::uint64_t ContentMap::begin_copy(std::byte* destination, const std::byte* source, std::uint64_t bytes) {
  const MutexLock lock(mutex_);
  const std::uint64_t before = digest(number(source), number(source) + bytes);
  put(number(destination), Extent{number(destination) + bytes, {}, true, true});  // poison
  return before;
}

void ContentMap::finish_copy(std::byte* destination, const std::byte* source, std::uint64_t bytes,
                             std::uint64_t digest_before) {
  const MutexLock lock(mutex_);
  const Address from = number(source), to = number(destination);
  if (digest(from, from + bytes) != digest_before) return;
  const auto first = first_after(from);
  if (first != extents_.end() && first->first <= from && first->second.end >= from + bytes) {
    Extent extent = first->second;  // the usual case: one content, one extent
    extent.content = content_at(first->first, extent, from);
    extent.end = to + bytes;
    put(to, extent);
    return;
  }
  cut(to, to + bytes);
  for (auto it = first_after(from); it != extents_.end() && it->first < from + bytes; ++it) {
    Extent extent = it->second;
    const Address start = std::max(it->first, from);
    extent.content = content_at(it->first, extent, start);
    extent.end = std::min(extent.end, from + bytes) - from + to;
    extents_.emplace(start - from + to, extent);
  }
}

std::optional<Content> ContentMap::read(const std::byte* address, std::uint64_t bytes) const {
  const MutexLock lock(mutex_);
  const Address start = number(address), end = start + bytes;
  auto it = first_after(start);
  if (it == extents_.end() || it->first > start || it->second.poison) return std::nullopt;
  const Content content = content_at(it->first, it->second, start);
  const bool uniform = it->second.uniform;
  for (Address at = it->second.end; at < end; at = it->second.end) {
    ++it;
    if (it == extents_.end() || it->first != at || it->second.poison || it->second.uniform != uniform)
      return std::nullopt;
    Content expected = content;
    if (!uniform) expected.offset_bytes += at - start;
    if (it->second.content != expected) return std::nullopt;
  }
  return content;
}

}  // namespace harvest::sim
