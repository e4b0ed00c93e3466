// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "fake_cuda/call.hpp"
#include "fake_cuda/driver_functions.hpp"
#include "fake_cuda/machine.hpp"

/// The driver's virtual memory (rules 1, 2 and 3).
namespace harvest::fake_cuda::internal {
namespace {

bool is_multiple(std::uint64_t value) {
  return value != 0 && value % state().machine.granularity_bytes == 0;
}

/// What memory can be made of; cudaErrorInvalidDevice and the like where it cannot.
cudaError_t check_properties(const CUmemAllocationProp* prop) {
  if (prop == nullptr || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED) return cudaErrorInvalidValue;
  if (prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return state().refuse(cudaErrorNotSupported, "the fake has virtual memory of devices alone");
  }
  if (!state().is_device(prop->location.id)) return cudaErrorInvalidDevice;
  const auto& device = state().devices[static_cast<std::size_t>(prop->location.id)];
  if (!device.description.virtual_memory) return cudaErrorNotSupported;
  if (prop->requestedHandleTypes == CU_MEM_HANDLE_TYPE_NONE) return cudaSuccess;
  if (prop->requestedHandleTypes != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || device.description.mig) {
    return state().refuse(cudaErrorNotSupported, "memory that cannot be shared in this way (rule 20)");
  }
  return cudaSuccess;
}

/// The mappings of [begin, begin + bytes), where they are all of it and none goes beyond.
std::optional<std::vector<Range*>> whole_mappings(std::uint64_t begin, std::uint64_t bytes) {
  std::vector<Range*> mappings;
  auto& ranges = state().addresses.ranges;
  for (auto at = begin; at < begin + bytes;) {
    const auto found = ranges.find(at);
    if (found == ranges.end() || found->second.kind != RangeKind::mapping) return std::nullopt;
    if (found->second.end() > begin + bytes) return std::nullopt;
    mappings.push_back(&found->second);
    at = found->second.end();
  }
  return mappings;
}

std::uint64_t add_handle(std::shared_ptr<Physical> physical) {
  const auto number = state().next_handle++;
  state().addresses.handles[number] = {std::move(physical)};
  return number;
}

cudaError_t check_access(const CUmemAccessDesc& access, const std::vector<Range*>& mappings) {
  if (access.location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return state().refuse(cudaErrorNotSupported, "access for devices alone is in the fake");
  }
  const int device = access.location.id;
  if (!state().is_device(device)) return cudaErrorInvalidDevice;
  if (const auto error = health(device); error != cudaSuccess) return error;
  for (const auto* mapping : mappings) {
    if (mapping->device == device || can_access_peer(state().machine, device, mapping->device)) continue;
    return state().refuse(cudaErrorInvalidDevice,
                          "access to a device's memory for one that cannot be its peer");
  }
  return cudaSuccess;
}

}  // namespace

CUresult mem_get_allocation_granularity(std::size_t* granularity, const CUmemAllocationProp* prop,
                                        CUmemAllocationGranularity_flags option) {
  return driver_call("cuMemGetAllocationGranularity", kMachine, [&](Lock&) -> cudaError_t {
    if (granularity == nullptr ||
        (option != CU_MEM_ALLOC_GRANULARITY_MINIMUM && option != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)) {
      return cudaErrorInvalidValue;
    }
    if (const auto error = check_properties(prop); error != cudaSuccess) return error;
    *granularity = state().machine.granularity_bytes;
    return cudaSuccess;
  });
}

CUresult mem_create(CUmemGenericAllocationHandle* handle, std::size_t bytes, const CUmemAllocationProp* prop,
                    unsigned long long flags) {
  return driver_call("cuMemCreate", kMachine, [&](Lock&) -> cudaError_t {
    if (handle == nullptr || flags != 0) return cudaErrorInvalidValue;
    if (const auto error = check_properties(prop); error != cudaSuccess) return error;
    if (!is_multiple(bytes))
      return state().refuse(cudaErrorInvalidValue, "cuMemCreate: no multiple of the granularity");
    if (const auto error = health(prop->location.id); error != cudaSuccess) return error;
    if (state().faults.on_allocation()) return cudaErrorMemoryAllocation;
    auto& accounts = state().accounts;
    auto physical = prop->requestedHandleTypes == CU_MEM_HANDLE_TYPE_NONE
                        ? make_physical(accounts, prop->location.id, bytes)
                        : make_shareable(state().addresses, accounts, prop->location.id, bytes);
    if (physical == nullptr)
      return state().refuse(cudaErrorMemoryAllocation, "cuMemCreate: the device has not as much");
    *handle = add_handle(std::move(physical));
    return cudaSuccess;
  });
}

CUresult mem_release(CUmemGenericAllocationHandle handle) {
  return driver_call("cuMemRelease", kMachine, [&](Lock&) -> cudaError_t {
    const auto found = state().addresses.handles.find(handle);
    if (found == state().addresses.handles.end())
      return state().refuse(cudaErrorInvalidValue, "no such memory handle");
    const int device = found->second.physical->device;
    if (--found->second.references == 0) state().addresses.handles.erase(found);
    return health(device);
  });
}

CUresult mem_address_reserve(CUdeviceptr* address, std::size_t bytes, std::size_t alignment, CUdeviceptr,
                             unsigned long long flags) {
  return driver_call("cuMemAddressReserve", kMachine, [&](Lock&) -> cudaError_t {
    const bool is_power = (alignment & (alignment - 1)) == 0;
    if (address == nullptr || flags != 0 || !is_multiple(bytes) || !is_power) return cudaErrorInvalidValue;
    const auto begin = state().addresses.reserve(
        bytes, std::max<std::uint64_t>(alignment, state().machine.granularity_bytes));
    if (begin == 0) return cudaErrorMemoryAllocation;
    state().addresses.reservations[begin] = bytes;
    *address = begin;
    return cudaSuccess;
  });
}

CUresult mem_address_free(CUdeviceptr address, std::size_t bytes) {
  return driver_call("cuMemAddressFree", kMachine, [&](Lock&) -> cudaError_t {
    const auto found = state().addresses.reservations.find(address);
    if (found == state().addresses.reservations.end() || found->second != bytes) {
      return state().refuse(cudaErrorInvalidValue, "cuMemAddressFree of what was not reserved like that");
    }
    if (state().addresses.overlaps(address, bytes)) {
      return state().refuse(cudaErrorInvalidValue, "cuMemAddressFree of what is mapped");
    }
    state().addresses.reservations.erase(found);
    state().addresses.give_back(address, bytes);
    return cudaSuccess;
  });
}

CUresult mem_map(CUdeviceptr address, std::size_t bytes, std::size_t offset,
                 CUmemGenericAllocationHandle handle, unsigned long long flags) {
  return driver_call("cuMemMap", kMachine, [&](Lock&) -> cudaError_t {
    auto& addresses = state().addresses;
    const auto found = addresses.handles.find(handle);
    if (found == addresses.handles.end())
      return state().refuse(cudaErrorInvalidValue, "no such memory handle");
    const auto& physical = found->second.physical;
    if (const auto error = health(physical->device); error != cudaSuccess) return error;
    if (flags != 0 || offset != 0 || !is_multiple(bytes) || !is_multiple(address) ||
        bytes > physical->bytes) {
      return state().refuse(cudaErrorInvalidValue,
                            "cuMemMap: offset, size or address is not one that can be (rule 3)");
    }
    if (!addresses.is_reserved(address, bytes) || addresses.overlaps(address, bytes)) {
      return state().refuse(cudaErrorInvalidValue,
                            "cuMemMap onto what is not reserved, or mapped already (rule 3)");
    }
    Range range;
    range.kind = RangeKind::mapping;
    range.begin = address;
    range.bytes = bytes;
    range.device = physical->device;
    range.handle = handle;
    range.physical = physical;
    addresses.add(std::move(range));
    return cudaSuccess;
  });
}

CUresult mem_unmap(CUdeviceptr address, std::size_t bytes) {
  return driver_call("cuMemUnmap", kMachine, [&](Lock&) -> cudaError_t {
    const auto mappings = whole_mappings(address, bytes);
    if (!mappings || mappings->empty()) {
      return state().refuse(cudaErrorInvalidValue, "cuMemUnmap of what is not whole mappings (rule 3)");
    }
    const int device = mappings->front()->device;
    auto& ranges = state().addresses.ranges;
    // It waits for nothing: work that still touches the memory will not find it (rule 1).
    ranges.erase(ranges.find(address), ranges.lower_bound(address + bytes));
    return health(device);
  });
}

CUresult mem_set_access(CUdeviceptr address, std::size_t bytes, const CUmemAccessDesc* access,
                        std::size_t count) {
  return driver_call("cuMemSetAccess", kMachine, [&](Lock&) -> cudaError_t {
    if (access == nullptr || count == 0) return cudaErrorInvalidValue;
    const auto mappings = whole_mappings(address, bytes);
    if (!mappings || mappings->empty()) {
      return state().refuse(cudaErrorInvalidValue, "cuMemSetAccess to what is not whole mappings");
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (const auto error = check_access(access[i], *mappings); error != cudaSuccess) return error;
    }
    for (std::size_t i = 0; i < count; ++i) {
      for (auto* mapping : *mappings) {
        if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_NONE)
          mapping->access.erase(access[i].location.id);
        else
          mapping->access[access[i].location.id] = access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      }
    }
    return cudaSuccess;
  });
}

