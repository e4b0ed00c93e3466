// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/call.hpp"
#include "fake_cuda/capture.hpp"

namespace harvest::fake_cuda::internal {
namespace {

StreamRef make_stream(int device, unsigned flags, int priority) {
  auto stream = std::make_shared<Stream>();
  stream->number = state().next_handle++;
  stream->device = device;
  stream->flags = flags;
  stream->priority = priority;
  stream->random.seed(state().machine.seed * 0x9e3779b97f4a7c15u + stream->number);
  return stream;
}

StreamRef legacy_stream(int device) {
  auto& stream = state().devices[static_cast<std::size_t>(device)].legacy;
  if (stream == nullptr) {
    stream = make_stream(device, 0, 0);
    stream->is_legacy = true;
  }
  return stream;
}

StreamRef per_thread_stream(int device) {
  auto& stream = state().devices[static_cast<std::size_t>(device)].per_thread[std::this_thread::get_id()];
  if (stream == nullptr) stream = make_stream(device, 0, 0);
  return stream;
}

cudaError_t create_stream(const char* function, cudaStream_t* handle, unsigned flags, int priority) {
  return runtime_call(function, kContext, [&](Lock&) -> cudaError_t {
    if (handle == nullptr || (flags & ~static_cast<unsigned>(cudaStreamNonBlocking)) != 0)
      return cudaErrorInvalidValue;
    state().reap();
    auto stream = make_stream(this_thread().device, flags, priority);
    *handle = to_handle<cudaStream_t>(stream->number);
    state().streams[stream->number] = std::move(stream);
    return cudaSuccess;
  });
}

class HostFunctionWork : public Work {
 public:
  HostFunctionWork(cudaHostFn_t function, void* argument) : function_(function), argument_(argument) {}

  cudaError_t run(Lock& lock) const override {
    lock.unlock();
    this_thread().in_host_function = true;
    {
      const Outside outside;
      function_(argument_);
    }
    this_thread().in_host_function = false;
    lock.lock();
    return cudaSuccess;
  }

 private:
  cudaHostFn_t function_;
  void* argument_;
};

/// The stream of a call that asks after its state.
template <typename Body>
cudaError_t ask_stream(const char* function, cudaStream_t handle, Body body) {
  return runtime_call(function, kContext, [&](Lock& lock) -> cudaError_t {
    const auto stream = state().find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (const auto error = refuse_captured(stream->capturing, cudaErrorStreamCaptureUnsupported, function);
        error != cudaSuccess) {
      return error;
    }
    if (const auto error = refuse_legacy_in_capture(*stream); error != cudaSuccess) return error;
    if (const auto error = refuse_unsafe_call(function); error != cudaSuccess) return error;
    if (const auto error = health(stream->device); error != cudaSuccess) return error;
    return body(lock, stream);
  });
}

}  // namespace

StreamRef State::find_stream(cudaStream_t handle) {
  const int device = this_thread().device;
  if (handle == nullptr || handle == cudaStreamLegacy) return legacy_stream(device);
  if (handle == cudaStreamPerThread) return per_thread_stream(device);
  const auto found = streams.find(to_number(handle));
  if (found == streams.end()) {
    (void)refuse(cudaErrorInvalidResourceHandle, "no such stream");
    return nullptr;
  }
  return found->second;
}

}  // namespace harvest::fake_cuda::internal

using namespace harvest::fake_cuda::internal;  // NOLINT: the functions below are CUDA's, in no namespace

cudaError_t cudaStreamCreate(cudaStream_t* handle) {
  return create_stream("cudaStreamCreate", handle, 0, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return create_stream("cudaStreamCreateWithFlags", handle, flags, 0);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int priority) {
  return create_stream("cudaStreamCreateWithPriority", handle, flags, priority);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return runtime_call("cudaDeviceGetStreamPriorityRange", kContext, [&](Lock&) {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return runtime_call("cudaStreamDestroy", kMachine, [&](Lock&) -> cudaError_t {
    const auto found = state().streams.find(to_number(handle));
    if (found == state().streams.end())
      return state().refuse(cudaErrorInvalidResourceHandle, "no such stream");
    const auto stream = found->second;
    state().streams.erase(found);
    if (stream->capturing.capture != nullptr) invalidate(*stream->capturing.capture);
    stream->destroyed = true;  // what was given to it still runs
    stream->wake.notify_all();
    state().retired.push_back(stream);
    state().reap();
    return health(stream->device);
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return ask_stream("cudaStreamQuery", handle, [](Lock&, const StreamRef& stream) -> cudaError_t {
    if (!stream->is_idle()) return cudaErrorNotReady;
    if (stream->tail != nullptr) acquire_edge(stream->tail.get());
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return ask_stream("cudaStreamSynchronize", handle, [](Lock& lock, const StreamRef& stream) -> cudaError_t {
    state().wait_on_host(lock, stream->tail);
    return health(stream->device);
  });
}

#if CUDART_VERSION >= 12080
cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  return runtime_call("cudaStreamGetDevice", kContext, [&](Lock&) -> cudaError_t {
    const auto stream = state().find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = stream->device;
    return cudaSuccess;
  });
}
#endif

cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  return runtime_call("cudaStreamGetFlags", kContext, [&](Lock&) -> cudaError_t {
    const auto stream = state().find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (flags == nullptr) return cudaErrorInvalidValue;
    *flags = stream->flags;
    return cudaSuccess;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* argument) {
  return runtime_call("cudaLaunchHostFunc", kContext, [&](Lock&) -> cudaError_t {
    const auto stream = state().find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (function == nullptr) return cudaErrorInvalidValue;
    return state().submit(stream, std::make_shared<HostFunctionWork>(function, argument));
  });
}
