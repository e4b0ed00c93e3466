// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <harvest/status.hpp>

#include <cstdint>

#include "backend/cuda/copy_kernel.hpp"

namespace harvest::cuda {

/// The copy kernel of this process, loaded by the first call that can and never unloaded: a graph that the
/// caller captured may launch it when no backend is left. Thread-safe; may block while it loads. Requires:
/// CUDA is initialised. Errors: not_supported (a build without nvcc, a driver without the functions; the
/// message says which), or the driver's.
[[nodiscard]] Result<CUkernel> load_copy_kernel();

/// Launches it on the stream's device, which is current, with at most `max_blocks` blocks. Legal while the
/// stream is captured. `batch` is not needed any more when this returns.
[[nodiscard]] CUresult launch_copy_kernel(CUkernel kernel, const RunBatch& batch, std::uint32_t max_blocks,
                                          CUstream stream);

}  // namespace harvest::cuda
