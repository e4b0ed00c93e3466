// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <harvest/simulated_backend.hpp>
#include <memory>
#include <string_view>

namespace harvest::test {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

inline std::unique_ptr<SimulatedBackend> phantom(std::string_view machine, FaultPlan faults = {},
                                                 std::uint64_t seed = 1) {
  return make_simulated_backend(machine_from_preset(machine).value(),
                                {.bytes = SimulatedBytes::phantom, .seed = seed, .faults = std::move(faults)})
      .value();
}

/// Waits until all work of a stream is over; its state then.
inline EventState finish(Backend& backend, StreamId stream) {
  const EventId event = backend.record_event(stream).value();
  const EventState state = backend.wait_event(event, kNever);
  backend.release_event(event);
  return state;
}

inline Status copy_one(Backend& backend, StreamId stream, Route route, std::byte* to, const std::byte* from,
                       std::uint64_t bytes) {
  const Copy one{to, from, bytes};
  return backend.copy(stream, route, {&one, 1});
}

}  // namespace harvest::test
