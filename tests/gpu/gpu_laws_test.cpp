// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "backend/backend_laws_suite.hpp"
#include "gpu/real_gpus.hpp"

/// The laws of a backend on real GPUs, in each way that the CUDA backend can work.
namespace harvest::test {
namespace {

/// Keeps what a subject's backend stands on.
Subject subject(CudaOptions options) {
  auto gpus = std::make_shared<RealGpus>(open_gpus(std::move(options)).value());
  Subject made;
  made.backend = gpus->loopback ? std::move(gpus->loopback) : std::move(gpus->cuda);
  made.keeps_alive = gpus;
  made.host = make_host_memory();
  return made;
}

std::vector<BackendEntry> entries() {
  std::vector<BackendEntry> all;
  const auto add = [&](const char* name, const CudaOptions& options) {
    all.push_back({name, [=] { return subject(options); }, why_no_gpu});
  };
  add("defaults", {});
  add("one_by_one", {.use_kernels = false, .use_batches = false});
  add("batches", {.use_kernels = false});
  add("kernels", {.use_batches = false});
  add("cuda_malloc", {.use_virtual_memory = false});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Gpu, BackendLaws, testing::ValuesIn(entries()), name_of_entry);

}  // namespace
}  // namespace harvest::test
