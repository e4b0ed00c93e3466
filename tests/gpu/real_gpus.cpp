// SPDX-License-Identifier: Apache-2.0
#include "gpu/real_gpus.hpp"

#include <harvest/loopback.hpp>
#include <harvest/topology.hpp>

#include <utility>

namespace harvest::test {

Result<RealGpus> open_gpus(CudaOptions options) {
  auto cuda = make_cuda_backend(std::move(options));
  if (!cuda) return tl::unexpected(cuda.error());
  RealGpus gpus{std::move(*cuda), nullptr};
  const auto topology = Topology::probe(*gpus.cuda, false);
  if (!topology) return tl::unexpected(topology.error());
  if (topology->usable_as_peer(1, 0)) return gpus;
  auto loopback = make_loopback_backend(*gpus.cuda, 0);
  if (!loopback) return tl::unexpected(loopback.error());
  gpus.loopback = std::move(*loopback);
  return gpus;
}

std::string why_no_gpu() {
  static const std::string why = [] {
    const auto gpus = open_gpus();
    return gpus ? std::string() : "needs a GPU: " + gpus.error().message;
  }();
  return why;
}

}  // namespace harvest::test
