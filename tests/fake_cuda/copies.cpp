// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/copies.hpp"

#include <algorithm>
#include <cstring>

#include "fake_cuda/call.hpp"

namespace harvest::fake_cuda::internal {
namespace {

std::string as_text(std::uint64_t address, std::uint64_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%llu bytes at 0x%llx", static_cast<unsigned long long>(bytes),
                static_cast<unsigned long long>(address));
  return text;
}

/// What is at an end as the copy is given.
cudaError_t look_up(std::uint64_t address, std::uint64_t bytes, End& end, const Range*& range) {
  const auto found = state().addresses.find(address, bytes);
  end = {address, 0, kHost};
  range = nullptr;
  switch (found.found) {
    case Found::pageable: return cudaSuccess;
    case Found::spans:
      return state().refuse(cudaErrorInvalidValue,
                            as_text(address, bytes) + " are not within one allocation");
    case Found::stale:
      return state().refuse(cudaErrorInvalidValue, as_text(address, bytes) + ": no memory there");
    case Found::range: break;
  }
  range = found.range;
  end.range_id = range->id;
  end.device = range->is_host() ? kHost : range->device;
  return cudaSuccess;
}

bool has_rights(const Range* range, int device, CopyRules rules, bool write) {
  if (range == nullptr || range->kind != RangeKind::mapping) return true;
  return may_access(rules == CopyRules::stream ? device : range->device, *range, write);
}

/// Two devices can copy by themselves where either has access to the other's end.
bool is_direct(const Range& to, const Range& from) {
  return may_access(to.device, from, false) || may_access(from.device, to, true);
}

/// Memory that moves while neither lock nor sanitizer is in the way.
void move_bytes(Lock& lock, std::byte* to, const std::byte* from, std::uint64_t bytes) {
  const auto slow_us = state().faults.slow_copy_us;
  lock.unlock();
  if (slow_us != 0) std::this_thread::sleep_for(std::chrono::microseconds(slow_us));
  {
    const Outside outside;
    std::memmove(to, from, bytes);
  }
  lock.lock();
}

}  // namespace

bool may_access(int device, const Range& range, bool write) {
  if (range.is_host()) return true;
  if (range.kind == RangeKind::mapping) {
    const auto access = range.access.find(device);
    return access != range.access.end() && (access->second || !write);
  }
  return range.device == device ||
         state().devices[static_cast<std::size_t>(device)].peers.count(range.device) != 0;
}

std::optional<Held> hold(const End& end, std::uint64_t bytes) {
  const auto found = state().addresses.find(end.address, bytes);
  if (end.range_id == 0) {
    if (found.found != Found::pageable) return std::nullopt;
    return Held{reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(end.address)), nullptr};
  }
  if (found.found != Found::range || found.range->id != end.range_id) return std::nullopt;
  const auto& range = *found.range;
  if (!range.is_host()) return Held{range.physical->bytes_at + (end.address - range.begin), range.physical};
  return Held{reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(end.address)), range.pinned};
}

bool is_still_there(const End& end) {
  return hold(end, 1).has_value();
}

cudaError_t plan_copy(std::uint64_t to, std::uint64_t from, std::uint64_t bytes, int device, CopyRules rules,
                      CopyRun& run) {
  const Range* to_range = nullptr;
  const Range* from_range = nullptr;
  run = {};
  run.bytes = bytes;
  if (to == 0 || from == 0) return state().refuse(cudaErrorInvalidValue, "a copy from or to null");
  if (const auto error = look_up(to, bytes, run.to, to_range); error != cudaSuccess) return error;
  if (const auto error = look_up(from, bytes, run.from, from_range); error != cudaSuccess) return error;
  if (!has_rights(to_range, device, rules, true) || !has_rights(from_range, device, rules, false)) {
    return state().refuse(cudaErrorInvalidValue, "a copy of mapped memory without access");
  }
  run.staged = run.to.device != run.from.device && run.to.device != kHost && run.from.device != kHost &&
               !is_direct(*to_range, *from_range);
  return cudaSuccess;
}

cudaError_t read_early(Lock& lock, CopyRun& run) {
  const auto source = hold(run.from, run.bytes);
  if (!source) return cudaErrorInvalidValue;
  run.early = std::make_shared<std::vector<std::byte>>(run.bytes);
  move_bytes(lock, run.early->data(), source->bytes, run.bytes);
  return cudaSuccess;
}

