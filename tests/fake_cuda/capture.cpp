// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/capture.hpp"

#include <algorithm>

#include "fake_cuda/call.hpp"

namespace harvest::fake_cuda::internal {
namespace {

/// The nodes that `last` stand for, and all that they follow.
std::vector<bool> reached(const Graph& graph, const std::vector<std::size_t>& last) {
  std::vector<bool> seen(graph.nodes.size(), false);
  std::vector<std::size_t> open = last;
  while (!open.empty()) {
    const auto node = open.back();
    open.pop_back();
    if (seen[node]) continue;
    seen[node] = true;
    open.insert(open.end(), graph.nodes[node].after.begin(), graph.nodes[node].after.end());
  }
  return seen;
}

void leave_capture(const std::shared_ptr<Capture>& capture) {
  for (std::size_t i = 0; i < state().devices.size(); ++i) {
    state().for_each_stream(static_cast<int>(i), [&](const StreamRef& stream) {
      if (stream->capturing.capture == capture) stream->capturing = {};
    });
  }
  for (const auto& [number, event] : state().events) {
    if (event->captured.capture == capture) event->captured = {};
  }
  std::erase(state().captures, capture);
}

/// All nodes of a graph as one piece of work, in any order that it allows.
class GraphWork : public Work {
 public:
  explicit GraphWork(std::shared_ptr<const Graph> graph) : graph_(std::move(graph)) {}

  cudaError_t run(Lock& lock) const override {
    std::vector<bool> done(graph_->nodes.size(), false);
    for (std::size_t left = done.size(); left > 0; --left) {
      const auto node = choose(done);
      if (const auto error = graph_->nodes[node].work->run(lock); error != cudaSuccess) return error;
      done[node] = true;
    }
    return cudaSuccess;
  }

 private:
  /// One of the nodes whose turn it is. There is one, since a node follows only such as were captured before
  /// it.
  [[nodiscard]] std::size_t choose(const std::vector<bool>& done) const {
    std::vector<std::size_t> ready;
    for (std::size_t i = 0; i < done.size(); ++i) {
      const auto& after = graph_->nodes[i].after;
      const bool is_ready =
          std::all_of(after.begin(), after.end(), [&](std::size_t node) { return done[node]; });
      if (!done[i] && is_ready) ready.push_back(i);
    }
    return ready[state().random() % ready.size()];
  }

