// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <harvest/cuda.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/contents.hpp"
#include "fake_cuda/fake_cuda.hpp"

/// The CUDA backend on machines that are not there.
namespace harvest::test {

namespace fake = fake_cuda;

/// Checks at its end that all that was taken from the fake CUDA since its beginning was given back.
class FakeMachine {
 public:
  explicit FakeMachine(const fake::MachineDescription& machine) { fake::reset(machine); }
  ~FakeMachine() {
    fake::Leaks leaks = fake::leaks();
    leaks.libraries = 0;  // the copy kernel stays loaded, since a graph may launch it when no backend is left
    EXPECT_EQ(leaks.total(), 0U) << to_string(leaks);
  }
  FakeMachine(const FakeMachine&) = delete;
  FakeMachine& operator=(const FakeMachine&) = delete;
};

/// Devices that all reach each other, or none does.
inline fake::MachineDescription machine_of(int devices, std::uint64_t bytes_each = 512 * kMiB) {
  fake::MachineDescription machine = fake::uniform_machine(devices, bytes_each);
  machine.max_delay_us = 20;
  return machine;
}
inline fake::MachineDescription without_peer_access(fake::MachineDescription machine) {
  machine.peer_access.assign(machine.devices.size(), std::vector<bool>(machine.devices.size(), false));
  for (fake::DeviceDescription& device : machine.devices) device.nvlinks.clear();
  return machine;
}

/// Defaults, and no calibration of whoever runs the test.
inline CudaOptions plain_options() {
  ::setenv("XDG_CACHE_HOME", "/there/is/no/such/folder", 1);
  return {};
}

inline std::unique_ptr<Backend> make_backend(const CudaOptions& options = plain_options()) {
  auto made = make_cuda_backend(options);
  EXPECT_TRUE(made.has_value()) << (made ? "" : made.error().message);
  return made ? std::move(*made) : nullptr;
}

inline ErrorCode code_of(const Status& status) {
  return status ? ErrorCode::ok : status.error().code;
}
template <typename T>
ErrorCode code_of(const Result<T>& result) {
  return result ? ErrorCode::ok : result.error().code;
}

}  // namespace harvest::test