CUresult mem_export(void* shareable, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                    unsigned long long flags) {
  return driver_call("cuMemExportToShareableHandle", kMachine, [&](Lock&) -> cudaError_t {
    const auto found = state().addresses.handles.find(handle);
    if (found == state().addresses.handles.end() || shareable == nullptr || flags != 0 ||
        type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
      return cudaErrorInvalidValue;
    }
    if (found->second.physical->fd < 0) {
      return state().refuse(cudaErrorInvalidValue, "memory that was not made to be shared");
    }
    const int fd = export_physical(*found->second.physical);
    if (fd < 0) return cudaErrorOperatingSystem;
    *static_cast<int*>(shareable) = fd;
    return cudaSuccess;
  });
}

CUresult mem_import(CUmemGenericAllocationHandle* handle, void* os_handle, CUmemAllocationHandleType type) {
  return driver_call("cuMemImportFromShareableHandle", kMachine, [&](Lock&) -> cudaError_t {
    if (handle == nullptr || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return cudaErrorInvalidValue;
    const auto fd = static_cast<int>(reinterpret_cast<std::uintptr_t>(os_handle));
    auto physical = import_physical(state().addresses, state().accounts, fd);
    if (physical == nullptr || !state().is_device(physical->device)) {
      return state().refuse(cudaErrorInvalidValue, "no descriptor of a device's memory");
    }
    *handle = add_handle(std::move(physical));
    return cudaSuccess;
  });
}

CUresult mem_retain(CUmemGenericAllocationHandle* handle, void* address) {
  return driver_call("cuMemRetainAllocationHandle", kMachine, [&](Lock&) -> cudaError_t {
    const auto found = state().addresses.find(reinterpret_cast<std::uintptr_t>(address), 1);
    if (handle == nullptr || found.found != Found::range || found.range->kind != RangeKind::mapping) {
      return cudaErrorInvalidValue;
    }
    auto& handles = state().addresses.handles;
    if (const auto known = handles.find(found.range->handle); known != handles.end()) {
      ++known->second.references;
      *handle = known->first;
    } else {
      *handle = add_handle(found.range->physical);
    }
    return cudaSuccess;
  });
}

CUresult mem_get_address_range(CUdeviceptr* begin, std::size_t* bytes, CUdeviceptr address) {
  return driver_call("cuMemGetAddressRange", kContext, [&](Lock&) -> cudaError_t {
    const auto found = state().addresses.find(address, 1);
    if (found.found != Found::range) return static_cast<cudaError_t>(CUDA_ERROR_NOT_FOUND);
    if (begin != nullptr) *begin = found.range->begin;
    if (bytes != nullptr) *bytes = found.range->bytes;
    return cudaSuccess;
  });
}

}  // namespace harvest::fake_cuda::internal
