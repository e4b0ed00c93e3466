// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fake_cuda/driver_entry.hpp"
#include "fake_cuda/trial.hpp"

/// The driver's functions for the tests, asked for by name as a program does that is not linked with the
/// driver.
namespace harvest::fake_cuda {

template <typename Function>
void find_driver_function(const char* name, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  EXPECT_CUDA(cudaSuccess, ask_driver(name, &found, &result));
  EXPECT_EQ(result, cudaDriverEntryPointSuccess) << name;
  function = reinterpret_cast<Function>(found);
}

struct DriverCalls {
  decltype(&::cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&::cuMemCreate) create = nullptr;
  decltype(&::cuMemRelease) release = nullptr;
  decltype(&::cuMemAddressReserve) reserve = nullptr;
  decltype(&::cuMemAddressFree) free_address = nullptr;
  decltype(&::cuMemMap) map = nullptr;
  decltype(&::cuMemUnmap) unmap = nullptr;
  decltype(&::cuMemSetAccess) set_access = nullptr;
  decltype(&::cuMemExportToShareableHandle) export_handle = nullptr;
  decltype(&::cuMemImportFromShareableHandle) import_handle = nullptr;
  decltype(&::cuMemRetainAllocationHandle) retain = nullptr;
  decltype(&::cuMemGetAddressRange) address_range = nullptr;

  DriverCalls() {
    find_driver_function("cuMemGetAllocationGranularity", granularity);
    find_driver_function("cuMemCreate", create);
    find_driver_function("cuMemRelease", release);
    find_driver_function("cuMemAddressReserve", reserve);
    find_driver_function("cuMemAddressFree", free_address);
    find_driver_function("cuMemMap", map);
    find_driver_function("cuMemUnmap", unmap);
    find_driver_function("cuMemSetAccess", set_access);
    find_driver_function("cuMemExportToShareableHandle", export_handle);
    find_driver_function("cuMemImportFromShareableHandle", import_handle);
    find_driver_function("cuMemRetainAllocationHandle", retain);
    find_driver_function("cuMemGetAddressRange", address_range);
  }

  [[nodiscard]] static CUmemAllocationProp properties(int device, bool shareable = false) {
    CUmemAllocationProp prop{};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    if (shareable) prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    return prop;
  }

  [[nodiscard]] CUresult allow(CUdeviceptr address, std::size_t bytes, int device,
                               CUmemAccess_flags flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE) const {
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device;
    access.flags = flags;
    return set_access(address, bytes, &access, 1);
  }
};

/// Physical memory of a device, mapped at an address of its own, accessible to the device itself.
class Segment {
 public:
  Segment(int device, std::uint64_t bytes, bool shareable = false) : bytes_(bytes) {
    const auto prop = DriverCalls::properties(device, shareable);
    EXPECT_CUDA(CUDA_SUCCESS, cu.create(&handle_, bytes, &prop, 0));
    EXPECT_CUDA(CUDA_SUCCESS, cu.reserve(&address_, bytes, 0, 0, 0));
    EXPECT_CUDA(CUDA_SUCCESS, cu.map(address_, bytes, 0, handle_, 0));
    EXPECT_CUDA(CUDA_SUCCESS, cu.allow(address_, bytes, device));
  }
  ~Segment() {
    unmap();
    release();
    (void)cu.free_address(address_, bytes_);
  }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  CUresult unmap() { return cu.unmap(address_, bytes_); }
  void release() {
    if (handle_ != 0) (void)cu.release(handle_);
    handle_ = 0;
  }
  [[nodiscard]] CUdeviceptr address() const { return address_; }
  [[nodiscard]] void* get() const { return reinterpret_cast<void*>(address_); }
  [[nodiscard]] CUmemGenericAllocationHandle handle() const { return handle_; }

  DriverCalls cu;

 private:
  std::uint64_t bytes_;
  CUmemGenericAllocationHandle handle_ = 0;
  CUdeviceptr address_ = 0;
};

}  // namespace harvest::fake_cuda
