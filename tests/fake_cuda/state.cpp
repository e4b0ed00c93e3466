// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/state.hpp"

#include <pthread.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "fake_cuda/machine.hpp"

namespace harvest::fake_cuda::internal {

State& state() {
  static auto* the_state = new State;  // never destroyed: threads and the user's statics may outlive main
  return *the_state;
}

ThreadState& this_thread() {
  thread_local ThreadState the_thread;
  return the_thread;
}

bool poisons(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure: return true;
    default: return false;
  }
}

cudaError_t State::initialise() {
  if (initialised) return devices.empty() ? cudaErrorNoDevice : cudaSuccess;
  try {
    build(machine_from_environment());
    if (const char* plan = std::getenv("HARVEST_FAKE_CUDA_FAULTS"); plan != nullptr) apply_fault_plan(plan);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fake cuda: %s\n", error.what());
    return cudaErrorInitializationError;
  }
  return devices.empty() ? cudaErrorNoDevice : cudaSuccess;
}

void State::build(const MachineDescription& description) {
  machine = description;
  random.seed(machine.seed);
  devices.clear();
  std::vector<std::uint64_t> totals;
  for (std::size_t i = 0; i < machine.devices.size(); ++i) {
    Device device;
    device.description = machine.devices[i];
    device.pci_bus_id = pci_bus_id(machine, static_cast<int>(i));
    totals.push_back(device.description.total_bytes);
    devices.push_back(std::move(device));
  }
  const char* shared = std::getenv("HARVEST_FAKE_CUDA_SHARED");
  if (!accounts.open(shared == nullptr ? "" : shared, std::move(totals))) {
    std::fprintf(stderr, "fake cuda: cannot use the file '%s' of HARVEST_FAKE_CUDA_SHARED\n", shared);
    devices.clear();
  }
  initialised = true;
}

void State::poison(int device, cudaError_t error, std::string why) {
  if (!is_device(device)) return;
  auto& lost = devices[static_cast<std::size_t>(device)];
  if (lost.sticky != cudaSuccess) return;
  lost.sticky = error;
  lost.has_context = true;
  (void)refuse(error, "GPU " + std::to_string(device) + ": " + std::move(why));
  for_each_stream(device, [](const StreamRef& stream) { stream->wake.notify_all(); });
}

cudaError_t State::refuse(cudaError_t error, std::string why) {
  static const bool verbose = std::getenv("HARVEST_FAKE_CUDA_VERBOSE") != nullptr;
  if (verbose) std::fprintf(stderr, "fake cuda: error %d: %s\n", static_cast<int>(error), why.c_str());
  complaint = std::move(why);
  return error;
}

}  // namespace harvest::fake_cuda::internal
