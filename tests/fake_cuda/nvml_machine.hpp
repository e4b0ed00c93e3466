// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fake_cuda/fake_cuda.hpp"

/// What the fake NVML, a library of its own, asks of the fake runtime.
namespace harvest::fake_cuda {

/// With each device's PCI bus id.
[[nodiscard]] MachineDescription nvml_machine();

[[nodiscard]] bool nvml_device_is_lost(int device);

}  // namespace harvest::fake_cuda
