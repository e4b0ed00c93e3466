// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fake_cuda/state.hpp"

/// What every function of CUDA does before and after its own work.
namespace harvest::fake_cuda::internal {

enum Needs : unsigned {
  kNothing = 0,
  kMachine = 1,             ///< a driver and a device
  kContext = 2 | kMachine,  ///< the current device's context, which is made if need be, and must be well
  kUnsafeInCapture = 4,     ///< not allowed while somebody captures: it would not be in the graph
};

/// Counts the call and says why it is refused; cudaSuccess if it is not. Requires: the state's lock.
[[nodiscard]] cudaError_t enter(const char* function, unsigned needs);

/// The driver's word for it.
[[nodiscard]] CUresult to_driver(cudaError_t error);

/// `body(lock)` as a call of the runtime, which remembers its error for cudaGetLastError.
template <typename Body>
cudaError_t runtime_call(const char* function, unsigned needs, Body body) {
  const Inside inside;
  Lock lock(state().mutex);
  auto error = enter(function, needs);
  if (error == cudaSuccess) error = body(lock);
  if (error != cudaSuccess) this_thread().last_error = error;
  return error;
}

/// `body(lock)` as a call of the driver. Its body speaks the runtime's errors too: they have the same
/// numbers.
template <typename Body>
CUresult driver_call(const char* function, unsigned needs, Body body) {
  const Inside inside;
  Lock lock(state().mutex);
  auto error = enter(function, needs);
  if (error == cudaSuccess) error = body(lock);
  return to_driver(error);
}

/// The error of the device's context: everything fails with it once it is lost.
[[nodiscard]] inline cudaError_t health(int device) {
  return state().devices[static_cast<std::size_t>(device)].sticky;
}

}  // namespace harvest::fake_cuda::internal
