// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstddef>

/// The driver's functions. They have no symbols of their own: they are asked for by name, as those of a
/// driver that is found at run time.
namespace harvest::fake_cuda::internal {

// Virtual memory.
CUresult mem_get_allocation_granularity(std::size_t* granularity, const CUmemAllocationProp* prop,
                                        CUmemAllocationGranularity_flags option);
CUresult mem_create(CUmemGenericAllocationHandle* handle, std::size_t bytes, const CUmemAllocationProp* prop,
                    unsigned long long flags);
CUresult mem_release(CUmemGenericAllocationHandle handle);
CUresult mem_address_reserve(CUdeviceptr* address, std::size_t bytes, std::size_t alignment, CUdeviceptr hint,
                             unsigned long long flags);
CUresult mem_address_free(CUdeviceptr address, std::size_t bytes);
CUresult mem_map(CUdeviceptr address, std::size_t bytes, std::size_t offset,
                 CUmemGenericAllocationHandle handle, unsigned long long flags);
CUresult mem_unmap(CUdeviceptr address, std::size_t bytes);
CUresult mem_set_access(CUdeviceptr address, std::size_t bytes, const CUmemAccessDesc* access,
                        std::size_t count);
CUresult mem_export(void* shareable, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                    unsigned long long flags);
CUresult mem_import(CUmemGenericAllocationHandle* handle, void* os_handle, CUmemAllocationHandleType type);
CUresult mem_retain(CUmemGenericAllocationHandle* handle, void* address);
CUresult mem_get_address_range(CUdeviceptr* begin, std::size_t* bytes, CUdeviceptr address);

// Kernels.
CUresult library_load_data(CUlibrary* library, const void* code, CUjit_option* jit_options, void** jit_values,
                           unsigned jit_count, CUlibraryOption* options, void** values, unsigned count);
CUresult library_unload(CUlibrary library);
CUresult library_get_kernel(CUkernel* kernel, CUlibrary library, const char* name);
CUresult launch_kernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                       CUstream stream, void** parameters, void** extra);

// Errors.
CUresult get_error_name(CUresult error, const char** name);
CUresult get_error_string(CUresult error, const char** text);

}  // namespace harvest::fake_cuda::internal
