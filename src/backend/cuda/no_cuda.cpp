// SPDX-License-Identifier: Apache-2.0
#include <harvest/cuda.hpp>

namespace harvest {

bool has_cuda() {
  return false;
}

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions&) {
  return fail(ErrorCode::not_supported,
              "this build has no CUDA backend: it was configured without a CUDA toolkit (HARVEST_CUDA)");
}

}  // namespace harvest
