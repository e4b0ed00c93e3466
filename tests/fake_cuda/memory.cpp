// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "fake_cuda/call.hpp"
#include "fake_cuda/copies.hpp"

/// Memory of devices by cudaMalloc, and the host's that CUDA knows.
namespace harvest::fake_cuda::internal {
namespace {

constexpr std::uint64_t kAllocationAlignment = 512;
constexpr std::uint64_t kPageBytes = 4096;

std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::uint64_t number(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}
void* pointer(std::uint64_t address) {
  return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address));
}

cudaError_t allocate_on_device(void** address, std::size_t bytes) {
  if (address == nullptr) return cudaErrorInvalidValue;
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (state().faults.on_allocation()) return cudaErrorMemoryAllocation;
  const int device = this_thread().device;
  const auto rounded = round_up(bytes, kAllocationAlignment);
  auto physical = make_physical(state().accounts, device, rounded);
  if (physical == nullptr)
    return state().refuse(cudaErrorMemoryAllocation, "cudaMalloc: the device has not as much");
  Range range;
  range.begin = state().addresses.reserve(rounded, kAllocationAlignment);
  if (range.begin == 0) return cudaErrorMemoryAllocation;
  range.bytes = rounded;
  range.device = device;
  range.physical = std::move(physical);
  *address = pointer(state().addresses.add(std::move(range)).begin);
  return cudaSuccess;
}

/// The range that begins at `address` and is of that kind; the end where there is none.
auto find_range(const void* address, RangeKind kind) {
  auto& ranges = state().addresses.ranges;
  const auto found = ranges.find(number(address));
  return found != ranges.end() && found->second.kind == kind ? found : ranges.end();
}

cudaError_t allocate_pinned(const char* function, void** address, std::size_t bytes, unsigned flags) {
  return runtime_call(function, kContext | kUnsafeInCapture, [&](Lock&) -> cudaError_t {
    constexpr unsigned kFlags = cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    if (address == nullptr || (flags & ~kFlags) != 0) return cudaErrorInvalidValue;
    *address = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (state().faults.on_allocation() || bytes >= state().machine.host_register_limit_bytes) {
      return state().refuse(cudaErrorMemoryAllocation, "pinned memory that cannot be had");
    }
    // Of the heap, so that the address sanitizer knows its ends.
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(kPageBytes, round_up(bytes, kPageBytes)));
    if (memory == nullptr) return cudaErrorMemoryAllocation;
    Range range;
    range.kind = RangeKind::pinned;
    range.begin = number(memory);
    range.bytes = bytes;
    range.device = this_thread().device;
    range.pinned = std::shared_ptr<std::byte>(memory, [](std::byte* held) { std::free(held); });
    state().addresses.add(std::move(range));
    *address = memory;
    return cudaSuccess;
  });
}

}  // namespace
}  // namespace harvest::fake_cuda::internal

using namespace harvest::fake_cuda;            // NOLINT: the functions below are CUDA's, in no namespace
using namespace harvest::fake_cuda::internal;  // NOLINT

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  return runtime_call("cudaMemGetInfo", kContext, [&](Lock& lock) -> cudaError_t {
    if (free_bytes == nullptr || total_bytes == nullptr) return cudaErrorInvalidValue;
    const int device = this_thread().device;
    if (const auto slow_us = state().faults.slow_query_us; slow_us != 0) {
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(slow_us));
      lock.lock();
    }
    *total_bytes = state().devices[static_cast<std::size_t>(device)].description.total_bytes;
    *free_bytes = *total_bytes - state().accounts.used(device);
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  return runtime_call("cudaMalloc", kContext | kUnsafeInCapture,
                      [&](Lock&) { return allocate_on_device(address, bytes); });
}

cudaError_t cudaFree(void* address) {
  return runtime_call("cudaFree", kContext | kUnsafeInCapture, [&](Lock& lock) -> cudaError_t {
    if (address == nullptr) return cudaSuccess;
    auto found = find_range(address, RangeKind::device);
    if (found == state().addresses.ranges.end()) {
      return state().refuse(cudaErrorInvalidValue, "cudaFree of what cudaMalloc did not give");
    }
    const int device = found->second.device;
    if (const auto error = health(device); error != cudaSuccess) return error;
    if (state().machine.free_waits) {
      state().synchronise_device(lock, device);
      found = find_range(address, RangeKind::device);
      if (found == state().addresses.ranges.end()) return cudaErrorInvalidValue;
    }
    state().addresses.give_back(found->first, found->second.bytes);
    state().addresses.ranges.erase(found);
    return health(device);
  });
}

cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned flags) {
  return allocate_pinned("cudaHostAlloc", address, bytes, flags);
}

cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
  return allocate_pinned("cudaMallocHost", address, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* address) {
  return runtime_call("cudaFreeHost", kContext | kUnsafeInCapture, [&](Lock&) -> cudaError_t {
    if (address == nullptr) return cudaSuccess;
    const auto found = find_range(address, RangeKind::pinned);
    if (found == state().addresses.ranges.end()) {
      return state().refuse(cudaErrorInvalidValue, "cudaFreeHost of what is not pinned memory of CUDA's");
    }
    state().addresses.ranges.erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaHostRegister(void* address, std::size_t bytes, unsigned flags) {
  return runtime_call("cudaHostRegister", kContext | kUnsafeInCapture, [&](Lock&) -> cudaError_t {
    constexpr unsigned kFlags = cudaHostRegisterPortable | cudaHostRegisterMapped | cudaHostRegisterReadOnly;
    if (address == nullptr || bytes == 0 || (flags & ~kFlags) != 0) return cudaErrorInvalidValue;
    if (state().faults.on_allocation()) return cudaErrorMemoryAllocation;
    if (bytes >= state().machine.host_register_limit_bytes) {
      return state().refuse(cudaErrorInvalidValue,
                            "a registration of " + std::to_string(bytes) + " bytes (rule 18)");
    }
    // What is pinned is whole pages, and no page twice.
    const auto begin = number(address) / kPageBytes * kPageBytes;
    const auto end = round_up(number(address) + bytes, kPageBytes);
    for (const auto& [other_begin, other] : state().addresses.ranges) {
      if (other.kind != RangeKind::registered) continue;
      if (other_begin / kPageBytes * kPageBytes < end && begin < round_up(other.end(), kPageBytes)) {
        return state().refuse(cudaErrorHostMemoryAlreadyRegistered, "a page that is registered already");
      }
    }
    const auto found = state().addresses.find(number(address), bytes).found;
    if (found == Found::stale)
      return state().refuse(cudaErrorInvalidValue, "a device's address registered as the host's");
    if (found != Found::pageable) {
      return state().refuse(cudaErrorHostMemoryAlreadyRegistered, "memory that CUDA has already");
    }
    Range range;
    range.kind = RangeKind::registered;
    range.begin = number(address);
    range.bytes = bytes;
    range.device = this_thread().device;
    state().addresses.add(std::move(range));
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* address) {
  return runtime_call("cudaHostUnregister", kContext | kUnsafeInCapture, [&](Lock&) -> cudaError_t {
    const auto found = find_range(address, RangeKind::registered);
    if (found == state().addresses.ranges.end()) {
      return state().refuse(cudaErrorHostMemoryNotRegistered, "cudaHostUnregister of what is not registered");
    }
    state().addresses.ranges.erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaHostGetDevicePointer(void** device_address, void* address, unsigned flags) {
  return runtime_call("cudaHostGetDevicePointer", kContext, [&](Lock&) -> cudaError_t {
    if (device_address == nullptr || flags != 0) return cudaErrorInvalidValue;
    const auto found = state().addresses.find(number(address), 1);
    if (found.found != Found::range || !found.range->is_host()) return cudaErrorInvalidValue;
    *device_address = address;  // one address space for all
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  return runtime_call("cudaPointerGetAttributes", kContext, [&](Lock&) -> cudaError_t {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    *attributes = {};
    attributes->device = -2;  // what CUDA says of memory that it does not know
    const auto found = state().addresses.find(number(address), 1);
    if (found.found != Found::range) {
      attributes->type = cudaMemoryTypeUnregistered;
      attributes->hostPointer = found.found == Found::pageable ? pointer(number(address)) : nullptr;
      return cudaSuccess;
    }
    const bool is_host = found.range->is_host();
    attributes->type = is_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = found.range->device;
    attributes->devicePointer =
        may_access(this_thread().device, *found.range, false) ? pointer(number(address)) : nullptr;
    attributes->hostPointer = is_host ? pointer(number(address)) : nullptr;
    return cudaSuccess;
  });
}
