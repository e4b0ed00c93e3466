// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <harvest/backend.hpp>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/cuda/calibration.hpp"
#include "backend/cuda/memory_map.hpp"

namespace harvest::cuda {

/// Where a batch of copies goes, and on what. Requires: the stream's device is current.
struct CopyJob {
  cudaStream_t stream = nullptr;
  DeviceId stream_device = 0;
  Route route;
  bool capturing = false;  ///< the stream is being captured: only calls that are legal then
};

/// What copies of one device's streams can go by now, and why not: "" where they can.
struct CopyWays {
  std::string no_batches;
  std::string no_kernels;
};

/// Gives batches of copies to the driver in the way that is fastest for them: planned by `CopyPlanner`,
/// submitted here. Thread-safe, but for one stream's batches, which the caller gives one at a time.
class CopyEngine {
 public:
  virtual ~CopyEngine() = default;
  /// Does not allocate in the steady state, and does not block but after an error: what was given before it
  /// is waited for, so that afterwards nothing of the batch is under way. That is not so on a stream that is
  /// being captured (the graph is to be thrown away) or whose device is lost.
  /// Errors: those of the driver; `unavailable` where the device is lost by it.
  [[nodiscard]] virtual Status copy(const CopyJob& job, std::span<const Copy> copies) = 0;

  [[nodiscard]] virtual CopyWays ways(DeviceId device) const = 0;
};

struct CopyEngineOptions {
  std::vector<int> ordinals{};                  ///< CUDA's number of device i
  std::vector<CopyCalibration> calibrations{};  ///< of device i; as many
  bool use_kernels = true;
  bool use_batches = true;
};

/// Loads the copy kernel; where that fails the engine does without it and `ways` says why. Requires: CUDA is
/// initialised. `map` outlives the engine; so do the streams that it was given, or their work is over.
/// Destroying the engine waits for the batch calls that it made.
[[nodiscard]] std::unique_ptr<CopyEngine> make_copy_engine(const MemoryMap& map,
                                                           const CopyEngineOptions& options);

}  // namespace harvest::cuda
