// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/nvml.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cctype>
#include <memory>

namespace harvest::cuda {
namespace {

// NVML's binary interface, as far as it is used here. It only grows: functions and fields keep their meaning.

using NvmlDevice = struct NvmlDeviceOpaque*;
constexpr int kSuccess = 0;
constexpr unsigned kMaxLinks = 64;  // there are 18 a GPU up to NVLink 5; asking past the last is an error
constexpr unsigned kRemoteGpu = 0, kRemoteSwitch = 2;
constexpr unsigned kFieldLinkSpeed = 90;  // MB/s of one active link, one direction

struct NvmlPci {
  char legacy_bus_id[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};

struct NvmlField {
  unsigned field, scope;
  long long timestamp, latency_us;
  int value_type, status;
  union {
    double as_double;
    int as_int;
    unsigned as_unsigned;
    unsigned long as_unsigned_long;
    unsigned long long as_unsigned_long_long;
    long long as_long_long;
  } value;
};

class Library {
 public:
  Library() : handle_(::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) return;
    find("nvmlShutdown", shutdown_);
    find("nvmlDeviceGetHandleByPciBusId_v2", get_handle);
    find("nvmlDeviceGetMigMode", get_mig_mode);
    find("nvmlDeviceGetC2cModeInfoV", get_c2c_mode);
    find("nvmlDeviceGetMaxPcieLinkGeneration", get_pcie_generation);
    find("nvmlDeviceGetMaxPcieLinkWidth", get_pcie_width);
    find("nvmlDeviceGetNvLinkState", get_link_state);
    find("nvmlDeviceGetNvLinkRemoteDeviceType", get_remote_type);
    find("nvmlDeviceGetNvLinkRemotePciInfo_v2", get_remote_pci);
    find("nvmlDeviceGetFieldValues", get_fields);
    int (*init)() = nullptr;
    find("nvmlInit_v2", init);
    works_ = init != nullptr && get_handle != nullptr && init() == kSuccess;
  }
  ~Library() {
    if (works_ && shutdown_ != nullptr) static_cast<void>(shutdown_());
    if (handle_ != nullptr) ::dlclose(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  [[nodiscard]] bool works() const { return works_; }

  // Null where this version of the library lacks it.
  int (*get_handle)(const char*, NvmlDevice*) = nullptr;
  int (*get_mig_mode)(NvmlDevice, unsigned* now, unsigned* pending) = nullptr;
  int (*get_c2c_mode)(NvmlDevice, unsigned* enabled) = nullptr;
  int (*get_pcie_generation)(NvmlDevice, unsigned*) = nullptr;
  int (*get_pcie_width)(NvmlDevice, unsigned*) = nullptr;
  int (*get_link_state)(NvmlDevice, unsigned link, unsigned* active) = nullptr;
  int (*get_remote_type)(NvmlDevice, unsigned link, unsigned* type) = nullptr;
  int (*get_remote_pci)(NvmlDevice, unsigned link, NvmlPci*) = nullptr;
  int (*get_fields)(NvmlDevice, int count, NvmlField*) = nullptr;

 private:
  template <typename Function>
  void find(const char* name, Function& function) {
    function = reinterpret_cast<Function>(::dlsym(handle_, name));
  }

  void* handle_;
  int (*shutdown_)() = nullptr;
  bool works_ = false;
};

/// One number of a device, 0 where the library does not say.
unsigned ask(int (*get)(NvmlDevice, unsigned*), NvmlDevice device) {
  unsigned value = 0;
  return get != nullptr && get(device, &value) == kSuccess ? value : 0;
}

double link_bytes_per_s(const Library& nvml, NvmlDevice device) {
  NvmlField speed{};
  speed.field = kFieldLinkSpeed;
  if (nvml.get_fields == nullptr || nvml.get_fields(device, 1, &speed) != kSuccess) return 0;
  return speed.status == kSuccess ? speed.value.as_unsigned * 1e6 : 0;
}

void count_links(const Library& nvml, NvmlDevice device, NvmlDetails& details) {
  if (nvml.get_link_state == nullptr) return;
  for (unsigned link = 0; link < kMaxLinks; ++link) {
    unsigned active = 0;
    if (nvml.get_link_state(device, link, &active) != kSuccess) return;
    if (active == 0) continue;
    unsigned type = kRemoteGpu;
    NvmlPci remote{};
    if (nvml.get_remote_type != nullptr && nvml.get_remote_type(device, link, &type) != kSuccess) continue;
    if (type == kRemoteSwitch)
      ++details.switch_links;
    else if (type == kRemoteGpu && nvml.get_remote_pci != nullptr &&
             nvml.get_remote_pci(device, link, &remote) == kSuccess)
      ++details.peer_links[normal_bus_id(remote.bus_id)];
  }
}

std::optional<NvmlDetails> ask_device(const Library& nvml, const std::string& bus_id) {
  NvmlDevice device = nullptr;
  if (nvml.get_handle(bus_id.c_str(), &device) != kSuccess) return std::nullopt;
  NvmlDetails details;
  unsigned mig = 0, pending = 0;
  details.mig =
      nvml.get_mig_mode != nullptr && nvml.get_mig_mode(device, &mig, &pending) == kSuccess && mig != 0;
  details.c2c = ask(nvml.get_c2c_mode, device) != 0;
  details.pcie_generation = ask(nvml.get_pcie_generation, device);
  details.pcie_lanes = ask(nvml.get_pcie_width, device);
  details.link_bytes_per_s = link_bytes_per_s(nvml, device);
  count_links(nvml, device, details);
  return details;
}

}  // namespace

std::string normal_bus_id(const std::string& bus_id) {
  std::string normal;
  for (const char c : bus_id)
    normal.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  const auto domain_digits = normal.find(':');
  if (domain_digits == 8 && normal.starts_with("0000")) normal.erase(0, 4);
  return normal;
}

std::vector<std::optional<NvmlDetails>> ask_nvml(const std::vector<std::string>& bus_ids) {
  std::vector<std::optional<NvmlDetails>> answers(bus_ids.size());
  const Library nvml;
  if (!nvml.works()) return answers;
  for (std::size_t i = 0; i < bus_ids.size(); ++i) answers[i] = ask_device(nvml, bus_ids[i]);
  return answers;
}

}  // namespace harvest::cuda
