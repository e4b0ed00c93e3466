// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "backend/cuda/gpus.hpp"
#include "backend/cuda/memory_map.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::cuda {

/// Segments of GPU memory: one physical allocation each, mapped by the driver's virtual memory for its owner
/// and those readers that can reach it, or one cudaMalloc where that is not supported or not wanted. Each is
/// in the memory map from before it is given out until before it is returned.
///
/// Thread-safe; calls for different segments run at the same time.
class Segments {
 public:
  Segments(Gpus& gpus, MemoryMap& map, bool use_virtual_memory);
  ~Segments();
  Segments(const Segments&) = delete;
  Segments& operator=(const Segments&) = delete;

  [[nodiscard]] bool is_virtual(DeviceId gpu) const { return granularity_[index(gpu)] != 0; }
  [[nodiscard]] std::uint64_t granularity_bytes(DeviceId gpu) const;

  /// Requires: the device exists and is not lost; `bytes` is a multiple of its granularity, not 0; `readers`
  /// can reach it, as the links claim, and none is lost or named twice.
  [[nodiscard]] Result<std::byte*> map(DeviceId device, std::uint64_t bytes,
                                       std::span<const DeviceId> readers);

  /// Errors: invalid_argument (not a segment's address), unavailable (its device is lost; it is forgotten).
  [[nodiscard]] Status unmap(std::byte* address);

  /// Forgets all segments without giving them back: there is work on them that does not end.
  void abandon() HARVEST_EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    segments_.clear();
  }

 private:
  struct Segment {
    DeviceId device = kHost;
    std::uint64_t bytes = 0;
    bool is_virtual = false;
    CUmemGenericAllocationHandle handle = 0;
  };

  static std::size_t index(DeviceId gpu) { return static_cast<std::size_t>(gpu); }
  [[nodiscard]] CUmemAllocationProp properties(DeviceId device) const;
  Result<std::byte*> map_virtual(Segment& segment, std::span<const DeviceId> readers);
  Status set_access(CUdeviceptr address, const Segment& segment, std::span<const DeviceId> readers);
  Status unmap_virtual(std::byte* address, const Segment& segment);
  Result<std::byte*> allocate(const Segment& segment, std::span<const DeviceId> readers);
  Status enable_peer_access(DeviceId reader, DeviceId owner) HARVEST_EXCLUDES(peers_mutex_);
  Status release(std::byte* address, const Segment& segment);

  Gpus& gpus_;
  MemoryMap& map_;
  std::vector<std::uint64_t> granularity_;  ///< by GPU; 0 where virtual memory is not used

  Mutex mutex_;
  std::map<std::byte*, Segment> segments_ HARVEST_GUARDED_BY(mutex_);
  Mutex peers_mutex_;
  std::set<std::pair<int, int>> peers_ HARVEST_GUARDED_BY(peers_mutex_);  ///< {reader, owner}, CUDA's numbers
};

}  // namespace harvest::cuda
