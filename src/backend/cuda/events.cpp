// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/events.hpp"

#include <fmt/format.h>

#include <bit>
#include <utility>

#include "backend/cuda/device_guard.hpp"
#include "base/assert.hpp"

namespace harvest::cuda {

EventPool::EventPool(Gpus& gpus, DeviceId device) : gpus_(gpus), device_(device) {}

EventPool::~EventPool() {
  if (gpus_.is_lost(device_)) return;  // they went with the context
  const DeviceGuard guard(gpus_.ordinal(device_));
  const MutexLock lock(mutex_);
  for (std::uint32_t place = 0; place < made_; ++place)
    if (at(place).native != nullptr && cudaEventDestroy(at(place).native) != cudaSuccess)
      static_cast<void>(cudaGetLastError());
}

std::size_t EventPool::chunk_of(std::uint32_t place) {
  return static_cast<std::size_t>(std::bit_width(place / kFirstChunk + 1)) - 1;
}

EventPool::Place& EventPool::at(std::uint32_t place) {
  const std::size_t chunk = chunk_of(place);
  const std::uint32_t first = kFirstChunk * ((1U << chunk) - 1);
  return chunks_[chunk].load(std::memory_order_acquire)[place - first];
}

EventPool::Place& EventPool::place_of(EventId event) {
  const auto id = static_cast<std::uint64_t>(event);
  const auto place = static_cast<std::uint32_t>(id & ((1U << kPlaceBits) - 1));
  const std::size_t chunk = chunk_of(place);
  HARVEST_ASSERT(chunk < kChunks && chunks_[chunk].load(std::memory_order_acquire) != nullptr,
                 fmt::format("event {} was never recorded", id));
  Place& found = at(place);
  HARVEST_ASSERT(found.generation.load(std::memory_order_relaxed) == id >> 32U,
                 fmt::format("event {} was given back", id));
  return found;
}

/// A free place, with a new event if there is none.
Result<std::uint32_t> EventPool::take() {
  const MutexLock lock(mutex_);
  const bool reuses = !free_.empty();
  if (reuses && at(free_.back()).native != nullptr) {
    const std::uint32_t place = free_.back();
    free_.pop_back();
    return place;
  }
  const std::size_t chunk = chunk_of(made_);
  if (!reuses && chunk >= kChunks)
    return fail(ErrorCode::out_of_memory,
                fmt::format("device {} has {} events that were not given back, and that is the limit",
                            device_, made_));
  cudaEvent_t native = nullptr;
  if (const cudaError_t error = cudaEventCreateWithFlags(&native, cudaEventDisableTiming);
      error != cudaSuccess)
    return gpus_.fail_call(error, device_, fmt::format("cudaEventCreateWithFlags on device {}", device_));
  if (reuses) {
    const std::uint32_t place = free_.back();
    free_.pop_back();
    at(place).native = native;
    return place;
  }
  if (chunks_[chunk].load(std::memory_order_relaxed) == nullptr) {
    const std::size_t places = std::size_t{kFirstChunk} << chunk;
    Place* const made = owned_chunks_.emplace_back(std::make_unique<Place[]>(places)).get();
    chunks_[chunk].store(made, std::memory_order_release);
    free_.reserve(made_ + places);  // so that giving back does not allocate
  }
  at(made_).native = native;
  return made_++;
}

/// Gives a place back without its event, which is not to be trusted any more.
void EventPool::drop(std::uint32_t place) {
  if (cudaEventDestroy(std::exchange(at(place).native, nullptr)) != cudaSuccess)
    static_cast<void>(cudaGetLastError());
  put_back(place);
}

void EventPool::put_back(std::uint32_t place) {
  const MutexLock lock(mutex_);
  free_.push_back(place);
}

Result<EventId> EventPool::record(cudaStream_t stream) {
  const Result<std::uint32_t> place = take();
  if (!place) return tl::unexpected(place.error());
  Place& taken = at(*place);
  taken.state.store(EventState::pending, std::memory_order_relaxed);
  if (const cudaError_t error = cudaEventRecord(taken.native, stream); error != cudaSuccess) {
    drop(*place);
    return gpus_.fail_call(error, device_, fmt::format("cudaEventRecord on device {}", device_));
  }
  const std::uint64_t generation = taken.generation.load(std::memory_order_relaxed);
  return EventId{generation << 32U | static_cast<std::uint64_t>(device_) << kPlaceBits | *place};
}

std::uint32_t EventPool::retire(EventId event) {
  Place& given = place_of(event);
  std::uint32_t next = given.generation.load(std::memory_order_relaxed) + 1;
  if (next == 0) next = 1;  // generation 0 would make id 0 possible, which is no event
  given.generation.store(next, std::memory_order_relaxed);
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(event) & ((1U << kPlaceBits) - 1));
}

void EventPool::release(EventId event) {
  put_back(retire(event));
}

void EventPool::discard(EventId event) {
  drop(retire(event));
}

EventState EventPool::query(EventId event) {
  Place& place = place_of(event);
  const EventState known = place.state.load(std::memory_order_acquire);
  if (known != EventState::pending) return known;
  EventState state = EventState::failed;
  if (!gpus_.is_lost(device_)) {
    const RelaxedCapture guard;
    const cudaError_t error = cudaEventQuery(place.native);
    // An event that became a graph's says nothing of its stream's work, so not that it is over either.
    if (error == cudaErrorNotReady || error == cudaErrorCapturedEvent) {
      static_cast<void>(cudaGetLastError());  // the runtime takes it for an error and keeps it
      return EventState::pending;
    }
    if (error == cudaSuccess)
      state = EventState::complete;
    else
      static_cast<void>(gpus_.fail_call(error, device_, fmt::format("work on device {}", device_)));
  }
  place.state.store(state, std::memory_order_release);
  return state;
}

}  // namespace harvest::cuda
