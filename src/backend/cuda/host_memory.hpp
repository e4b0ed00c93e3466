// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "backend/cuda/memory_map.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::cuda {

/// Where the operating system says how much memory there is. Tests name other files.
struct HostFiles {
  std::string memory_info = "/proc/meminfo";
  std::string group_limit = "/sys/fs/cgroup/memory.max";
  std::string group_used = "/sys/fs/cgroup/memory.current";
};

struct HostCounts {
  std::uint64_t total_bytes = 0;
  std::uint64_t available_bytes = 0;  ///< without swapping, and inside the limit of this control group
};

/// Errors: unavailable (no such file, or not of its format).
[[nodiscard]] Result<HostCounts> count_host_memory(const HostFiles& files);

/// Pinned host memory: our own segments, and the caller's memory that is registered. Both are registered in
/// pieces, since one large registration fails and leaves an error behind, and a long one holds a lock of the
/// driver that stalls every other process (docs/cuda.md, rule 18). Each piece is a range of its own in the
/// memory map.
///
/// What is free counts down from what was available at the start by what this backend pinned: the system's
/// own number moves with every file that is read, so whoever waits for bytes to come back could not see them.
/// A segment is refused all the same when the system has no room for it now.
///
/// Requires for all calls but `query`: a GPU of the backend is current. Thread-safe.
class HostMemory {
 public:
  static constexpr std::uint64_t kGranularityBytes = 2U << 20U;  ///< a huge page
  static constexpr std::uint64_t kPieceBytesMax = std::uint64_t{1} << 30U;

  /// `accessible_by`: bit i: kernels of GPU i may use what is pinned by its address on the host. `numa_node`:
  /// where segments lie if there is room, -1 for anywhere.
  HostMemory(MemoryMap& map, std::uint64_t accessible_by, std::int32_t numa_node, HostFiles files = {},
             std::uint64_t piece_bytes_max = kPieceBytesMax);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  [[nodiscard]] MemoryInfo query() const HARVEST_EXCLUDES(mutex_);

  /// Errors: out_of_memory (nothing of it is left then). Requires: a multiple of the granularity, not 0.
  [[nodiscard]] Result<std::byte*> map(std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);
  /// Errors: invalid_argument (not a segment's address). The memory is gone afterwards whatever CUDA answers.
  [[nodiscard]] Status unmap(std::byte* address) HARVEST_EXCLUDES(mutex_);

  /// Errors: invalid_argument (null, 0 bytes, overlaps what is known here or was pinned by somebody else),
  /// out_of_memory.
  [[nodiscard]] Status register_range(std::byte* address, std::uint64_t bytes)
      HARVEST_EXCLUDES(registering_mutex_);
  /// Errors: invalid_argument (not registered here).
  [[nodiscard]] Status unregister_range(std::byte* address) HARVEST_EXCLUDES(registering_mutex_);

  /// Forgets all that is pinned without giving it back: there is work on it that does not end.
  void abandon() HARVEST_EXCLUDES(registering_mutex_);

 private:
  Status pin(std::byte* address, std::uint64_t bytes);
  Status unpin(std::byte* address, std::uint64_t bytes);
  [[nodiscard]] std::uint64_t piece_end(std::uint64_t address, std::uint64_t end) const;
  Status take(std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);
  void give_back(std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);

  MemoryMap& map_;
  const std::uint64_t accessible_by_;
  const std::int32_t numa_node_;
  const HostFiles files_;
  const std::uint64_t piece_bytes_max_;
  HostCounts at_start_;

  mutable Mutex mutex_;
  std::uint64_t mapped_bytes_ HARVEST_GUARDED_BY(mutex_) = 0;
  std::map<std::byte*, std::uint64_t> segments_ HARVEST_GUARDED_BY(mutex_);
  /// Held while memory is being registered, so that of two overlapping calls one sees the other.
  Mutex registering_mutex_;
  std::map<std::byte*, std::uint64_t> registered_ HARVEST_GUARDED_BY(registering_mutex_);
};

}  // namespace harvest::cuda
