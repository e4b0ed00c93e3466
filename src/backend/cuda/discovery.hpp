// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <string>
#include <vector>

#include "backend/cuda/gpus.hpp"

namespace harvest::cuda {

struct Discovery {
  BackendInfo info;
  std::vector<DeviceInfo> devices;  ///< their granularity is not filled in yet
  std::vector<LinkInfo> links;
  std::string driver_version;  ///< "13.0"
};

/// CUDA's numbers of the GPUs to use: those asked for, or all. Errors: unavailable (no driver, no GPU),
/// not_found (a GPU that is not there), invalid_argument (more than `Gpus::kMax`).
[[nodiscard]] Result<std::vector<int>> choose_gpus(const std::vector<int>& asked);

/// Gives each GPU its primary context and describes the machine. Blocks: a context takes tenths of a second.
/// Errors: unavailable (a GPU does not answer: the message is CUDA's), out_of_memory.
[[nodiscard]] Result<Discovery> discover(Gpus& gpus);

/// The host memory near a PCI device, as Linux says it; -1 if it does not.
[[nodiscard]] std::int32_t numa_node_of(const std::string& bus_id, const std::string& sysfs = "/sys");

}  // namespace harvest::cuda
