// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// A machine as data: what the simulated backend runs on. Six presets are known by name; any other
/// machine is a JSON file in the format that `to_json` writes.
namespace harvest {

/// A device and what other people's workloads hold of its memory when the simulation starts.
struct MachineDevice {
  DeviceInfo info;
  std::uint64_t tenant_bytes = 0;
};

/// Something that copies share: one direction of a GPU's NVLink, a PCIe slot, host memory.
struct MachinePort {
  std::string name;
  double bandwidth_bytes_per_s = 0;
};

/// A way between two devices and the ports (indexes into `Machine::ports`) that its bytes go through.
/// Several flows on one port share it max-min fairly; none is faster than its link.
struct MachineLink {
  LinkInfo info;
  std::vector<std::uint32_t> ports;
};

/// How long the driver's memory functions take.
struct MachineCosts {
  TimeNs map_ns = 0;           ///< create and map one segment
  TimeNs set_access_ns = 0;    ///< for each device that may access it, the owner included
  TimeNs unmap_ns = 0;         ///< unmap and release one segment
  TimeNs query_memory_ns = 0;  ///< ask for a device's free memory
  TimeNs pin_ns_per_gib = 0;   ///< pin host memory (map_segment on the host, register_host)
  friend bool operator==(const MachineCosts&, const MachineCosts&) = default;
};

struct Machine {
  std::string name;
  std::vector<MachineDevice> devices;  ///< GPUs 0..n-1, then the host
  std::vector<MachinePort> ports;
  std::vector<MachineLink> links;  ///< at most one for each ordered pair
  MachineCosts costs;

  /// The link of a route, or null. Cost: linear in the number of links.
  [[nodiscard]] const MachineLink* find_link(DeviceId from, DeviceId to) const;

  /// Success, or the first thing that is wrong, as `malformed` with field, value and limit.
  [[nodiscard]] Status validate() const;
};

/// `2xh100-nvl`, `dgx-a100`, `dgx-h100`, `hgx-h200`, `gb200-nvl72` (one tray of it), `4x4090-pcie`.
[[nodiscard]] std::span<const std::string_view> machine_preset_names();

/// Errors: not_found; the message names the known presets.
[[nodiscard]] Result<Machine> machine_from_preset(std::string_view name);

/// Reads the format of `to_json`. Errors: malformed (what is not JSON, a field that is missing, unknown
/// or out of its limits: the message names field, value and limit).
[[nodiscard]] Result<Machine> machine_from_json(std::string_view text);

/// The same from a file. Errors: not_found (the file cannot be read), malformed (with the path).
[[nodiscard]] Result<Machine> machine_from_json_file(const std::string& path);

/// A preset if there is one of that name, else a JSON file.
[[nodiscard]] Result<Machine> load_machine(const std::string& name_or_path);

/// The machine as JSON, indented, complete: reading it back gives the same machine.
[[nodiscard]] std::string to_json(const Machine& machine);

}  // namespace harvest
