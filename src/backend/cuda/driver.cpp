// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/driver.hpp"

#include <cuda_runtime_api.h>

namespace harvest::cuda {
namespace {

/// All functions of `Driver` are of this version or older, and keep their signature up to 13.x.
constexpr unsigned kVersion = 12000;

/// False, and null in `function`, where this driver does not have it.
template <typename Function>
bool look_up(const char* name, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult state = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &state);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &state);
#endif
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  if (error != cudaSuccess || state != cudaDriverEntryPointSuccess) found = nullptr;
  function = reinterpret_cast<Function>(found);
  return found != nullptr;
}

Driver look_up_all() {
  Driver all;
  Driver memory;
  if (look_up("cuMemGetAllocationGranularity", memory.get_allocation_granularity) &&
      look_up("cuMemCreate", memory.create) && look_up("cuMemRelease", memory.release) &&
      look_up("cuMemAddressReserve", memory.reserve) && look_up("cuMemAddressFree", memory.free_address) &&
      look_up("cuMemMap", memory.map) && look_up("cuMemUnmap", memory.unmap) &&
      look_up("cuMemSetAccess", memory.set_access))
    all = memory;

  Driver kernels = all;
  if (look_up("cuLibraryLoadData", kernels.load_library) &&
      look_up("cuLibraryUnload", kernels.unload_library) &&
      look_up("cuLibraryGetKernel", kernels.get_kernel) && look_up("cuLaunchKernel", kernels.launch_kernel))
    all = kernels;

  Driver errors = all;
  if (look_up("cuGetErrorName", errors.error_name) && look_up("cuGetErrorString", errors.error_string))
    all = errors;
  return all;
}

}  // namespace

const Driver& driver() {
  static const Driver found = look_up_all();
  return found;
}

}  // namespace harvest::cuda
