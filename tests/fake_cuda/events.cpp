// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/call.hpp"
#include "fake_cuda/capture.hpp"

namespace harvest::fake_cuda::internal {
namespace {

constexpr unsigned kEventFlags = cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;

std::shared_ptr<Event> find_event(cudaEvent_t handle) {
  const auto found = state().events.find(to_number(handle));
  if (found != state().events.end()) return found->second;
  (void)state().refuse(cudaErrorInvalidResourceHandle, "no such event");
  return nullptr;
}

cudaError_t create_event(const char* function, cudaEvent_t* handle, unsigned flags) {
  return runtime_call(function, kContext, [&](Lock&) -> cudaError_t {
    if (handle == nullptr || (flags & ~kEventFlags) != 0) return cudaErrorInvalidValue;
    if ((flags & cudaEventInterprocess) != 0) {
      return state().refuse(cudaErrorNotSupported, "events between processes are not in the fake");
    }
    auto event = std::make_shared<Event>();
    event->device = this_thread().device;
    event->flags = flags;
    const auto number = state().next_handle++;
    state().events[number] = std::move(event);
    *handle = to_handle<cudaEvent_t>(number);
    return cudaSuccess;
  });
}

cudaError_t record(Event& event, const StreamRef& stream) {
  if (event.device != stream->device) {
    return state().refuse(cudaErrorInvalidResourceHandle, "event and stream are of two devices (rule 13)");
  }
  if (const auto error = health(stream->device); error != cudaSuccess) return error;
  if (const auto error = refuse_legacy_in_capture(*stream); error != cudaSuccess) return error;
  if (stream->capturing.capture != nullptr) {
    if (stream->capturing.capture->invalidated) return cudaErrorStreamCaptureInvalidated;
    event.captured = stream->capturing;
    event.record = nullptr;
    return cudaSuccess;
  }
  event.captured = {};
  event.record = state().enqueue(stream, nullptr);
  return cudaSuccess;
}

/// The event of a call that asks after its state.
template <typename Body>
cudaError_t ask_event(const char* function, cudaEvent_t handle, Body body) {
  return runtime_call(function, kContext, [&](Lock& lock) -> cudaError_t {
    const auto event = find_event(handle);
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    if (const auto error = refuse_captured(event->captured, cudaErrorCapturedEvent, function);
        error != cudaSuccess) {
      return error;
    }
    if (const auto error = refuse_unsafe_call(function); error != cudaSuccess) return error;
    if (const auto error = health(event->device); error != cudaSuccess) return error;
    return body(lock, *event);
  });
}

cudaError_t elapsed(const char* function, float* ms, cudaEvent_t start, cudaEvent_t end) {
  return runtime_call(function, kContext, [&](Lock&) -> cudaError_t {
    const auto from = find_event(start);
    const auto to = find_event(end);
    if (from == nullptr || to == nullptr) return cudaErrorInvalidResourceHandle;
    if (ms == nullptr) return cudaErrorInvalidValue;
    if (((from->flags | to->flags) & cudaEventDisableTiming) != 0 || from->record == nullptr ||
        to->record == nullptr || from->device != to->device) {
      return state().refuse(cudaErrorInvalidResourceHandle, "no time between these events");
    }
    if (!from->record->done || !to->record->done) return cudaErrorNotReady;
    *ms = std::chrono::duration<float, std::milli>(to->record->when - from->record->when).count();
    return cudaSuccess;
  });
}

}  // namespace
}  // namespace harvest::fake_cuda::internal

using namespace harvest::fake_cuda::internal;  // NOLINT: the functions below are CUDA's, in no namespace

cudaError_t cudaEventCreate(cudaEvent_t* handle) {
  return create_event("cudaEventCreate", handle, 0);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
  return create_event("cudaEventCreateWithFlags", handle, flags);
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return runtime_call("cudaEventDestroy", kMachine, [&](Lock&) -> cudaError_t {
    const auto event = find_event(handle);  // waits and records that were given still hold
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    state().events.erase(to_number(handle));
    return health(event->device);
  });
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  return runtime_call("cudaEventRecord", kContext, [&](Lock&) -> cudaError_t {
    const auto event = find_event(handle);
    const auto stream = state().find_stream(stream_handle);
    if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
    return record(*event, stream);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned flags) {
  return runtime_call("cudaStreamWaitEvent", kContext, [&](Lock&) -> cudaError_t {
    const auto stream = state().find_stream(stream_handle);
    const auto event = find_event(handle);
    if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (flags != 0)
      return state().refuse(cudaErrorInvalidValue, "cudaStreamWaitEvent: flags are not in the fake");
    if (const auto error = health(stream->device); error != cudaSuccess) return error;
    if (const auto error = refuse_legacy_in_capture(*stream); error != cudaSuccess) return error;
    if (stream->capturing.capture != nullptr || event->captured.capture != nullptr)
      return capture_wait(*stream, *event);
    if (event->record != nullptr) state().enqueue(stream, nullptr, {event->record});
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return ask_event("cudaEventQuery", handle, [](Lock&, const Event& event) -> cudaError_t {
    if (event.record == nullptr) return cudaSuccess;
    if (!event.record->done) return cudaErrorNotReady;
    acquire_edge(event.record.get());
    return cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  return ask_event("cudaEventSynchronize", handle, [](Lock& lock, const Event& event) -> cudaError_t {
    state().wait_on_host(lock, event.record);
    return health(event.device);
  });
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  return elapsed("cudaEventElapsedTime", ms, start, end);
}

#if CUDART_VERSION >= 12080 && CUDART_VERSION < 13000
cudaError_t cudaEventElapsedTime_v2(float* ms, cudaEvent_t start, cudaEvent_t end) {
  return elapsed("cudaEventElapsedTime", ms, start, end);
}
#endif
