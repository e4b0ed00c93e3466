// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

/// Words that every part of Harvest shares. Bytes, nanoseconds and bytes per second are written in
/// names, last: `free_bytes`, `deadline_ns`, `bandwidth_bytes_per_s`.
namespace harvest {

/// A GPU by its index on this machine, or `kHost` for host memory, which is just another device.
using DeviceId = std::int32_t;
inline constexpr DeviceId kHost = -1;

/// A point on the backend's clock, or a length of time, in nanoseconds. The clock is virtual on the
/// simulated backend. `kNever` is later than every other point.
using TimeNs = std::int64_t;
inline constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max();

/// The name of an object: 128 bits, so that a hash of a prefix can be a key. Keys that are small
/// numbers are fine too; Harvest mixes the bits itself.
struct Key {
  std::uint64_t high = 0;
  std::uint64_t low = 0;

  constexpr Key() = default;
  constexpr Key(std::uint64_t number) : low(number) {}  // NOLINT: a number is a key
  constexpr Key(std::uint64_t high_bits, std::uint64_t low_bits) : high(high_bits), low(low_bits) {}

  friend constexpr auto operator<=>(const Key&, const Key&) = default;
};

/// Names one content of a key; larger for a later one, never used twice in a cache, 0 for none.
/// Bytes under one (key, generation) never change.
using Generation = std::uint64_t;

/// Where a copy of an object is, seen from the consumer: its own memory, a peer's, or host memory.
/// `none` is the answer for a miss.
enum class Tier : std::uint8_t { local, peer, host, none };
inline constexpr std::size_t kTiers = 3;

/// Where an object's authoritative bytes are.
enum class Backing : std::uint8_t {
  external_host,  ///< in the caller's own host memory, used in place, never copied; it outlives the object
  managed_host,   ///< in Harvest's pinned host pool; copies on peers come and go
  spill,          ///< on a peer only; moved to another peer or to host memory when that is revoked
  lossy,          ///< on a peer only; may vanish, which is reported once; the caller recomputes
};

[[nodiscard]] std::string_view to_string(Tier tier);
[[nodiscard]] std::string_view to_string(Backing backing);

/// A queue of GPU work in order, made or wrapped by a `Backend`. Value 0 is no stream.
enum class StreamId : std::uint32_t { none = 0 };

/// A point in a stream that work can wait for, made by a `Backend`. Value 0 is no event.
enum class EventId : std::uint64_t { none = 0 };

}  // namespace harvest