cudaError_t run_copy(Lock& lock, const CopyRun& run) {
  const auto to = hold(run.to, run.bytes);
  const auto from = run.early != nullptr ? Held{run.early->data(), run.early} : hold(run.from, run.bytes);
  if (!to || !from) {
    return state().refuse(cudaErrorIllegalAddress, "a copy of " + as_text(run.from.address, run.bytes) +
                                                       " to 0x" + as_text(run.to.address, run.bytes) +
                                                       ": memory was taken away before it ran (rule 1)");
  }
  move_bytes(lock, to->bytes, from->bytes, run.bytes);
  if (!run.staged && state().faults.is_corrupt(run.from.device, run.to.device)) {
    const Outside outside;
    to->bytes[run.bytes / 2] ^= std::byte{0x40};
  }
  if (!is_still_there(run.to) || (run.early == nullptr && !is_still_there(run.from))) {
    return state().refuse(
        cudaErrorIllegalAddress,
        "memory was taken away while a copy of " + as_text(run.from.address, run.bytes) + " ran (rule 1)");
  }
  auto& counters = state().counters;
  ++counters.copies;
  counters.copied_bytes += run.bytes;
  if (run.staged) ++counters.staged_copies;
  if (run.from.range_id == 0 || run.to.range_id == 0) ++counters.pageable_copies;
  return cudaSuccess;
}

