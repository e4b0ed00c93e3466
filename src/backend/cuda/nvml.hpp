// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

/// What the management library knows of a GPU's links. It is loaded at run time by its own name, with our own
/// declarations of what we call; where it is missing, or does not answer, less is known and nothing fails.
namespace harvest::cuda {

struct NvmlDetails {
  bool mig = false;                   ///< it is cut into instances: no peer access (docs/cuda.md, rule 20)
  bool c2c = false;                   ///< the host is reached over NVLink-C2C
  std::uint32_t pcie_generation = 0;  ///< at most, of GPU and slot together; 0 if not known
  std::uint32_t pcie_lanes = 0;       ///< likewise
  std::uint32_t switch_links = 0;     ///< NVLinks that are up and end at a switch
  std::map<std::string, std::uint32_t>
      peer_links{};             ///< NVLinks that are up, by the PCI bus id of the other end
  double link_bytes_per_s = 0;  ///< of one NVLink, one direction; 0 if not known
};

/// "0000:17:00.0" for every spelling of a bus id that the runtime and the library use: eight digits of domain
/// or four, capital letters or small ones.
[[nodiscard]] std::string normal_bus_id(const std::string& bus_id);

/// For each of `bus_ids` (normal) what the library says; nothing for a GPU that it does not know, and for all
/// of them where it is not there. Blocks for some milliseconds: it is loaded and left again.
[[nodiscard]] std::vector<std::optional<NvmlDetails>> ask_nvml(const std::vector<std::string>& bus_ids);

}  // namespace harvest::cuda
