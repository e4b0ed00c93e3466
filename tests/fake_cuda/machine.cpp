// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/machine.hpp"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

namespace harvest::fake_cuda {
namespace {

using Json = nlohmann::json;

/// Takes members out of an object; what is left at the end is unknown.
class Members {
 public:
  explicit Members(Json object) : object_(std::move(object)) {
    if (!object_.is_object()) throw std::invalid_argument("machine: an object was expected");
  }

  template <typename T>
  void take(const char* name, T& value) {
    const auto found = object_.find(name);
    if (found == object_.end()) return;
    value = found->get<T>();
    object_.erase(found);
  }

  [[nodiscard]] Json take_json(const char* name) {
    Json value;
    take(name, value);
    return value;
  }

  void expect_end() const {
    if (!object_.empty())
      throw std::invalid_argument("machine: unknown member '" + object_.begin().key() + "'");
  }

 private:
  Json object_;
};

NvLinks parse_links(const Json& json) {
  Members members(json);
  NvLinks links;
  const auto to = members.take_json("to");
  if (to.is_number_integer()) {
    links.to = to.get<int>();
  } else if (to != "switch") {
    throw std::invalid_argument("machine: NVLinks go to a device's number or to \"switch\"");
  }
  members.take("count", links.count);
  members.expect_end();
  return links;
}

void parse_device(const Json& json, std::vector<DeviceDescription>& devices) {
  Members members(json);
  DeviceDescription device;
  int count = 1;
  members.take("count", count);
  members.take("name", device.name);
  members.take("total_bytes", device.total_bytes);
  members.take("numa_node", device.numa_node);
  members.take("pci_bus_id", device.pci_bus_id);
  members.take("compute_major", device.compute_major);
  members.take("compute_minor", device.compute_minor);
  members.take("copy_engines", device.copy_engines);
  members.take("virtual_memory", device.virtual_memory);
  members.take("mig", device.mig);
  members.take("nvlink_version", device.nvlink_version);
  members.take("pcie_generation", device.pcie_generation);
  members.take("pcie_width", device.pcie_width);
  for (const auto& links : members.take_json("nvlinks")) device.nvlinks.push_back(parse_links(links));
  members.expect_end();
  devices.insert(devices.end(), static_cast<std::size_t>(count), device);
}

void check(const MachineDescription& machine) {
  const auto count = machine.devices.size();
  if (machine.granularity_bytes == 0 || (machine.granularity_bytes & (machine.granularity_bytes - 1)) != 0) {
    throw std::invalid_argument("machine: the granularity is a power of two");
  }
  if (!machine.peer_access.empty() && machine.peer_access.size() != count) {
    throw std::invalid_argument("machine: peer_access has a row for each device, or none");
  }
  for (const auto& row : machine.peer_access) {
    if (row.size() != count)
      throw std::invalid_argument("machine: a row of peer_access has an entry a device");
  }
  for (const auto& device : machine.devices) {
    for (const auto& links : device.nvlinks) {
      if (links.to != kSwitch && (links.to < 0 || links.to >= static_cast<int>(count))) {
        throw std::invalid_argument("machine: NVLinks to device " + std::to_string(links.to) +
                                    ", which is not there");
      }
    }
  }
}

std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  try {
    return std::stoull(text);
  } catch (const std::exception&) {
    throw std::invalid_argument(std::string(name) + "='" + text + "' is no number");
  }
}

}  // namespace

MachineDescription uniform_machine(int devices, std::uint64_t bytes_each) {
  MachineDescription machine;
  machine.nvswitch = devices > 2;
  for (int i = 0; i < devices; ++i) {
    DeviceDescription device;
    device.total_bytes = bytes_each;
    if (devices == 2) device.nvlinks = {{1 - i, 6}};
    if (devices > 2) device.nvlinks = {{kSwitch, 18}};
    machine.devices.push_back(std::move(device));
  }
  return machine;
}

MachineDescription parse_machine(std::string_view text) {
  MachineDescription machine;
  try {
    Members members(Json::parse(text));
    for (const auto& device : members.take_json("devices")) parse_device(device, machine.devices);
    for (const auto& row : members.take_json("peer_access")) {
      auto& entries = machine.peer_access.emplace_back();
      for (const auto& entry : row)
        entries.push_back(entry.is_boolean() ? entry.get<bool>() : entry.get<int>() != 0);
    }
    members.take("nvswitch", machine.nvswitch);
    members.take("max_peers", machine.max_peers);
    members.take("granularity_bytes", machine.granularity_bytes);
    members.take("host_register_limit_bytes", machine.host_register_limit_bytes);
    members.take("driver_version", machine.driver_version);
    members.take("driver_version_text", machine.driver_version_text);
    members.take("has_nvml", machine.has_nvml);
    members.take("free_waits", machine.free_waits);
    members.take("late_descriptors", machine.late_descriptors);
    members.take("seed", machine.seed);
    members.take("max_delay_us", machine.max_delay_us);
    members.expect_end();
  } catch (const Json::exception& error) {
    throw std::invalid_argument(std::string("machine: ") + error.what());
  }
  check(machine);
  return machine;
}

namespace internal {

MachineDescription machine_from_environment() {
  MachineDescription machine;
  if (const char* path = std::getenv("HARVEST_FAKE_CUDA_MACHINE"); path != nullptr) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) throw std::invalid_argument(std::string("cannot read HARVEST_FAKE_CUDA_MACHINE=") + path);
    machine = parse_machine(text.str());
  } else {
    machine = uniform_machine(static_cast<int>(number_from_environment("HARVEST_FAKE_CUDA_DEVICES", 2)),
                              number_from_environment("HARVEST_FAKE_CUDA_BYTES", std::uint64_t{1} << 30));
  }
  machine.seed = number_from_environment("HARVEST_FAKE_CUDA_SEED", machine.seed);
  machine.max_delay_us =
      static_cast<std::uint32_t>(number_from_environment("HARVEST_FAKE_CUDA_DELAY_US", machine.max_delay_us));
  return machine;
}

std::string pci_bus_id(const MachineDescription& machine, int device) {
  const auto& own = machine.devices[static_cast<std::size_t>(device)].pci_bus_id;
  if (!own.empty()) return own;
  char text[32];
  std::snprintf(text, sizeof text, "0000:%02X:00.0", 0x10 + device);
  return text;
}

bool can_access_peer(const MachineDescription& machine, int device, int peer) {
  const auto& devices = machine.devices;
  const auto from = static_cast<std::size_t>(device);
  const auto to = static_cast<std::size_t>(peer);
  if (from == to || devices[from].mig || devices[to].mig) return false;
  return machine.peer_access.empty() || machine.peer_access[from][to];
}

}  // namespace internal
}  // namespace harvest::fake_cuda
