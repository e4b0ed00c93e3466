// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/copy_kernel.hpp"

/// `__grid_constant__` lets the runs be read where the launch put them, in constant memory, instead of from
/// a copy of 4 KiB that each thread would make.
extern "C" __global__ void __launch_bounds__(harvest::cuda::kThreadsPerBlock)
    harvest_copy_runs(const __grid_constant__ harvest::cuda::RunBatch batch) {
  using namespace harvest::cuda;
  const std::uint32_t warp = blockIdx.x * kWarpsPerBlock + threadIdx.x / kThreadsPerWarp;
  const Lane lane{threadIdx.x % kThreadsPerWarp, kThreadsPerWarp};
  copy_runs(batch, warp, gridDim.x * kWarpsPerBlock, lane);
}
