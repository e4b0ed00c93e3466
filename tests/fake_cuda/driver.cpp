// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "fake_cuda/call.hpp"
#include "fake_cuda/driver_functions.hpp"

/// Driver functions by name.
namespace harvest::fake_cuda::internal {
namespace {

struct Entry {
  std::string_view name;
  void* function;
  int since;  ///< the driver's version that has it first
};

/// Checked against the header's signature.
template <typename Signature>
void* entry(Signature* function) {
  return reinterpret_cast<void*>(function);
}

#define HARVEST_FAKE_DRIVER_ENTRY(cu_name, function, since) \
  Entry {                                                   \
#cu_name, entry < decltype(::cu_name)>(function), since \
  }

const std::array kEntries{
    HARVEST_FAKE_DRIVER_ENTRY(cuMemGetAllocationGranularity, mem_get_allocation_granularity, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemCreate, mem_create, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemRelease, mem_release, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemAddressReserve, mem_address_reserve, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemAddressFree, mem_address_free, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemMap, mem_map, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemUnmap, mem_unmap, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemSetAccess, mem_set_access, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemExportToShareableHandle, mem_export, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemImportFromShareableHandle, mem_import, 10020),
    HARVEST_FAKE_DRIVER_ENTRY(cuMemRetainAllocationHandle, mem_retain, 11000),
    Entry{"cuMemGetAddressRange", entry<decltype(::cuMemGetAddressRange)>(mem_get_address_range), 3020},
    HARVEST_FAKE_DRIVER_ENTRY(cuLibraryLoadData, library_load_data, 12000),
    HARVEST_FAKE_DRIVER_ENTRY(cuLibraryUnload, library_unload, 12000),
    HARVEST_FAKE_DRIVER_ENTRY(cuLibraryGetKernel, library_get_kernel, 12000),
    HARVEST_FAKE_DRIVER_ENTRY(cuLaunchKernel, launch_kernel, 4000),
    HARVEST_FAKE_DRIVER_ENTRY(cuGetErrorName, get_error_name, 6000),
    HARVEST_FAKE_DRIVER_ENTRY(cuGetErrorString, get_error_string, 6000),
};

#undef HARVEST_FAKE_DRIVER_ENTRY

cudaError_t find_entry(const char* symbol, void** function, unsigned version,
                       cudaDriverEntryPointQueryResult* result) {
  if (symbol == nullptr || function == nullptr) return cudaErrorInvalidValue;
  *function = nullptr;
  auto found = cudaDriverEntryPointSymbolNotFound;
  for (const auto& known : kEntries) {
    if (known.name != symbol) continue;
    found = known.since <= static_cast<int>(version) ? cudaDriverEntryPointSuccess
                                                     : cudaDriverEntryPointVersionNotSufficent;
    if (found == cudaDriverEntryPointSuccess) *function = known.function;
  }
  if (result != nullptr) *result = found;
  return cudaSuccess;
}

}  // namespace
}  // namespace harvest::fake_cuda::internal

using namespace harvest::fake_cuda::internal;  // NOLINT: the functions below are CUDA's, in no namespace

cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
  return runtime_call("cudaGetDriverEntryPoint", kMachine,
                      [&](Lock&) { return find_entry(symbol, function, CUDART_VERSION, result); });
}

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version,
                                             unsigned long long, cudaDriverEntryPointQueryResult* result) {
  return runtime_call("cudaGetDriverEntryPointByVersion", kMachine,
                      [&](Lock&) { return find_entry(symbol, function, version, result); });
}
#endif
