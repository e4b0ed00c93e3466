// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

/// Another process on the GPUs: `cuda_owner DEVICE BYTES` allocates and gives back. Its status is CUDA's
/// answer.
int main(int argc, char** argv) {
  if (argc != 3) return 64;
  void* memory = nullptr;
  cudaError_t error = cudaSetDevice(std::atoi(argv[1]));
  if (error == cudaSuccess) error = cudaMalloc(&memory, std::strtoull(argv[2], nullptr, 10));
  if (error == cudaSuccess) error = cudaFree(memory);
  return static_cast<int>(error);
}
