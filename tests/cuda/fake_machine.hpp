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

#include "fake_cuda/fake_cuda.hpp"

/// The CUDA backend on machines that are not there.
namespace harvest::test {

namespace fake = fake_cuda;

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

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

inline Status copy_one(Backend& backend, StreamId stream, Route route, void* to, const void* from,
                       std::uint64_t bytes) {
  const Copy one{static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes};
  return backend.copy(stream, route, {&one, 1});
}

/// Waits until all work of a stream is over; its state then.
inline EventState finish(Backend& backend, StreamId stream) {
  const auto event = backend.record_event(stream);
  if (!event) return EventState::failed;
  const EventState state = backend.wait_event(*event, kNever);
  backend.release_event(*event);
  return state;
}

inline ErrorCode code_of(const Status& status) {
  return status ? ErrorCode::ok : status.error().code;
}
template <typename T>
ErrorCode code_of(const Result<T>& result) {
  return result ? ErrorCode::ok : result.error().code;
}

/// Bytes that no other seed has.
inline std::vector<std::byte> content(std::uint64_t bytes, std::uint64_t seed) {
  std::vector<std::byte> out(bytes);
  std::uint64_t state = (seed + 1) * 0xD1B54A32D192ED03ULL;
  for (std::size_t at = 0; at < out.size(); at += sizeof state) {
    state += 0x9E3779B97F4A7C15ULL;
    const std::uint64_t word = (state ^ (state >> 29U)) * 0xBF58476D1CE4E5B9ULL;
    std::memcpy(out.data() + at, &word, std::min(sizeof word, out.size() - at));
  }
  return out;
}

}  // namespace harvest::test
