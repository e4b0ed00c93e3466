// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstring>

#include "fake_cuda/call.hpp"
#include "fake_cuda/capture.hpp"
#include "fake_cuda/machine.hpp"

namespace harvest::fake_cuda::internal {
namespace {

struct PciAddress {
  int domain = 0;
  int bus = 0;
  int device = 0;
};

PciAddress pci_address(int device) {
  unsigned domain = 0;
  unsigned bus = 0;
  unsigned slot = 0;
  std::sscanf(state().devices[static_cast<std::size_t>(device)].pci_bus_id.c_str(), "%x:%x:%x", &domain, &bus,
              &slot);
  return {static_cast<int>(domain), static_cast<int>(bus), static_cast<int>(slot)};
}

cudaDeviceProp properties(int number) {
  const auto& device = state().devices[static_cast<std::size_t>(number)].description;
  const auto pci = pci_address(number);
  cudaDeviceProp prop{};
  std::snprintf(prop.name, sizeof prop.name, "%s", device.name.c_str());
  std::memcpy(prop.uuid.bytes, "harvest fake 00", sizeof prop.uuid.bytes);
  prop.uuid.bytes[sizeof prop.uuid.bytes - 1] = static_cast<char>(number);
  prop.totalGlobalMem = device.total_bytes;
  prop.warpSize = 32;
  prop.maxThreadsPerBlock = 1024;
  prop.major = device.compute_major;
  prop.minor = device.compute_minor;
  prop.multiProcessorCount = 132;
  prop.canMapHostMemory = 1;
  prop.concurrentKernels = 1;
  prop.pciDomainID = pci.domain;
  prop.pciBusID = pci.bus;
  prop.pciDeviceID = pci.device;
  prop.asyncEngineCount = device.copy_engines;
  prop.unifiedAddressing = 1;
  prop.memoryBusWidth = 5120;
  prop.streamPrioritiesSupported = 1;
  prop.canUseHostPointerForRegisteredMem = 1;
  prop.hostRegisterSupported = 1;
#if CUDART_VERSION >= 13000
  prop.hostNumaId = device.numa_node;
#endif
  return prop;
}

/// 0 for what the fake has no word on, as for everything that a device does not have.
int attribute(cudaDeviceAttr which, int number) {
  const auto& device = state().devices[static_cast<std::size_t>(number)].description;
  constexpr int kVirtualMemorySupported = 102;  // the runtime hands the driver's attributes through
  switch (static_cast<int>(which)) {
    case cudaDevAttrComputeCapabilityMajor: return device.compute_major;
    case cudaDevAttrComputeCapabilityMinor: return device.compute_minor;
    case cudaDevAttrAsyncEngineCount: return device.copy_engines;
    case cudaDevAttrHostNumaId: return device.numa_node;
    case cudaDevAttrMultiProcessorCount: return 132;
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMemoryClockRate: return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth: return 5120;
    case cudaDevAttrPciBusId: return pci_address(number).bus;
    case cudaDevAttrPciDeviceId: return pci_address(number).device;
    case cudaDevAttrPciDomainId: return pci_address(number).domain;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrConcurrentKernels: return 1;
    case kVirtualMemorySupported: return device.virtual_memory ? 1 : 0;
    default: return 0;
  }
}

cudaError_t check_pair(int device, int peer) {
  return state().is_device(device) && state().is_device(peer) ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t enable_peer(int peer) {
  const int device = this_thread().device;
  if (const auto error = check_pair(device, peer); error != cudaSuccess) return error;
  if (!can_access_peer(state().machine, device, peer)) {
    return state().refuse(cudaErrorPeerAccessUnsupported, "the device cannot access that peer");
  }
  auto& peers = state().devices[static_cast<std::size_t>(device)].peers;
  if (peers.count(peer) != 0) return cudaErrorPeerAccessAlreadyEnabled;
  if (!state().machine.nvswitch && static_cast<int>(peers.size()) >= state().machine.max_peers) {
    return state().refuse(cudaErrorTooManyPeers, "no more peers without a switch (rule 7)");
  }
  peers.insert(peer);
  return cudaSuccess;
}

/// How well two devices are linked, the best first.
int performance_rank(int from, int to) {
  for (const auto& links : state().devices[static_cast<std::size_t>(from)].description.nvlinks) {
    if (links.to == to || links.to == kSwitch) return 0;
  }
  return 1;
}

cudaError_t p2p_attribute(int* value, cudaDeviceP2PAttr which, int from, int to) {
  if (value == nullptr) return cudaErrorInvalidValue;
  if (const auto error = check_pair(from, to); error != cudaSuccess) return error;
  if (from == to)
    return state().refuse(cudaErrorInvalidDevice, "a P2P attribute of a device with itself (rule 7)");
  const bool can = can_access_peer(state().machine, from, to);
  switch (which) {
    case cudaDevP2PAttrPerformanceRank: *value = performance_rank(from, to); return cudaSuccess;
    case cudaDevP2PAttrAccessSupported:
    case cudaDevP2PAttrCudaArrayAccessSupported: *value = can ? 1 : 0; return cudaSuccess;
    case cudaDevP2PAttrNativeAtomicSupported:
      *value = can && performance_rank(from, to) == 0 ? 1 : 0;
      return cudaSuccess;
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace harvest::fake_cuda::internal

using namespace harvest::fake_cuda::internal;  // NOLINT: the functions below are CUDA's, in no namespace

cudaError_t cudaGetDeviceCount(int* count) {
  return runtime_call("cudaGetDeviceCount", kMachine, [&](Lock&) -> cudaError_t {
    if (count == nullptr) return cudaErrorInvalidValue;
    *count = static_cast<int>(state().devices.size());
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return runtime_call("cudaGetDevice", kMachine, [&](Lock&) -> cudaError_t {
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = this_thread().device;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return runtime_call("cudaSetDevice", kMachine, [&](Lock&) -> cudaError_t {
    if (!state().is_device(device)) return cudaErrorInvalidDevice;
    if (const auto error = health(device); error != cudaSuccess) return error;
    this_thread().device = device;
    this_thread().has_context = true;  // since CUDA 12 it makes one
    state().devices[static_cast<std::size_t>(device)].has_context = true;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
  return runtime_call("cudaGetDeviceProperties", kMachine, [&](Lock&) -> cudaError_t {
    if (prop == nullptr) return cudaErrorInvalidValue;
    if (!state().is_device(device)) return cudaErrorInvalidDevice;
    *prop = properties(device);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  return runtime_call("cudaDeviceGetAttribute", kMachine, [&](Lock&) -> cudaError_t {
    if (value == nullptr) return cudaErrorInvalidValue;
    if (!state().is_device(device)) return cudaErrorInvalidDevice;
    *value = attribute(which, device);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  return runtime_call("cudaDeviceGetPCIBusId", kMachine, [&](Lock&) -> cudaError_t {
    if (!state().is_device(device)) return cudaErrorInvalidDevice;
    const auto& id = state().devices[static_cast<std::size_t>(device)].pci_bus_id;
    if (text == nullptr || length <= static_cast<int>(id.size())) return cudaErrorInvalidValue;
    std::memcpy(text, id.c_str(), id.size() + 1);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* id) {
  return runtime_call("cudaDeviceGetByPCIBusId", kMachine, [&](Lock&) -> cudaError_t {
    if (device == nullptr || id == nullptr) return cudaErrorInvalidValue;
    for (std::size_t i = 0; i < state().devices.size(); ++i) {
      if (state().devices[i].pci_bus_id != id) continue;
      *device = static_cast<int>(i);
      return cudaSuccess;
    }
    return cudaErrorInvalidDevice;
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return runtime_call("cudaDeviceCanAccessPeer", kMachine, [&](Lock&) -> cudaError_t {
    if (can == nullptr) return cudaErrorInvalidValue;
    if (const auto error = check_pair(device, peer); error != cudaSuccess) return error;
    *can = can_access_peer(state().machine, device, peer) ? 1 : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  return runtime_call("cudaDeviceEnablePeerAccess", kContext,
                      [&](Lock&) { return flags != 0 ? cudaErrorInvalidValue : enable_peer(peer); });
}

cudaError_t cudaDeviceDisablePeerAccess(int peer) {
  return runtime_call("cudaDeviceDisablePeerAccess", kContext, [&](Lock&) -> cudaError_t {
    auto& peers = state().devices[static_cast<std::size_t>(this_thread().device)].peers;
    if (!state().is_device(peer)) return cudaErrorInvalidDevice;
    return peers.erase(peer) == 1 ? cudaSuccess : cudaErrorPeerAccessNotEnabled;
  });
}

cudaError_t cudaDeviceGetP2PAttribute(int* value, cudaDeviceP2PAttr which, int from, int to) {
  return runtime_call("cudaDeviceGetP2PAttribute", kMachine,
                      [&](Lock&) { return p2p_attribute(value, which, from, to); });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  return runtime_call("cudaRuntimeGetVersion", kNothing, [&](Lock&) -> cudaError_t {
    if (version == nullptr) return cudaErrorInvalidValue;
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  return runtime_call("cudaDriverGetVersion", kNothing, [&](Lock&) -> cudaError_t {
    if (version == nullptr) return cudaErrorInvalidValue;
    (void)state().initialise();
    const int own = state().machine.driver_version;
    *version = own == 0 ? CUDART_VERSION : own;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return runtime_call("cudaDeviceSynchronize", kContext | kUnsafeInCapture, [&](Lock& lock) -> cudaError_t {
    const int device = this_thread().device;
    if (const auto error = refuse_captured_device(device, "cudaDeviceSynchronize"); error != cudaSuccess)
      return error;
    state().synchronise_device(lock, device);
    return health(device);
  });
}

cudaError_t cudaDeviceReset() {
  return runtime_call("cudaDeviceReset", kContext | kUnsafeInCapture, [&](Lock& lock) {
    const int device = this_thread().device;
    state().synchronise_device(lock, device);
    state().reset_device(device);
    return health(device);
  });
}
