// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

namespace harvest::cuda {

/// While a stream is being captured, by whatever thread, some calls that have nothing to do with that stream
/// (cudaEventQuery, cudaEventCreate) are refused and spoil the capture, unless their own thread has said that
/// it knows what it does. This says so for a scope. Nothing that belongs into a graph goes inside of it.
/// Cost: two looks at thread-local state.
class RelaxedCapture {
 public:
  RelaxedCapture() { exchange(); }
  ~RelaxedCapture() { exchange(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  void exchange() {
    if (cudaThreadExchangeStreamCaptureMode(&mode_) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }

  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace harvest::cuda
