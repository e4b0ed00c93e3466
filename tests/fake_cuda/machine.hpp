// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "fake_cuda/fake_cuda.hpp"

namespace harvest::fake_cuda::internal {

/// Throws std::invalid_argument.
[[nodiscard]] MachineDescription machine_from_environment();

/// The device's own, or one that is made up.
[[nodiscard]] std::string pci_bus_id(const MachineDescription& machine, int device);

[[nodiscard]] bool can_access_peer(const MachineDescription& machine, int device, int peer);

}  // namespace harvest::fake_cuda::internal
