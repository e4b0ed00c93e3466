// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

/// The streams that bring blocks to their pages. A lane copies a piece of a block from a peer or the host
/// into its buffer, and scatters it from there into pages, all in the order of its stream: so nothing else
/// has to order the two, nor the next piece behind them. While one lane's copy starts or its piece is
/// scattered, the wire carries another's.
namespace harvest::kv {

/// Peers and host are two wires. Each has more lanes than a GPU has copy engines, which so serve them in
/// turn: lanes that run side by side end side by side, and leave the wire idle together.
enum class Wire : std::uint8_t { peers, host };
inline constexpr std::size_t kWires = 2;
inline constexpr std::array<std::size_t, kWires> kLanesOfWire{6, 5};
inline constexpr std::size_t kLanes = kLanesOfWire[0] + kLanesOfWire[1];

/// An event that goes back when the last lets go of it: one may wait for it while another sees that it ended.
using SharedEvent = std::shared_ptr<const EventId>;

/// A piece of a block on its way, with the event behind it; none if its device is lost, which copies nothing
/// any more.
struct Flight {
  SharedEvent event{};
  std::uint64_t load = 0;
  std::uint32_t block = 0;  ///< its place in the load
  std::uint64_t bytes = 0;
};

/// Flights of a lane are numbered from 1 and end in order. Of each lane the last; 0: none.
using FlightNumbers = std::array<std::uint64_t, kLanes>;

class Lanes {
 public:
  explicit Lanes(Backend& backend) : backend_(backend) {}
  ~Lanes();
  Lanes(const Lanes&) = delete;
  Lanes& operator=(const Lanes&) = delete;

  /// With a buffer of `buffer_bytes` for each lane, or none at all. Errors: those of the backend.
  [[nodiscard]] Status open(DeviceId consumer, std::uint64_t buffer_bytes);
  /// Waits for all that lanes were given.
  void close();

  /// The wire's lanes take turns.
  [[nodiscard]] std::size_t next_lane(Wire wire);
  [[nodiscard]] static Wire wire_of(std::size_t lane) {
    return lane < kLanesOfWire[0] ? Wire::peers : Wire::host;
  }
  [[nodiscard]] StreamId stream(std::size_t lane) const { return lanes_[lane].stream; }
  [[nodiscard]] std::byte* buffer(std::size_t lane) const {
    return buffers_ == nullptr ? nullptr : buffers_ + lane * buffer_bytes_;
  }
  /// A stream without work of its own, that waits for every flight of the wire: leases name it, so that they
  /// can be released as soon as their copies are given, and nobody records events on a lane, where one
  /// between a copy and its flight's own event would take the news that the copy failed. One for each wire: a
  /// peer's memory is not to wait for the host's copies.
  [[nodiscard]] StreamId lease_stream(Wire wire) const {
    return lease_streams_[static_cast<std::size_t>(wire)];
  }

  /// Copies were given to the lane: an event behind them. Answers the flight's number.
  std::uint64_t depart(std::size_t lane, Flight flight);
  /// An event behind the work of a stream that must not be lost sight of: where the driver has none to give,
  /// asks until it has. Nothing if the device is lost or the stream not known: then no work runs.
  [[nodiscard]] std::optional<EventId> record(StreamId stream);
  /// Until all work of a stream is done.
  void wait(StreamId stream);
  /// As `record`, for several who look at it.
  [[nodiscard]] SharedEvent record_shared(StreamId stream);

  struct Landed {
    Flight flight;
    bool failed = false;
  };
  /// Takes out the flights that have ended. Good until the next call.
  const std::vector<Landed>& settle();
  [[nodiscard]] std::uint64_t bytes_under_way(Wire wire) const {
    return under_way_[static_cast<std::size_t>(wire)];
  }

  /// Orders `stream` behind the flights; where the device cannot be told, waits here.
  void order(StreamId stream, const FlightNumbers& numbers);
  void order(StreamId stream, EventId event);
  /// Of the last of the flights on the first lane where it has not ended; nothing if all have.
  [[nodiscard]] SharedEvent event_of(const FlightNumbers& numbers) const;

 private:
  struct Lane {
    StreamId stream = StreamId::none;
    std::deque<Flight> flights;  ///< the first has number `ended + 1`
    std::uint64_t ended = 0;
  };

  Backend& backend_;
  std::array<Lane, kLanes> lanes_{};
  std::array<std::size_t, kWires> turn_{};
  std::array<std::uint64_t, kWires> under_way_{};
  std::array<StreamId, kWires> lease_streams_{};
  std::byte* buffers_ = nullptr;
  std::uint64_t buffer_bytes_ = 0;
  std::vector<Landed> landed_;
};

}  // namespace harvest::kv
