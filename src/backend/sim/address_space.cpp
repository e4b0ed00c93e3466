// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/address_space.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/assert.hpp"

namespace harvest::sim {
namespace {

constexpr std::uint64_t kChunkBytes = std::uint64_t{16} << 30;
constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 46;

std::uint64_t round_up(std::uint64_t value, std::uint64_t step) {
  return (value + step - 1) & ~(step - 1);
}

std::byte* map_inaccessible(void* at, std::uint64_t bytes) {
  const int fixed = at == nullptr ? 0 : MAP_FIXED;
  void* address = mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
  return address == MAP_FAILED ? nullptr : static_cast<std::byte*>(address);
}

}  // namespace

AddressSpace::AddressSpace(std::uint64_t alignment_bytes, bool backed)
    : alignment_bytes_(alignment_bytes), backed_(backed) {}

AddressSpace::~AddressSpace() {
  for (auto& [address, chunk] : chunks_) munmap(address, chunk.bytes);
}

Result<AddressSpace::Chunks::iterator> AddressSpace::chunk_with_room(std::uint64_t bytes) {
  if (current_ != nullptr) {
    const auto current = chunks_.find(current_);
    if (current->second.bytes - current->second.used_bytes >= bytes) return current;
  }
  const std::uint64_t chunk_bytes = std::max(kChunkBytes, bytes) + alignment_bytes_;
  std::byte* address = map_inaccessible(nullptr, chunk_bytes);
  if (address == nullptr)
    return fail(ErrorCode::out_of_memory,
                fmt::format("no room for {} bytes of addresses: {}", chunk_bytes, std::strerror(errno)));
  if (current_ != nullptr) {
    const auto old = chunks_.find(current_);
    if (old->second.live_ranges == 0) {
      munmap(old->first, old->second.bytes);
      chunks_.erase(old);
    }
  }
  const auto number = reinterpret_cast<std::uintptr_t>(address);
  current_ = address;
  return chunks_.emplace(address, Chunk{chunk_bytes, round_up(number, alignment_bytes_) - number, 0}).first;
}

Result<std::byte*> AddressSpace::reserve(std::uint64_t bytes) {
  if (bytes > kMostBytes)
    return fail(ErrorCode::out_of_memory,
                fmt::format("no room for {} bytes of addresses, at most {}", bytes, kMostBytes));
  const std::uint64_t taken = round_up(bytes, alignment_bytes_) + alignment_bytes_;
  const auto found = chunk_with_room(taken);
  if (!found) return tl::unexpected(found.error());
  auto& [base, chunk] = **found;
  std::byte* address = base + chunk.used_bytes;
  if (backed_ && mprotect(address, bytes, PROT_READ | PROT_WRITE) != 0)
    return fail(ErrorCode::out_of_memory,
                fmt::format("no memory behind {} bytes: {}", bytes, std::strerror(errno)));
  chunk.used_bytes += taken;
  ++chunk.live_ranges;
  return address;
}

void AddressSpace::release(std::byte* address, std::uint64_t bytes) {
  auto found = chunks_.upper_bound(address);
  HARVEST_ASSERT(found != chunks_.begin(), "an address that was never reserved is released");
  --found;
  Chunk& chunk = found->second;
  HARVEST_ASSERT(chunk.live_ranges > 0, "a range is released twice");
  if (--chunk.live_ranges == 0 && found->first != current_) {
    munmap(found->first, chunk.bytes);
    chunks_.erase(found);
  } else if (backed_) {
    HARVEST_ASSERT(map_inaccessible(address, bytes) != nullptr, "memory cannot be given back");
  }
}

}  // namespace harvest::sim
