// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/host_copies.hpp"

#include <cstring>

namespace harvest::cuda {

void CUDART_CB HostCopies::run(void* job) {
  auto& work = *static_cast<Job*>(job);
  for (const Copy& copy : work.runs) std::memcpy(copy.destination, copy.source, copy.bytes);
  work.is_done.store(true, std::memory_order_release);
}

cudaError_t HostCopies::submit(cudaStream_t stream, std::span<const Copy> runs) {
  auto job = std::make_unique<Job>();
  job->runs.assign(runs.begin(), runs.end());
  const cudaError_t error = cudaLaunchHostFunc(stream, run, job.get());
  if (error != cudaSuccess) return error;
  const MutexLock lock(mutex_);
  std::erase_if(
      jobs_, [](const std::unique_ptr<Job>& past) { return past->is_done.load(std::memory_order_acquire); });
  jobs_.push_back(std::move(job));
  return cudaSuccess;
}

}  // namespace harvest::cuda
