// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/discovery.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <numeric>
#include <utility>

#include "backend/cuda/device_guard.hpp"
#include "backend/cuda/error.hpp"
#include "backend/cuda/link_figures.hpp"
#include "backend/cuda/nvml.hpp"

namespace harvest::cuda {
namespace {

/// 0 where the driver does not say.
int attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  if (check(cudaDeviceGetAttribute(&value, which, ordinal), "cudaDeviceGetAttribute")) return value;
  return 0;
}

std::string uuid_text(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

Result<std::string> bus_id_of(int ordinal) {
  std::array<char, 32> text{};
  if (Status status = check(cudaDeviceGetPCIBusId(text.data(), static_cast<int>(text.size()), ordinal),
                            fmt::format("cudaDeviceGetPCIBusId of GPU {}", ordinal));
      !status)
    return tl::unexpected(status.error());
  return normal_bus_id(text.data());
}

Result<std::uint64_t> open_device(Gpus& gpus, DeviceId device) {
  const DeviceGuard guard(gpus.ordinal(device));
  if (guard.error() != cudaSuccess)
    return gpus.fail_call(guard.error(), device, fmt::format("cudaSetDevice({})", gpus.ordinal(device)));
  std::size_t free_bytes = 0, total_bytes = 0;
  if (const cudaError_t error = cudaMemGetInfo(&free_bytes, &total_bytes); error != cudaSuccess)
    return gpus.fail_call(error, device, fmt::format("cudaMemGetInfo of GPU {}", gpus.ordinal(device)));
  return total_bytes;
}

struct Described {
  DeviceInfo info;
  GpuFacts facts;
};

Result<Described> describe(Gpus& gpus, DeviceId device) {
  const int ordinal = gpus.ordinal(device);
  const Result<std::uint64_t> total_bytes = open_device(gpus, device);
  if (!total_bytes) return tl::unexpected(total_bytes.error());
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal); error != cudaSuccess)
    return gpus.fail_call(error, device, fmt::format("cudaGetDeviceProperties of GPU {}", ordinal));
  const Result<std::string> bus_id = bus_id_of(ordinal);
  if (!bus_id) return tl::unexpected(bus_id.error());

  Described found;
  found.info.id = device;
  found.info.name = properties.name;
  found.info.uuid = uuid_text(properties.uuid);
  found.info.total_bytes = *total_bytes;
  found.info.copy_engines = static_cast<std::uint32_t>(std::max(properties.asyncEngineCount, 1));
  found.info.numa_node = numa_node_of(*bus_id);
  found.facts.bus_id = *bus_id;
  found.facts.compute_major = properties.major;
  // Kilohertz, bits, and two transfers a cycle.
  found.facts.memory_bytes_per_s = 2e3 * attribute(cudaDevAttrMemoryClockRate, ordinal) *
                                   attribute(cudaDevAttrGlobalMemoryBusWidth, ordinal) / 8;
  return found;
}

/// Both ways, since a link is used from both ends.
PairFacts pair_facts(int a, int b) {
  PairFacts facts;
  int forth = 0, back = 0;
  facts.access = check(cudaDeviceCanAccessPeer(&forth, a, b), "cudaDeviceCanAccessPeer") &&
                 check(cudaDeviceCanAccessPeer(&back, b, a), "cudaDeviceCanAccessPeer") && forth != 0 &&
                 back != 0;
  if (!facts.access) return facts;
  const auto ask = [&](cudaDeviceP2PAttr which) {
    int value = 0;
    return check(cudaDeviceGetP2PAttribute(&value, which, a, b), "cudaDeviceGetP2PAttribute") ? value : 0;
  };
  facts.native_atomics = ask(cudaDevP2PAttrNativeAtomicSupported) != 0;
  facts.performance_rank = ask(cudaDevP2PAttrPerformanceRank);
  return facts;
}

std::string system_name(const std::vector<DeviceInfo>& devices) {
  const bool alike = std::all_of(devices.begin(), devices.end(), [&](const DeviceInfo& device) {
    return device.name == devices.front().name;
  });
  if (alike) return fmt::format("{} x {}", devices.size(), devices.front().name);
  std::string names;
  for (const DeviceInfo& device : devices) names += (names.empty() ? "" : ", ") + device.name;
  return names;
}

std::string driver_version() {
  int version = 0;
  if (!check(cudaDriverGetVersion(&version), "cudaDriverGetVersion")) return "unknown";
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

std::int32_t numa_node_of(const std::string& bus_id, const std::string& sysfs) {
  std::ifstream file(sysfs + "/bus/pci/devices/" + bus_id + "/numa_node");
  std::int32_t node = -1;
  return file >> node ? node : -1;
}

Result<std::vector<int>> choose_gpus(const std::vector<int>& asked) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    Status none = check(error != cudaSuccess ? error : cudaErrorNoDevice, "looking for GPUs");
    return fail(ErrorCode::unavailable, std::move(none.error().message));
  }
  std::vector<int> ordinals = asked;
  if (ordinals.empty()) {
    ordinals.resize(static_cast<std::size_t>(count));
    std::iota(ordinals.begin(), ordinals.end(), 0);
  }
  for (const int ordinal : ordinals) {
    if (ordinal < 0 || ordinal >= count)
      return fail(ErrorCode::not_found, fmt::format("no GPU {}; CUDA shows {}", ordinal, count));
    if (std::count(ordinals.begin(), ordinals.end(), ordinal) > 1)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("GPU {} is named twice; make_loopback_backend shows one GPU as two", ordinal));
  }
  if (ordinals.size() > Gpus::kMax)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} GPUs, the limit is {}", ordinals.size(), Gpus::kMax));
  return ordinals;
}

Result<Discovery> discover(Gpus& gpus) {
  Discovery found;
  std::vector<GpuFacts> facts;
  std::vector<std::string> bus_ids;
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    Result<Described> one = describe(gpus, static_cast<DeviceId>(i));
    if (!one) return tl::unexpected(one.error());
    found.devices.push_back(std::move(one->info));
    bus_ids.push_back(one->facts.bus_id);
    facts.push_back(std::move(one->facts));
  }
  auto details = ask_nvml(bus_ids);
  for (std::size_t i = 0; i < facts.size(); ++i) facts[i].nvml = std::move(details[i]);
  found.links = nominal_links(
      facts, [&](DeviceId a, DeviceId b) { return pair_facts(gpus.ordinal(a), gpus.ordinal(b)); });
  found.info.name = "cuda";
  found.info.driver = driver_version();
  found.info.system = system_name(found.devices);
  return found;
}

}  // namespace harvest::cuda