namespace {

std::uint64_t number(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

class CopyWork : public Work {
 public:
  explicit CopyWork(CopyRun run) : run_(std::move(run)) {}
  cudaError_t run(Lock& lock) const override { return run_copy(lock, run_); }

 private:
  CopyRun run_;
};

class FillWork : public Work {
 public:
  FillWork(End end, std::uint64_t bytes, int value) : end_(end), bytes_(bytes), value_(value) {}

  cudaError_t run(Lock& lock) const override {
    const auto held = hold(end_, bytes_);
    if (!held) return refuse_gone();
    lock.unlock();
    {
      const Outside outside;
      std::memset(held->bytes, value_, bytes_);
    }
    lock.lock();
    return is_still_there(end_) ? cudaSuccess : refuse_gone();
  }

 private:
  [[nodiscard]] cudaError_t refuse_gone() const {
    return state().refuse(cudaErrorIllegalAddress,
                          "a fill of " + as_text(end_.address, bytes_) + ": memory was taken away (rule 1)");
  }

  End end_;
  std::uint64_t bytes_;
  int value_;
};

/// The kind that was named must be true of the ends. Pinned host memory is a device's as well.
bool is_true_of(cudaMemcpyKind kind, const CopyRun& run) {
  const auto is_host = [](const End& end) { return end.device == kHost; };
  const auto is_for_device = [](const End& end) { return end.range_id != 0; };
  switch (kind) {
    case cudaMemcpyDefault: return true;
    case cudaMemcpyHostToHost: return is_host(run.to) && is_host(run.from);
    case cudaMemcpyHostToDevice: return is_host(run.from) && is_for_device(run.to);
    case cudaMemcpyDeviceToHost: return is_for_device(run.from) && is_host(run.to);
    case cudaMemcpyDeviceToDevice: return is_for_device(run.from) && is_for_device(run.to);
  }
  return false;
}

/// Gives a planned copy to a stream. From pageable memory it reads now, to pageable memory it waits, as CUDA
/// does.
cudaError_t give_copy(Lock& lock, const StreamRef& stream, CopyRun run, bool synchronous) {
  const bool is_captured = stream->capturing.capture != nullptr;
  const bool to_pageable = run.to.range_id == 0;
  const bool from_pageable = run.from.range_id == 0;
  if (is_captured && (to_pageable || from_pageable)) {
    return state().refuse(cudaErrorStreamCaptureUnsupported, "a copy of pageable memory during a capture");
  }
  if (from_pageable && !to_pageable) {
    if (const auto error = read_early(lock, run); error != cudaSuccess) return error;
  }
  const bool between_devices = run.to.device != kHost && run.from.device != kHost;
  if (const auto error = state().submit(stream, std::make_shared<CopyWork>(std::move(run)));
      error != cudaSuccess) {
    return error;
  }
  if (!to_pageable && (!synchronous || between_devices)) return cudaSuccess;
  state().wait_on_host(lock, stream->tail);
  return health(stream->device);
}

cudaError_t copy(Lock& lock, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                 cudaStream_t handle, bool synchronous) {
  const auto stream = state().find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (const auto error = health(stream->device); error != cudaSuccess) return error;
  if (bytes == 0) return cudaSuccess;
  CopyRun run;
  const auto error = plan_copy(number(to), number(from), bytes, stream->device, CopyRules::stream, run);
  if (error != cudaSuccess) return error;
  if (!is_true_of(kind, run))
    return state().refuse(cudaErrorInvalidValue, "the kind of the copy is not that of its ends");
  return give_copy(lock, stream, std::move(run), synchronous);
}

cudaError_t copy_between_peers(Lock& lock, void* to, int to_device, const void* from, int from_device,
                               std::size_t bytes, cudaStream_t handle, bool synchronous) {
  const auto stream = state().find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (!state().is_device(to_device) || !state().is_device(from_device)) return cudaErrorInvalidDevice;
  for (const int device : {stream->device, to_device, from_device}) {
    if (const auto error = health(device); error != cudaSuccess) return error;
  }
  if (bytes == 0) return cudaSuccess;
  CopyRun run;
  const auto error = plan_copy(number(to), number(from), bytes, stream->device, CopyRules::peers, run);
  if (error != cudaSuccess) return error;
  if (run.to.device != to_device || run.from.device != from_device) {
    return state().refuse(cudaErrorInvalidValue,
                          "a copy between peers names other devices than its memory is on");
  }
  return give_copy(lock, stream, std::move(run), synchronous);
}

cudaError_t fill(Lock& lock, void* address, int value, std::size_t bytes, cudaStream_t handle,
                 bool synchronous) {
  const auto stream = state().find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (const auto error = health(stream->device); error != cudaSuccess) return error;
  if (bytes == 0) return cudaSuccess;
  const auto found = state().addresses.find(number(address), bytes);
  if (found.found != Found::range)
    return state().refuse(cudaErrorInvalidValue, "a fill of what is not one allocation's");
  if (!may_access(stream->device, *found.range, true)) {
    return state().refuse(cudaErrorInvalidValue, "a fill of memory that the stream's device may not access");
  }
  const bool is_host = found.range->is_host();
  const End end{number(address), found.range->id, is_host ? kHost : found.range->device};
  const auto error = state().submit(stream, std::make_shared<FillWork>(end, bytes, value));
  if (error != cudaSuccess || !synchronous || !is_host) return error;
  state().wait_on_host(lock, stream->tail);
  return health(stream->device);
}

}  // namespace
}  // namespace harvest::fake_cuda::internal

using namespace harvest::fake_cuda::internal;  // NOLINT: the functions below are CUDA's, in no namespace

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return runtime_call("cudaMemcpy", kContext | kUnsafeInCapture,
                      [&](Lock& lock) { return copy(lock, to, from, bytes, kind, cudaStreamLegacy, true); });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return runtime_call("cudaMemcpyAsync", kContext,
                      [&](Lock& lock) { return copy(lock, to, from, bytes, kind, stream, false); });
}

cudaError_t cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device, std::size_t bytes) {
  return runtime_call("cudaMemcpyPeer", kContext | kUnsafeInCapture, [&](Lock& lock) {
    return copy_between_peers(lock, to, to_device, from, from_device, bytes, cudaStreamLegacy, true);
  });
}

cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                                cudaStream_t stream) {
  return runtime_call("cudaMemcpyPeerAsync", kContext, [&](Lock& lock) {
    return copy_between_peers(lock, to, to_device, from, from_device, bytes, stream, false);
  });
}

cudaError_t cudaMemset(void* address, int value, std::size_t bytes) {
  return runtime_call("cudaMemset", kContext | kUnsafeInCapture,
                      [&](Lock& lock) { return fill(lock, address, value, bytes, cudaStreamLegacy, true); });
}

cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream) {
  return runtime_call("cudaMemsetAsync", kContext,
                      [&](Lock& lock) { return fill(lock, address, value, bytes, stream, false); });
}
