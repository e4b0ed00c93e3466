// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <vector>

/// The streams that bring experts to their slots. Peers and host are two wires. The peers' has three lanes,
/// so that one copy's latency hides behind another's bytes; the host's is slow enough to hide it by itself.
/// Together they are as many as a data-centre GPU has copy engines.
namespace harvest::moe {

enum class Wire : std::uint8_t { peers, host };
inline constexpr std::size_t kWires = 2;
inline constexpr std::array<std::size_t, kWires> kLanesOfWire{3, 1};
inline constexpr std::size_t kLanes = kLanesOfWire[0] + kLanesOfWire[1];

/// Copies into one slot on one lane, with the event behind them. Flights of a lane end in order and are
/// numbered from 1, so that a number says all about an end.
struct Flight {
  EventId event = EventId::none;
  std::uint32_t slot = 0;
  std::uint64_t content = 0;  ///< which of the slot's contents this is a part of
  std::uint32_t expert = 0;
  DeviceId source = kHost;
  bool guessed = false;  ///< nobody had asked for it
};

/// Numbers of flights, the last of each lane; 0: none.
using FlightNumbers = std::array<std::uint64_t, kLanes>;

class Lanes {
 public:
  explicit Lanes(Backend& backend) : backend_(backend) {}
  ~Lanes();
  Lanes(const Lanes&) = delete;
  Lanes& operator=(const Lanes&) = delete;

  /// Errors: those of `Backend::create_stream`.
  [[nodiscard]] Status open(DeviceId consumer);
  /// Waits for all flights. Nothing departs any more.
  void close();

  [[nodiscard]] StreamId stream(std::size_t lane) const { return streams_[lane]; }
  /// A stream without work of its own, that waits for every flight which reads under a lease. Leases name it:
  /// so they are released as soon as their copies are given, and the PeerCache, which asks the stream of a
  /// lease when the memory may go, records no event on a lane. There one between a copy and its flight's own
  /// event would take the news that the copy failed.
  [[nodiscard]] StreamId lease_stream() const { return lease_stream_; }
  /// The first of `count` lanes of the peers, in turn. Lane i of them is `peer_lane(first, i)`.
  [[nodiscard]] std::size_t next_peer_lane(std::size_t count);
  [[nodiscard]] static std::size_t peer_lane(std::size_t first, std::size_t i) {
    return (first + i) % kLanesOfWire[0];
  }
  [[nodiscard]] static Wire wire_of(std::size_t lane) {
    return lane < kLanesOfWire[0] ? Wire::peers : Wire::host;
  }
  [[nodiscard]] static std::size_t host_lane() { return kLanesOfWire[0]; }

  /// Copies were given to the lane's stream: records their end, and releases the leases under which they
  /// read. Answers the flight's number; 0 if the device has no event for it, and then nobody can say when
  /// they end: their leases are held until it has one, and who writes their destination asks the lane's
  /// stream.
  [[nodiscard]] std::uint64_t depart(std::size_t lane, Flight flight, std::vector<Lease>& leases);

  /// Takes out the flights that have ended, and answers those that failed. Good until the next call.
  const std::vector<Flight>& settle();
  [[nodiscard]] bool any_under_way() const;
  [[nodiscard]] bool any_under_way(Wire wire) const;
  /// Whether `is_meant(flight)` of one that is under way.
  template <typename IsMeant>
  [[nodiscard]] bool any_under_way(Wire wire, IsMeant is_meant) const {
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      if (wire_of(lane) == wire && std::ranges::any_of(lanes_[lane].flights, is_meant)) return true;
    return false;
  }
  [[nodiscard]] bool ended(const FlightNumbers& numbers) const;

  /// Orders `stream` behind the flights; where the device cannot be told, waits here. Of its own lane a
  /// stream need not wait: `except`.
  void order(StreamId stream, const FlightNumbers& numbers, std::size_t except = kLanes);
  void order(StreamId stream, EventId event);
  /// An event behind the work of a stream that must not be lost sight of: where the driver has none to give
  /// now, asks again for up to a second. Errors: those of `Backend::record_event`.
  [[nodiscard]] Result<EventId> record(StreamId stream);

 private:
  struct Lane {
    std::deque<Flight> flights;  ///< the first has number `ended + 1`
    std::uint64_t ended = 0;
    std::vector<Lease> unguarded;  ///< of copies without an event
  };
  /// Lets go of a lane's leases, if there is an event behind the copies that read under them.
  void guard(Lane& lane, const Result<EventId>& event);
  [[nodiscard]] EventId event_of(std::size_t lane, std::uint64_t number) const;

  Backend& backend_;
  std::array<StreamId, kLanes> streams_{};
  StreamId lease_stream_ = StreamId::none;
  std::array<Lane, kLanes> lanes_{};
  std::size_t turn_ = 0;  ///< of the peers' lanes
  std::vector<Flight> failed_;
};

}  // namespace harvest::moe
