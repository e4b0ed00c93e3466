// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/cuda/gpus.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::cuda {

/// Events of one GPU, made once and used again and again: creating one is slow, recording one is not. An
/// event may be recorded again while work still waits for it, since a wait holds to what the event meant when
/// the wait was given (cudaEventRecord's documentation). An id holds the GPU, the place in this pool, and the
/// place's generation, so that an id that was given back is not taken for its successor.
///
/// Thread-safe; one lock a GPU, held for taking and giving back alone. Only growing allocates.
class EventPool {
 public:
  EventPool(Gpus& gpus, DeviceId device);
  ~EventPool();
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  [[nodiscard]] static DeviceId device_of(EventId event) {
    return static_cast<DeviceId>((static_cast<std::uint64_t>(event) >> kPlaceBits) & kDeviceMask);
  }

  /// An event that is recorded on `stream` now. Requires: the GPU is current and not lost, and `stream` is
  /// one of it. Errors: out_of_memory, unavailable.
  [[nodiscard]] Result<EventId> record(cudaStream_t stream) HARVEST_EXCLUDES(mutex_);

  /// Requires for these: the event exists.
  void release(EventId event) HARVEST_EXCLUDES(mutex_);
  /// The same for one whose CUDA event is not to be used again. Requires: the GPU is current.
  void discard(EventId event) HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] EventState query(EventId event);
  [[nodiscard]] cudaEvent_t native(EventId event) { return place_of(event).native; }

 private:
  struct Place {
    cudaEvent_t native = nullptr;
    std::atomic<std::uint32_t> generation{1};
    std::atomic<EventState> state{EventState::pending};  ///< once it is not pending it stays
  };

  // An id is generation, GPU, place: 32, 8 and 24 bits. Chunk k has 64 * 2^k places and never moves.
  static constexpr unsigned kPlaceBits = 24;
  static constexpr std::uint64_t kDeviceMask = 0xFF;
  static constexpr std::uint32_t kFirstChunk = 64;
  static constexpr std::size_t kChunks = 18;  // 64 * (2^18 - 1) places, just under 2^24

  static std::size_t chunk_of(std::uint32_t place);
  Place& at(std::uint32_t place);
  Place& place_of(EventId event);
  std::uint32_t retire(EventId event);
  [[nodiscard]] Result<std::uint32_t> take() HARVEST_EXCLUDES(mutex_);
  void drop(std::uint32_t place) HARVEST_EXCLUDES(mutex_);
  void put_back(std::uint32_t place) HARVEST_EXCLUDES(mutex_);

  Gpus& gpus_;
  const DeviceId device_;
  std::array<std::atomic<Place*>, kChunks> chunks_{};

  Mutex mutex_;
  std::vector<std::unique_ptr<Place[]>> owned_chunks_ HARVEST_GUARDED_BY(mutex_);
  std::vector<std::uint32_t> free_ HARVEST_GUARDED_BY(mutex_);
  std::uint32_t made_ HARVEST_GUARDED_BY(mutex_) = 0;
};

}  // namespace harvest::cuda
