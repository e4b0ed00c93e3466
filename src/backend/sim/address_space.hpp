// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <map>

namespace harvest::sim {

/// Gives out ranges of addresses, with memory behind them or none at all. Addresses are given out in
/// rising order, with a gap after each range, and are used again only when everything near them is
/// gone: so the order of addresses is the same in each run, two ranges never touch, and a stray access
/// to a range that was given back faults. Not thread-safe.
class AddressSpace {
 public:
  /// Ranges are aligned to `alignment_bytes`, a power of two of at least a page. Without `backed` they
  /// may not be dereferenced.
  AddressSpace(std::uint64_t alignment_bytes, bool backed);
  ~AddressSpace();
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;

  /// Errors: out_of_memory (of addresses).
  [[nodiscard]] Result<std::byte*> reserve(std::uint64_t bytes);

  /// Requires: a range that `reserve` gave, with its size.
  void release(std::byte* address, std::uint64_t bytes);

 private:
  /// A piece of address space that ranges are cut from, from its beginning to its end.
  struct Chunk {
    std::uint64_t bytes = 0;
    std::uint64_t used_bytes = 0;
    std::uint64_t live_ranges = 0;
  };
  using Chunks = std::map<std::byte*, Chunk>;

  Result<Chunks::iterator> chunk_with_room(std::uint64_t bytes);

  std::uint64_t alignment_bytes_;
  bool backed_;
  Chunks chunks_;
  std::byte* current_ = nullptr;  ///< the chunk that ranges are cut from now
};

}  // namespace harvest::sim
