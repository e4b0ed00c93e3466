// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstring>

#include "fake_cuda/nvml_machine.hpp"

/// NVML's functions as far as they tell of links, with declarations of our own: its binary interface only
/// grows.
namespace {

using namespace harvest::fake_cuda;  // NOLINT: this is its other library

enum NvmlResult : int {
  kSuccess = 0,
  kUninitialized = 1,
  kInvalidArgument = 2,
  kNotSupported = 3,
  kNotFound = 6,
  kInsufficientSize = 7,
  kDriverNotLoaded = 9,
  kGpuIsLost = 15,
  kUnknown = 999,
};

/// Of nvmlDeviceGetNvLinkCapability.
enum Capability : unsigned {
  kPeerAccess = 0,
  kSystemAccess = 1,
  kPeerAtomics = 2,
  kSystemAtomics = 3,
  kSli = 4,
  kValid = 5
};

enum RemoteType : unsigned { kRemoteGpu = 0, kRemoteSwitch = 2 };

const std::string kSwitchPciBusId = "00000000:C0:00.0";
constexpr unsigned kMaxLinks = 18;
constexpr unsigned kFieldLinkSpeed = 90;
constexpr unsigned kLinkMegabytesPerS = 26562;
constexpr int kValueUnsigned = 1;

struct PciInfo {
  char legacy_bus_id[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};

struct FieldValue {
  unsigned field, scope;
  long long timestamp, latency_us;
  int value_type, status;
  union {
    double as_double;
    unsigned as_unsigned;
    unsigned long long as_unsigned_long_long;
  } value;
};

int initialised = 0;

using Device = struct OpaqueDevice*;

Device to_handle(int device) {
  return reinterpret_cast<Device>(static_cast<std::uintptr_t>(device) + 1);
}

/// The device, or an error.
NvmlResult find(Device handle, int& number, DeviceDescription& description) {
  if (initialised == 0) return kUninitialized;
  number = static_cast<int>(reinterpret_cast<std::uintptr_t>(handle)) - 1;
  const auto machine = nvml_machine();
  if (number < 0 || number >= static_cast<int>(machine.devices.size())) return kInvalidArgument;
  description = machine.devices[static_cast<std::size_t>(number)];
  return nvml_device_is_lost(number) ? kGpuIsLost : kSuccess;
}

/// Where the device's `link`th NVLink goes.
NvmlResult find_link(Device handle, unsigned link, bool& active, int& to, int& number) {
  DeviceDescription device;
  if (const auto error = find(handle, number, device); error != kSuccess) return error;
  if (device.nvlinks.empty()) return kNotSupported;
  if (link >= kMaxLinks) return kInvalidArgument;
  active = false;
  auto first = 0u;
  for (const auto& links : device.nvlinks) {
    const auto end = first + static_cast<unsigned>(links.count);
    if (link >= first && link < end) {
      active = true;
      to = links.to;
    }
    first = end;
  }
  return kSuccess;
}

template <typename Read>
int ask(Device handle, unsigned* value, Read read) {
  int number = 0;
  DeviceDescription device;
  if (const auto error = find(handle, number, device); error != kSuccess) return error;
  if (value == nullptr) return kInvalidArgument;
  *value = static_cast<unsigned>(read(device));
  return kSuccess;
}

}  // namespace

#define HARVEST_NVML extern "C" __attribute__((visibility("default")))

HARVEST_NVML int nvmlInit_v2() {
  if (!nvml_machine().has_nvml) return kDriverNotLoaded;
  ++initialised;
  return kSuccess;
}

HARVEST_NVML int nvmlShutdown() {
  if (initialised == 0) return kUninitialized;
  --initialised;
  return kSuccess;
}

HARVEST_NVML const char* nvmlErrorString(int error) {
  switch (error) {
    case kSuccess: return "Success";
    case kUninitialized: return "Uninitialized";
    case kInvalidArgument: return "Invalid Argument";
    case kNotSupported: return "Not Supported";
    case kNotFound: return "Not Found";
    case kInsufficientSize: return "Insufficient Size";
    case kDriverNotLoaded: return "Driver Not Loaded";
    case kGpuIsLost: return "GPU is lost";
    default: return "Unknown Error";
  }
}

HARVEST_NVML int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  if (initialised == 0) return kUninitialized;
  const auto version = nvml_machine().driver_version_text;
  if (text == nullptr) return kInvalidArgument;
  if (length <= version.size()) return kInsufficientSize;
  std::memcpy(text, version.c_str(), version.size() + 1);
  return kSuccess;
}

HARVEST_NVML int nvmlDeviceGetCount_v2(unsigned* count) {
  if (initialised == 0) return kUninitialized;
  if (count == nullptr) return kInvalidArgument;
  *count = static_cast<unsigned>(nvml_machine().devices.size());
  return kSuccess;
}

