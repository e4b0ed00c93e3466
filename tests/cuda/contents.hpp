// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

/// Bytes that tell each other apart, and their way.
namespace harvest::test {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

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
