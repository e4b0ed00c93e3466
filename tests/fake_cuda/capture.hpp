// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fake_cuda/state.hpp"

/// Streams that are recorded into graphs instead of run.
namespace harvest::fake_cuda::internal {

/// The error for a call that no capture may miss, where one is under way that forbids it to this thread.
[[nodiscard]] cudaError_t refuse_unsafe_call(const char* function);

/// The capture fails: further use of its streams is an error until it is ended, with an error.
void invalidate(Capture& capture);

/// `error` for asking after a stream or event that is being captured, which ends its capture.
[[nodiscard]] cudaError_t refuse_captured(const CapturePlace& place, cudaError_t error, const char* function);

/// The same for waiting for a whole device, one of whose streams is captured.
[[nodiscard]] cudaError_t refuse_captured_device(int device, const char* function);

/// The error for using the legacy default stream while a stream that waits for it is captured.
[[nodiscard]] cudaError_t refuse_legacy_in_capture(const Stream& stream);

/// Adds a node, in the stream's place of its capture.
[[nodiscard]] cudaError_t capture_work(Stream& stream, WorkRef work);

/// The stream waits for an event; at least one of the two is captured.
[[nodiscard]] cudaError_t capture_wait(Stream& stream, const Event& event);

}  // namespace harvest::fake_cuda::internal
