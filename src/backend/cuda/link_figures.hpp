// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/cuda/nvml.hpp"

/// What links can do before anybody measured them: nominal figures from the number and generation of the
/// links, times what others measured of the nominal rate, with the source beside each. Pure.
namespace harvest::cuda {

struct GpuFacts {
  std::string bus_id;             ///< normal, see `normal_bus_id`
  int compute_major = 0;          ///< of the compute capability: says the generation
  double memory_bytes_per_s = 0;  ///< of its own memory, reads and writes together; 0 if not known
  std::optional<NvmlDetails> nvml{};
};

/// What the runtime says about one GPU reaching another's memory.
struct PairFacts {
  bool access = false;
  bool native_atomics = false;  ///< there are none over PCIe
  int performance_rank = 0;     ///< 0 is the best link of this machine
};

/// Links from each device to each, the host (`kHost`) and itself included: copies can use all of them. Those
/// without peer access are staged by the driver. `pair(a, b)` is asked for devices that are two
/// GPUs, about both directions.
/// Requires: at least one GPU.
[[nodiscard]] std::vector<LinkInfo> nominal_links(std::span<const GpuFacts> gpus,
                                                  const std::function<PairFacts(DeviceId, DeviceId)>& pair);

}  // namespace harvest::cuda
