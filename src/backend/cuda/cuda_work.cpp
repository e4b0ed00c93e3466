// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>
#include <utility>

#include "backend/cuda/cuda_backend.hpp"
#include "backend/cuda/device_guard.hpp"
#include "backend/cuda/error.hpp"
#include "base/assert.hpp"

/// Streams, events, copies, fills and the clock of `CudaBackend`.
namespace harvest::cuda {
namespace {

/// How a wait looks again: at once for as long as a small copy takes, then after growing pauses.
constexpr TimeNs kSpinNs = 30'000;
constexpr TimeNs kFirstPauseNs = 10'000;
constexpr TimeNs kLastPauseNs = 200'000;

tl::unexpected<Error> no_stream(StreamId id) {
  return fail(ErrorCode::not_found, fmt::format("no stream {}", static_cast<std::uint32_t>(id)));
}

/// The legacy default stream belongs to whichever device is current.
bool is_default(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy;
}

Status check_runs(std::span<const Copy> copies) {
  if (copies.empty()) return fail(ErrorCode::invalid_argument, "a batch of 0 copies");
  for (const Copy& copy : copies)
    if (copy.destination == nullptr || copy.source == nullptr || copy.bytes == 0)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("a copy of {} bytes from {} to {}", copy.bytes, fmt::ptr(copy.source),
                              fmt::ptr(copy.destination)));
  return {};
}

}  // namespace

template <typename Work>
auto CudaBackend::on_stream(StreamId id, Work work) -> decltype(work(std::declval<Stream&>())) {
  const std::shared_ptr<Stream> stream = streams_.find(id);
  if (stream == nullptr) return no_stream(id);
  if (const Status status = gpus_->check(stream->device); !status) return tl::unexpected(status.error());
  const MutexLock lock(stream->mutex);
  if (stream->closed) return no_stream(id);
  const DeviceGuard guard(gpus_->ordinal(stream->device));
  if (guard.error() != cudaSuccess) return gpus_->fail_call(guard.error(), stream->device, "cudaSetDevice");
  return work(*stream);
}

// --- streams -------------------------------------------------------------------------------------------

Result<StreamId> CudaBackend::create_stream(DeviceId device) {
  if (const Status status = check_gpu(device); !status) return tl::unexpected(status.error());
  const DeviceGuard guard(gpus_->ordinal(device));
  cudaStream_t native = nullptr;
  const cudaError_t error = guard.error() == cudaSuccess
                                ? cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking)
                                : guard.error();
  if (error != cudaSuccess)
    return gpus_->fail_call(error, device, fmt::format("cudaStreamCreateWithFlags on device {}", device));
  return streams_.add(device, native, true);
}

Result<StreamId> CudaBackend::wrap_stream(DeviceId device, void* native) {
  if (const Status status = check_gpu(device); !status) return tl::unexpected(status.error());
  auto* const stream = static_cast<cudaStream_t>(native);
  if (stream == cudaStreamPerThread)
    return fail(
        ErrorCode::invalid_argument,
        "cudaStreamPerThread names another stream in each thread, so no event of it could be trusted: "
        "make a stream of your own");
#if CUDART_VERSION >= 12080
  if (!is_default(stream)) {
    const DeviceGuard guard(gpus_->ordinal(device));
    int ordinal = -1;
    if (const cudaError_t error = cudaStreamGetDevice(stream, &ordinal); error != cudaSuccess)
      return gpus_->fail_call(error, device, fmt::format("cudaStreamGetDevice of {}", native));
    if (ordinal != gpus_->ordinal(device))
      return fail(ErrorCode::invalid_argument,
                  fmt::format("a stream of CUDA's GPU {} is not one of device {}, which is GPU {}", ordinal,
                              device, gpus_->ordinal(device)));
  }
#endif
  return streams_.add(device, stream, false);
}

Status CudaBackend::destroy_stream(StreamId id) {
  const std::shared_ptr<Stream> stream = streams_.remove(id);
  if (stream == nullptr) return no_stream(id);
  const MutexLock lock(stream->mutex);  // who is giving it work finishes that first
  stream->closed = true;
  if (!stream->owned || gpus_->is_lost(stream->device)) return {};
  const DeviceGuard guard(gpus_->ordinal(stream->device));
  if (const cudaError_t error = cudaStreamDestroy(stream->native); error != cudaSuccess)
    return gpus_->fail_call(error, stream->device, "cudaStreamDestroy");
  return {};
}

Result<DeviceId> CudaBackend::stream_device(StreamId id) const {
  const std::shared_ptr<Stream> stream = streams_.find(id);
  if (stream == nullptr) return no_stream(id);
  return stream->device;
}

