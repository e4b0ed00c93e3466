// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/relaxed_capture.hpp"

namespace harvest::cuda {

/// Makes a GPU the calling thread's current device for a scope, with a `RelaxedCapture`: somebody else's
/// capture is not spoilt by what happens in it. Cost where it is that already: a look at thread-local state.
/// Coming back to the caller's device gives that a context if it had none, as every cudaSetDevice does since
/// CUDA 12.
class DeviceGuard {
 public:
  explicit DeviceGuard(int ordinal) : error_(cudaGetDevice(&before_)) {
    if (error_ != cudaSuccess || before_ == ordinal) return;
    error_ = cudaSetDevice(ordinal);
    switched_ = error_ == cudaSuccess;
  }
  ~DeviceGuard() {
    // Where the caller's own device is lost there is nobody to tell, and no trace may be left for others.
    if (switched_ && cudaSetDevice(before_) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  /// What kept the device from being current; nothing may be called on it then.
  [[nodiscard]] cudaError_t error() const { return error_; }

 private:
  RelaxedCapture capture_;
  int before_ = 0;
  bool switched_ = false;
  cudaError_t error_;
};

}  // namespace harvest::cuda
