// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/call.hpp"

#include <pthread.h>

#include <atomic>

#include "fake_cuda/capture.hpp"

namespace harvest::fake_cuda::internal {
namespace {

/// CUDA does not work in a child of a process that used it.
std::atomic<bool> forked_after_use{false};

void watch_forks() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { forked_after_use = state().initialised; });
  (void)registered;
}

cudaError_t enter_context(const char* function) {
  auto& thread = this_thread();
  auto& device = state().devices[static_cast<std::size_t>(thread.device)];
  device.has_context = true;
  thread.has_context = true;
  if (const auto lost = state().faults.on_device_call(thread.device)) {
    state().poison(thread.device, static_cast<cudaError_t>(*lost),
                   std::string("lost at a call of ") + function);
  }
  return device.sticky;
}

}  // namespace

cudaError_t enter(const char* function, unsigned needs) {
  watch_forks();
  if (forked_after_use) return cudaErrorInitializationError;
  if (state().shut_down) return cudaErrorCudartUnloading;
  if (this_thread().in_host_function) {
    return state().refuse(cudaErrorNotPermitted, std::string(function) + " in a host function");
  }
  if ((needs & kMachine) != 0) {
    if (const auto error = state().initialise(); error != cudaSuccess) return error;
  }
  if (const auto planned = state().faults.on_call(function)) {
    const auto error = static_cast<cudaError_t>(*planned);
    if (poisons(error)) state().poison(this_thread().device, error, std::string("planned at ") + function);
    return error;
  }
  if ((needs & kContext) == kContext) {
    if (const auto error = enter_context(function); error != cudaSuccess) return error;
  }
  return (needs & kUnsafeInCapture) != 0 ? refuse_unsafe_call(function) : cudaSuccess;
}

CUresult to_driver(cudaError_t error) {
  // The two number the same errors alike, but for the runtime's own below 100, of which these have a twin.
  switch (error) {
    case cudaErrorInvalidDevice: return CUDA_ERROR_INVALID_DEVICE;
    case cudaErrorDevicesUnavailable: return CUDA_ERROR_DEVICE_UNAVAILABLE;
    default: return static_cast<CUresult>(error);
  }
}

}  // namespace harvest::fake_cuda::internal
