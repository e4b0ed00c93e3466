// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <harvest/backend.hpp>

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "backend/cuda/copy_planner.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::cuda {

/// The arrays of one batch call. They stay as they are until the call's work is over (docs/cuda.md, rule 12).
struct BatchDescriptors {
  std::array<void*, kRunsPerBatchCall> destinations;
  std::array<const void*, kRunsPerBatchCall> sources;
  std::array<std::size_t, kRunsPerBatchCall> bytes;
  std::size_t count = 0;
  cudaEvent_t over = nullptr;

  void write(std::span<const Copy> runs);
};

/// The descriptors of one device's batch calls, used again when an event says that they may be. There are as
/// many as were once in flight together, at most `kMostDescriptors`. Thread-safe.
class DescriptorPool {
 public:
  static constexpr std::size_t kMostDescriptors = 64;  ///< 64 Ki runs in flight; 1.5 MiB

  DescriptorPool();
  /// Waits for what is in flight.
  ~DescriptorPool();
  DescriptorPool(const DescriptorPool&) = delete;
  DescriptorPool& operator=(const DescriptorPool&) = delete;

  /// Null if all are in flight, or there is no event for another. Allocates only if more are in flight than
  /// ever before. Requires: the device is current.
  [[nodiscard]] BatchDescriptors* take();
  /// They are in flight until the work that `stream` has now is over. Where no event can say so the stream is
  /// waited for. An error means that it could not be waited for either: they are never used again.
  [[nodiscard]] cudaError_t put_in_flight(BatchDescriptors* descriptors, cudaStream_t stream);
  /// Nothing reads them.
  void give_back(BatchDescriptors* descriptors);

 private:
  void collect() HARVEST_REQUIRES(mutex_);

  Mutex mutex_;
  std::vector<std::unique_ptr<BatchDescriptors>> all_ HARVEST_GUARDED_BY(mutex_);
  std::vector<BatchDescriptors*> free_ HARVEST_GUARDED_BY(mutex_);
  std::vector<BatchDescriptors*> in_flight_ HARVEST_GUARDED_BY(mutex_);
};

}  // namespace harvest::cuda
