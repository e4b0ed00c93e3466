// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <harvest/status.hpp>

#include <string_view>

/// CUDA's errors as ours, with CUDA's own name and text.
namespace harvest::cuda {

/// True for errors after which nothing works in the process's context on that device any more.
[[nodiscard]] bool is_sticky(cudaError_t error);
[[nodiscard]] bool is_sticky(CUresult error);

/// `what` says what was tried: "cudaMemcpyAsync of 4096 bytes to device 1". Sticky errors are `unavailable`.
[[nodiscard]] Error to_error(cudaError_t error, std::string_view what);
[[nodiscard]] Error to_error(CUresult error, std::string_view what);

/// Success, or the error. Takes a failed call's error out of the runtime's memory of the last one, where
/// the next check of somebody else would find it (docs/cuda.md, rule 18).
[[nodiscard]] Status check(cudaError_t error, std::string_view what);
[[nodiscard]] Status check(CUresult error, std::string_view what);

}  // namespace harvest::cuda