bool CudaBackend::is_capturing(StreamId id) const {
  const std::shared_ptr<Stream> stream = streams_.find(id);
  if (stream == nullptr || gpus_->is_lost(stream->device)) return false;
  const DeviceGuard guard(gpus_->ordinal(stream->device));
  return guard.error() == cudaSuccess && captures(*stream);
}

/// Requires: the stream's GPU is current.
bool CudaBackend::captures(const Stream& stream) const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream.native, &status);
  if (error == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  static_cast<void>(cudaGetLastError());
  return error == cudaErrorStreamCaptureImplicit;  // the legacy stream, while a blocking one is captured
}

// --- events --------------------------------------------------------------------------------------------

EventPool& CudaBackend::pool_of(EventId event) const {
  const DeviceId device = EventPool::device_of(event);
  HARVEST_ASSERT(gpus_->has(device), fmt::format("no event {}", static_cast<std::uint64_t>(event)));
  return *events_[static_cast<std::size_t>(device)];
}

Result<EventId> CudaBackend::record_event(StreamId id) {
  Result<EventId> recorded = on_stream(id, [&](Stream& stream) -> Result<EventId> {
    constexpr const char* kWhy = "an event on a stream that is being captured would be the graph's";
    if (captures(stream)) return fail(ErrorCode::not_supported, kWhy);
    EventPool& pool = *events_[static_cast<std::size_t>(stream.device)];
    const Result<EventId> event = pool.record(stream.native);
    if (!event || !captures(stream)) return event;
    pool.discard(*event);  // its owner began to capture meanwhile, and perhaps before the record
    return fail(ErrorCode::not_supported, kWhy);
  });
  if (recorded || recorded.error().code == ErrorCode::not_supported) return recorded;
  // Of an unknown stream and of a lost device it is known that nothing runs any more. Whatever else CUDA says
  // against an event says nothing of the stream's work.
  const std::shared_ptr<Stream> stream = streams_.find(id);
  if (stream == nullptr || gpus_->is_lost(stream->device)) return recorded;
  return fail(ErrorCode::out_of_memory, recorded.error().message);
}

void CudaBackend::release_event(EventId event) {
  pool_of(event).release(event);
}

EventState CudaBackend::query_event(EventId event) {
  return pool_of(event).query(event);
}

Status CudaBackend::stream_wait(StreamId id, EventId event) {
  EventPool& pool = pool_of(event);
  return on_stream(id, [&](Stream& stream) -> Status {
    if (pool.query(event) != EventState::pending) return {};
    if (captures(stream))
      return fail(ErrorCode::not_supported, "a stream that is being captured cannot wait for work outside");
    if (const cudaError_t error = cudaStreamWaitEvent(stream.native, pool.native(event), 0);
        error != cudaSuccess) {
      const std::array concerned{stream.device, EventPool::device_of(event)};
      return gpus_->fail_call(error, concerned,
                              fmt::format("cudaStreamWaitEvent on device {}", stream.device));
    }
    return {};
  });
}

/// Looks again and again: a wait inside CUDA could not end at a deadline, nor when the device is lost.
EventState CudaBackend::wait_event(EventId event, TimeNs deadline_ns) {
  EventPool& pool = pool_of(event);
  EventState state = pool.query(event);
  const TimeNs begin = now_ns();
  TimeNs pause_ns = kFirstPauseNs;
  while (state == EventState::pending) {
    const TimeNs now = now_ns();
    if (now >= deadline_ns) break;
    if (now - begin < kSpinNs) {
      std::this_thread::yield();
    } else {
      sleep_until(std::min(deadline_ns, now + pause_ns));
      pause_ns = std::min(2 * pause_ns, kLastPauseNs);
    }
    state = pool.query(event);
  }
  return state;
}

// --- work ----------------------------------------------------------------------------------------------

template <typename Work>
Status CudaBackend::on_helper(StreamId stream, DeviceId device, Work work) {
  const Result<StreamId> helper = helper_stream(device);
  if (!helper) return tl::unexpected(helper.error());
  const Result<EventId> before = record_event(stream);
  if (!before) return tl::unexpected(before.error());
  Status status = stream_wait(*helper, *before);
  release_event(*before);
  if (!status) return status;
  status = work(*helper);
  if (!status) return status;
  const Result<EventId> after = record_event(*helper);
  if (after) {
    status = stream_wait(stream, *after);
    release_event(*after);
    if (status) return status;
  } else {
    status = tl::unexpected(after.error());
  }
  // Nothing on the caller's stream would wait for what was given, so the host does.
  static_cast<void>(on_stream(*helper, [&](Stream& native) -> Status {
    return check(cudaStreamSynchronize(native.native), "cudaStreamSynchronize");
  }));
  return status;
}

