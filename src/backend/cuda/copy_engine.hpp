// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <harvest/backend.hpp>

#include <memory>
#include <span>

#include "backend/cuda/memory_map.hpp"

namespace harvest::cuda {

/// Where a batch of copies goes, and on what. Requires: the stream's device is current.
struct CopyJob {
  cudaStream_t stream = nullptr;
  DeviceId stream_device = 0;
  Route route;
  bool capturing = false;  ///< the stream is being captured: only calls that are legal then
};

/// Gives batches of copies to the driver in the way that is fastest for them: planned by `CopyPlanner`,
/// submitted here. Thread-safe, but for one stream's batches, which the caller gives one at a time.
class CopyEngine {
 public:
  virtual ~CopyEngine() = default;
  /// Errors: those of the driver; `unavailable` where the device is lost by it. After an error some of the
  /// copies may have been given all the same: the stream's content is undefined until its work is over.
  [[nodiscard]] virtual Status copy(const CopyJob& job, std::span<const Copy> copies) = 0;
};

}  // namespace harvest::cuda
