// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <harvest/backend.hpp>

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "base/annotated_mutex.hpp"

namespace harvest::cuda {

/// Copies from host memory to host memory, as work of a stream. CUDA's own, cudaMemcpyAsync, makes its caller
/// wait for the stream and for the copy ("API synchronization behavior" in the runtime's reference), with
/// whatever locks he holds; a host function that copies does not. It calls no CUDA function, and if it never
/// runs, since the device is lost, the event behind it tells (docs/cuda.md, rule 14). Thread-safe.
class HostCopies {
 public:
  HostCopies() = default;
  HostCopies(const HostCopies&) = delete;
  HostCopies& operator=(const HostCopies&) = delete;

  /// Requires: the stream's device is current, and the stream is not being captured.
  [[nodiscard]] cudaError_t submit(cudaStream_t stream, std::span<const Copy> runs) HARVEST_EXCLUDES(mutex_);

 private:
  struct Job {
    std::vector<Copy> runs;
    std::atomic<bool> is_done{false};
  };
  static void CUDART_CB run(void* job);

  Mutex mutex_;
  std::vector<std::unique_ptr<Job>> jobs_ HARVEST_GUARDED_BY(mutex_);  ///< until they are seen to be done
};

}  // namespace harvest::cuda
