// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/cuda.hpp>
#include <harvest/status.hpp>

#include <memory>
#include <string>

/// The GPUs of the machine that the tests run on.
namespace harvest::test {

/// A backend whose device 1 is a peer of device 0: of two GPUs that reach each other, else one in loopback.
struct RealGpus {
  std::unique_ptr<Backend> cuda;
  std::unique_ptr<Backend> loopback;  ///< over `cuda`, before which it ends

  [[nodiscard]] Backend& backend() const { return loopback ? *loopback : *cuda; }
};

/// Errors: those of `make_cuda_backend`, which say why there is no GPU.
[[nodiscard]] Result<RealGpus> open_gpus(CudaOptions options = {});

/// Why these tests have nothing to run on; empty on a machine with a GPU.
[[nodiscard]] std::string why_no_gpu();

}  // namespace harvest::test
