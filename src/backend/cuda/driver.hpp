// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <harvest/status.hpp>

/// The driver's functions that the runtime does not have. They are asked for by name at run time, so that
/// nothing is linked with libcuda and a machine without a driver still starts the program.
namespace harvest::cuda {

struct Driver {
  // Virtual memory.
  decltype(&::cuMemGetAllocationGranularity) get_allocation_granularity = nullptr;
  decltype(&::cuMemCreate) create = nullptr;
  decltype(&::cuMemRelease) release = nullptr;
  decltype(&::cuMemAddressReserve) reserve = nullptr;
  decltype(&::cuMemAddressFree) free_address = nullptr;
  decltype(&::cuMemMap) map = nullptr;
  decltype(&::cuMemUnmap) unmap = nullptr;
  decltype(&::cuMemSetAccess) set_access = nullptr;
  // Kernels.
  decltype(&::cuLibraryLoadData) load_library = nullptr;
  decltype(&::cuLibraryUnload) unload_library = nullptr;
  decltype(&::cuLibraryGetKernel) get_kernel = nullptr;
  decltype(&::cuLaunchKernel) launch_kernel = nullptr;  ///< takes a CUkernel as its CUfunction
  // Errors.
  decltype(&::cuGetErrorName) error_name = nullptr;
  decltype(&::cuGetErrorString) error_string = nullptr;

  [[nodiscard]] bool has_virtual_memory() const { return set_access != nullptr; }
  [[nodiscard]] bool has_kernels() const { return launch_kernel != nullptr; }
};

/// The driver of this process, looked up once. Functions that it does not have are null; a group is there
/// as a whole or not at all.
[[nodiscard]] const Driver& driver();

}  // namespace harvest::cuda
