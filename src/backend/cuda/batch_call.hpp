// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/descriptor_pool.hpp"

namespace harvest::cuda {

/// Whether the toolkit that this was built with has cudaMemcpyBatchAsync: 12.8 and later.
#if CUDART_VERSION >= 12080
inline constexpr bool kHasBatchCall = true;
#else
inline constexpr bool kHasBatchCall = false;
#endif

/// cudaMemcpyBatchAsync. Where there is none: cudaErrorNotSupported, as a driver without it says.
[[nodiscard]] cudaError_t call_batch(BatchDescriptors& descriptors, cudaStream_t stream);

}  // namespace harvest::cuda