DeviceId CudaBackend::worker_for(DeviceId gpu, Route route, std::span<const Copy> copies) const {
  // Its own memory and pinned memory it reaches, and from there to another GPU the driver stages.
  if (route.from == gpu || route.to == gpu || (route.from == kHost && route.to == kHost)) return gpu;
  const auto reaches = [&](const std::byte* address, DeviceId device) {
    if (device == kHost) return true;
    const auto range = map_.find(address);
    return range && range->is_accessible_by(gpu);
  };
  const bool reaches_all = std::all_of(copies.begin(), copies.end(), [&](const Copy& copy) {
    return reaches(copy.source, route.from) && reaches(copy.destination, route.to);
  });
  if (reaches_all) return gpu;
  return route.to != kHost ? route.to : route.from;
}

Status CudaBackend::copy(StreamId id, Route route, std::span<const Copy> copies) {
  const Result<DeviceId> gpu = stream_device(id);
  if (!gpu) return tl::unexpected(gpu.error());
  if (Status status = check_route(route); !status) return status;
  if (Status status = check_runs(copies); !status) return status;
  if (const DeviceId worker = worker_for(*gpu, route, copies); worker != *gpu)
    return on_helper(id, worker, [&](StreamId helper) { return copy(helper, route, copies); });
  return on_stream(id, [&](Stream& stream) -> Status {
    Status given = engine_->copy({stream.native, stream.device, route, captures(stream)}, copies);
    if (given) return given;
    const std::array concerned{stream.device, route.from, route.to};
    if (given.error().code == ErrorCode::unavailable) static_cast<void>(gpus_->find_lost(concerned));
    return given;
  });
}

Status CudaBackend::fill(StreamId id, DeviceId device, std::byte* address, std::uint64_t bytes,
                         std::uint8_t value) {
  if (address == nullptr || bytes == 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("a fill of {} bytes at {}", bytes, fmt::ptr(address)));
  if (Status status = gpus_->check(device); !status) return status;
  const auto range = map_.find(address);
  if (range && range->device != device)
    return fail(ErrorCode::invalid_argument, fmt::format("{} is memory of device {}, not of device {}",
                                                         fmt::ptr(address), range->device, device));
  const Result<DeviceId> by = stream_device(id);
  if (!by) return tl::unexpected(by.error());
  const bool reaches = range ? range->is_accessible_by(*by) : device == *by || device == kHost;
  if (!reaches)
    return on_helper(id, device,
                     [&](StreamId helper) { return fill(helper, device, address, bytes, value); });
  return on_stream(id, [&](Stream& stream) { return fill_directly(stream, device, address, bytes, value); });
}

/// By the stream itself, in pieces where the memory was registered in pieces.
Status CudaBackend::fill_directly(const Stream& stream, DeviceId device, std::byte* address,
                                  std::uint64_t bytes, std::uint8_t value) {
  while (bytes > 0) {
    const auto range = map_.find(address);
    if (!range && device == kHost)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("a fill of {} bytes at {}: host memory that is not pinned here", bytes,
                              fmt::ptr(address)));
    const std::uint64_t piece =
        range ? std::min(bytes, static_cast<std::uint64_t>(range->end() - address)) : bytes;
    if (const cudaError_t error = cudaMemsetAsync(address, value, piece, stream.native);
        error != cudaSuccess) {
      const std::array concerned{stream.device, device};
      return gpus_->fail_call(error, concerned,
                              fmt::format("cudaMemsetAsync of {} bytes on device {}", piece, device));
    }
    address += piece;
    bytes -= piece;
  }
  return {};
}

Result<StreamId> CudaBackend::helper_stream(DeviceId device) {
  const MutexLock lock(helpers_mutex_);
  StreamId& helper = helpers_[static_cast<std::size_t>(device)];
  if (helper != StreamId::none) return helper;
  const Result<StreamId> made = create_stream(device);
  if (made) helper = *made;
  return made;
}

// --- time ----------------------------------------------------------------------------------------------

TimeNs CudaBackend::now_ns() const {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void CudaBackend::sleep_until(TimeNs until_ns) {
  std::this_thread::sleep_until(std::chrono::steady_clock::time_point(std::chrono::nanoseconds(until_ns)));
}

}  // namespace harvest::cuda