  std::shared_ptr<const Graph> graph_;
};

cudaError_t end_capture(const StreamRef& stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const auto capture = stream->capturing.capture;
  if (capture == nullptr)
    return state().refuse(cudaErrorIllegalState, "cudaStreamEndCapture: it is not captured");
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return state().refuse(cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture in another thread");
  }
  if (capture->origin.lock() != stream) {
    invalidate(*capture);
    return state().refuse(cudaErrorStreamCaptureUnmatched,
                          "cudaStreamEndCapture: it began on another stream");
  }
  const auto joined = reached(capture->graph, stream->capturing.last);
  const bool unjoined = std::find(joined.begin(), joined.end(), false) != joined.end();
  const bool invalidated = capture->invalidated;
  leave_capture(capture);
  if (invalidated) return cudaErrorStreamCaptureInvalidated;
  if (unjoined) {
    return state().refuse(cudaErrorStreamCaptureUnjoined,
                          "cudaStreamEndCapture: work of another stream is not joined");
  }
  const auto number = state().next_handle++;
  state().graphs[number] = std::make_shared<Graph>(std::move(capture->graph));
  *graph = to_handle<cudaGraph_t>(number);
  return cudaSuccess;
}

}  // namespace

void invalidate(Capture& capture) {
  capture.invalidated = true;
}

cudaError_t refuse_unsafe_call(const char* function) {
  const auto& thread = this_thread();
  if (thread.capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (const auto& capture : state().captures) {
    const bool own = capture->thread == std::this_thread::get_id();
    const bool forbids = own ? capture->mode != cudaStreamCaptureModeRelaxed
                             : thread.capture_mode == cudaStreamCaptureModeGlobal &&
                                   capture->mode == cudaStreamCaptureModeGlobal;
    if (!forbids) continue;
    invalidate(*capture);
    return state().refuse(cudaErrorStreamCaptureUnsupported, std::string(function) + " during a capture");
  }
  return cudaSuccess;
}

cudaError_t refuse_captured(const CapturePlace& place, cudaError_t error, const char* function) {
  if (place.capture == nullptr) return cudaSuccess;
  invalidate(*place.capture);
  return state().refuse(error, std::string(function) + " of what is captured");
}

cudaError_t refuse_legacy_in_capture(const Stream& stream) {
  if (!stream.is_legacy) return cudaSuccess;
  auto error = cudaSuccess;
  state().for_each_stream(stream.device, [&](const StreamRef& other) {
    if (other->capturing.capture == nullptr || !other->is_blocking()) return;
    invalidate(*other->capturing.capture);
    error = state().refuse(cudaErrorStreamCaptureImplicit,
                           "the legacy default stream during a capture that waits for it");
  });
  return error;
}

cudaError_t refuse_captured_device(int device, const char* function) {
  auto error = cudaSuccess;
  state().for_each_stream(device, [&](const StreamRef& stream) {
    const auto refused = refuse_captured(stream->capturing, cudaErrorStreamCaptureUnsupported, function);
    if (refused != cudaSuccess) error = refused;
  });
  return error;
}

cudaError_t capture_work(Stream& stream, WorkRef work) {
  auto& place = stream.capturing;
  if (place.capture->invalidated) return cudaErrorStreamCaptureInvalidated;
  auto& nodes = place.capture->graph.nodes;
  nodes.push_back({std::move(work), stream.device, place.last});
  place.last = {nodes.size() - 1};
  return cudaSuccess;
}

cudaError_t capture_wait(Stream& stream, const Event& event) {
  auto& place = stream.capturing;
  const auto& other = event.captured;
  if (other.capture == nullptr) {
    if (event.record == nullptr) return cudaSuccess;  // never recorded: nothing to wait for
    invalidate(*place.capture);
    return state().refuse(cudaErrorStreamCaptureIsolation,
                          "a captured stream waits for an event from outside");
  }
  if (other.capture->invalidated) return cudaErrorStreamCaptureInvalidated;
  if (stream.is_legacy) {
    invalidate(*other.capture);
    return state().refuse(cudaErrorStreamCaptureImplicit, "the legacy default stream cannot be captured");
  }
  if (place.capture == nullptr) {
    place = other;
    return cudaSuccess;
  }
  if (place.capture != other.capture) {
    invalidate(*place.capture);
    invalidate(*other.capture);
    return state().refuse(cudaErrorStreamCaptureMerge, "a captured stream waits for another capture");
  }
  for (const auto node : other.last) {
    if (std::find(place.last.begin(), place.last.end(), node) == place.last.end()) place.last.push_back(node);
  }
  return cudaSuccess;
}

cudaError_t State::submit(const StreamRef& stream, WorkRef work) {
  if (const auto error = devices[static_cast<std::size_t>(stream->device)].sticky; error != cudaSuccess)
    return error;
  if (const auto error = refuse_legacy_in_capture(*stream); error != cudaSuccess) return error;
  if (stream->capturing.capture != nullptr) return capture_work(*stream, std::move(work));
  enqueue(stream, std::move(work));
  return cudaSuccess;
}

}  // namespace harvest::fake_cuda::internal

using namespace harvest::fake_cuda::internal;  // NOLINT: the functions below are CUDA's, in no namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return runtime_call("cudaStreamBeginCapture", kContext, [&](Lock&) -> cudaError_t {
    const auto stream = state().find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (const auto error = health(stream->device); error != cudaSuccess) return error;
    if (stream->is_legacy)
      return state().refuse(cudaErrorStreamCaptureUnsupported, "capture of the legacy default stream");
    if (stream->capturing.capture != nullptr)
      return state().refuse(cudaErrorIllegalState, "it is captured already");
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed)
      return cudaErrorInvalidValue;
    auto capture = std::make_shared<Capture>();
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->origin = stream;
    state().captures.push_back(capture);
    stream->capturing = {capture, {}};
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return runtime_call("cudaStreamEndCapture", kContext, [&](Lock&) -> cudaError_t {
    const auto stream = state().find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (graph == nullptr) return cudaErrorInvalidValue;
    return end_capture(stream, graph);
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return runtime_call("cudaStreamIsCapturing", kContext, [&](Lock&) -> cudaError_t {
    const auto stream = state().find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (status == nullptr) return cudaErrorInvalidValue;
    if (const auto error = refuse_legacy_in_capture(*stream); error != cudaSuccess) return error;
    const auto& capture = stream->capturing.capture;
    *status = capture == nullptr     ? cudaStreamCaptureStatusNone
              : capture->invalidated ? cudaStreamCaptureStatusInvalidated
                                     : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return runtime_call("cudaThreadExchangeStreamCaptureMode", kNothing, [&](Lock&) -> cudaError_t {
    if (mode == nullptr || *mode < cudaStreamCaptureModeGlobal || *mode > cudaStreamCaptureModeRelaxed) {
      return cudaErrorInvalidValue;
    }
    std::swap(*mode, this_thread().capture_mode);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  return runtime_call("cudaGraphGetNodes", kMachine, [&](Lock&) -> cudaError_t {
    const auto found = state().graphs.find(to_number(graph));
    if (found == state().graphs.end() || count == nullptr) return cudaErrorInvalidValue;
    if (nodes != nullptr)
      return state().refuse(cudaErrorNotSupported, "the fake tells the number of nodes alone");
    *count = found->second->nodes.size();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return runtime_call("cudaGraphDestroy", kMachine, [&](Lock&) {
    return state().graphs.erase(to_number(graph)) == 1 ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  return runtime_call("cudaGraphInstantiate", kContext, [&](Lock&) -> cudaError_t {
    const auto found = state().graphs.find(to_number(graph));
    if (executable == nullptr || found == state().graphs.end() || flags != 0) return cudaErrorInvalidValue;
    const auto number = state().next_handle++;
    state().executables[number] = std::make_shared<const Graph>(*found->second);
    *executable = to_handle<cudaGraphExec_t>(number);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return runtime_call("cudaGraphExecDestroy", kMachine, [&](Lock&) {
    return state().executables.erase(to_number(executable)) == 1 ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  return runtime_call("cudaGraphLaunch", kContext, [&](Lock&) -> cudaError_t {
    const auto found = state().executables.find(to_number(executable));
    const auto stream = state().find_stream(handle);
    if (found == state().executables.end()) return cudaErrorInvalidValue;
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    return state().submit(stream, std::make_shared<GraphWork>(found->second));
  });
}