HARVEST_NVML int nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, Device* handle) {
  if (initialised == 0) return kUninitialized;
  if (bus_id == nullptr || handle == nullptr) return kInvalidArgument;
  const auto machine = nvml_machine();
  unsigned asked[3] = {};
  if (std::sscanf(bus_id, "%x:%x:%x", &asked[0], &asked[1], &asked[2]) != 3) return kInvalidArgument;
  for (int i = 0; i < static_cast<int>(machine.devices.size()); ++i) {
    unsigned own[3] = {};
    std::sscanf(machine.devices[static_cast<std::size_t>(i)].pci_bus_id.c_str(), "%x:%x:%x", &own[0], &own[1],
                &own[2]);
    if (std::memcmp(asked, own, sizeof own) != 0) continue;
    *handle = to_handle(i);
    return kSuccess;
  }
  return kNotFound;
}

HARVEST_NVML int nvmlDeviceGetNvLinkState(Device handle, unsigned link, unsigned* is_active) {
  bool active = false;
  int to = 0;
  int number = 0;
  if (const auto error = find_link(handle, link, active, to, number); error != kSuccess) return error;
  if (is_active == nullptr) return kInvalidArgument;
  *is_active = active ? 1 : 0;
  return kSuccess;
}

HARVEST_NVML int nvmlDeviceGetNvLinkRemoteDeviceType(Device handle, unsigned link, unsigned* type) {
  bool active = false;
  int to = 0;
  int number = 0;
  if (const auto error = find_link(handle, link, active, to, number); error != kSuccess) return error;
  if (type == nullptr) return kInvalidArgument;
  if (!active) return kNotSupported;
  *type = to == kSwitch ? kRemoteSwitch : kRemoteGpu;
  return kSuccess;
}

HARVEST_NVML int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device handle, unsigned link, PciInfo* pci) {
  bool active = false;
  int to = 0;
  int number = 0;
  if (const auto error = find_link(handle, link, active, to, number); error != kSuccess) return error;
  if (pci == nullptr) return kInvalidArgument;
  if (!active) return kNotSupported;
  const auto id =
      to == kSwitch ? kSwitchPciBusId : nvml_machine().devices[static_cast<std::size_t>(to)].pci_bus_id;
  *pci = {};
  std::sscanf(id.c_str(), "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
  std::snprintf(pci->bus_id, sizeof pci->bus_id, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
  std::snprintf(pci->legacy_bus_id, sizeof pci->legacy_bus_id, "%04X:%02X:%02X.0", pci->domain & 0xffff,
                pci->bus & 0xff, pci->device & 0xff);
  return kSuccess;
}

HARVEST_NVML int nvmlDeviceGetNvLinkVersion(Device handle, unsigned link, unsigned* version) {
  bool active = false;
  int to = 0;
  int number = 0;
  if (const auto error = find_link(handle, link, active, to, number); error != kSuccess) return error;
  return ask(handle, version, [](const DeviceDescription& device) { return device.nvlink_version; });
}

HARVEST_NVML int nvmlDeviceGetNvLinkCapability(Device handle, unsigned link, unsigned capability,
                                               unsigned* has) {
  bool active = false;
  int to = 0;
  int number = 0;
  if (const auto error = find_link(handle, link, active, to, number); error != kSuccess) return error;
  if (has == nullptr || capability > kValid) return kInvalidArgument;
  const bool peer = capability == kPeerAccess || capability == kPeerAtomics || capability == kValid;
  *has = active && peer ? 1 : 0;
  return kSuccess;
}

HARVEST_NVML int nvmlDeviceGetMigMode(Device handle, unsigned* now, unsigned* pending) {
  const auto read = [](const DeviceDescription& device) { return device.mig ? 1 : 0; };
  if (const int error = ask(handle, now, read); error != kSuccess) return error;
  return ask(handle, pending, read);
}

HARVEST_NVML int nvmlDeviceGetC2cModeInfoV(Device handle, unsigned* is_enabled) {
  return ask(handle, is_enabled, [](const DeviceDescription&) { return 0; });
}

HARVEST_NVML int nvmlDeviceGetFieldValues(Device handle, int count, FieldValue* values) {
  int number = 0;
  DeviceDescription device;
  if (const auto error = find(handle, number, device); error != kSuccess) return error;
  if (count <= 0 || values == nullptr) return kInvalidArgument;
  for (int i = 0; i < count; ++i) {
    const bool known = values[i].field == kFieldLinkSpeed && !device.nvlinks.empty();
    values[i].status = known ? kSuccess : kNotSupported;
    values[i].value_type = kValueUnsigned;
    values[i].value.as_unsigned_long_long = 0;
    values[i].value.as_unsigned = known ? kLinkMegabytesPerS : 0;
  }
  return kSuccess;
}

HARVEST_NVML int nvmlDeviceGetCurrPcieLinkGeneration(Device handle, unsigned* generation) {
  return ask(handle, generation, [](const DeviceDescription& device) { return device.pcie_generation; });
}

HARVEST_NVML int nvmlDeviceGetMaxPcieLinkGeneration(Device handle, unsigned* generation) {
  return ask(handle, generation, [](const DeviceDescription& device) { return device.pcie_generation; });
}

HARVEST_NVML int nvmlDeviceGetCurrPcieLinkWidth(Device handle, unsigned* width) {
  return ask(handle, width, [](const DeviceDescription& device) { return device.pcie_width; });
}

HARVEST_NVML int nvmlDeviceGetMaxPcieLinkWidth(Device handle, unsigned* width) {
  return ask(handle, width, [](const DeviceDescription& device) { return device.pcie_width; });
}
