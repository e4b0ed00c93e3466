// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

namespace harvest::fake_cuda {

/// A driver function by name, by the call that this toolkit has for it; before 12.5 that knows no version.
inline cudaError_t ask_driver(const char* name, void** function, cudaDriverEntryPointQueryResult* result,
                              [[maybe_unused]] unsigned version = 12000) {
#if CUDART_VERSION >= 12050
  return cudaGetDriverEntryPointByVersion(name, function, version, cudaEnableDefault, result);
#else
  return cudaGetDriverEntryPoint(name, function, cudaEnableDefault, result);
#endif
}

}  // namespace harvest::fake_cuda
