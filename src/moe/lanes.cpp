// SPDX-License-Identifier: Apache-2.0
#include "moe/lanes.hpp"

#include <iterator>
#include <utility>

namespace harvest::moe {
namespace {

constexpr int kRecordAttempts = 1000;
constexpr TimeNs kRecordPauseNs = 1'000'000;

}  // namespace

Lanes::~Lanes() {
  close();
  for (const StreamId stream : streams_)
    if (stream != StreamId::none) static_cast<void>(backend_.destroy_stream(stream));
  if (lease_stream_ != StreamId::none) static_cast<void>(backend_.destroy_stream(lease_stream_));
}

Status Lanes::open(DeviceId consumer) {
  const auto create = [&](StreamId& stream) -> Status {
    const auto created = backend_.create_stream(consumer);
    if (!created) return tl::unexpected(created.error());
    stream = *created;
    return {};
  };
  for (StreamId& stream : streams_)
    if (Status status = create(stream); !status) return status;
  return create(lease_stream_);
}

void Lanes::close() {
  for (std::size_t number = 0; number < kLanes; ++number) {
    Lane& lane = lanes_[number];
    for (const Flight& flight : lane.flights) {
      static_cast<void>(backend_.wait_event(flight.event, kNever));
      backend_.release_event(flight.event);
    }
    if (!lane.unguarded.empty()) {
      if (const auto event = record(streams_[number])) {
        static_cast<void>(backend_.wait_event(*event, kNever));
        backend_.release_event(*event);
      }
      lane.unguarded.clear();
    }
    lane.ended += lane.flights.size();
    lane.flights.clear();
  }
}

std::size_t Lanes::next_peer_lane(std::size_t count) {
  return std::exchange(turn_, (turn_ + count) % kLanesOfWire[0]);
}

Result<EventId> Lanes::record(StreamId stream) {
  auto event = backend_.record_event(stream);
  for (int attempt = 1; attempt < kRecordAttempts; ++attempt) {
    if (event || event.error().code != ErrorCode::out_of_memory) break;
    backend_.sleep_until(backend_.now_ns() + kRecordPauseNs);
    event = backend_.record_event(stream);
  }
  return event;
}

std::uint64_t Lanes::depart(std::size_t number, Flight flight, std::vector<Lease>& leases) {
  Lane& lane = lanes_[number];
  lane.unguarded.insert(lane.unguarded.end(), std::make_move_iterator(leases.begin()),
                        std::make_move_iterator(leases.end()));
  leases.clear();
  const auto event = record(streams_[number]);
  guard(lane, event);
  if (!event) return 0;
  flight.event = *event;
  lane.flights.push_back(flight);
  return lane.ended + lane.flights.size();
}

/// A device that is lost, or has no such stream, copies nothing any more.
void Lanes::guard(Lane& lane, const Result<EventId>& event) {
  if (lane.unguarded.empty()) return;
  if (event)
    order(lease_stream_, *event);
  else if (event.error().code != ErrorCode::unavailable && event.error().code != ErrorCode::not_found)
    return;
  lane.unguarded.clear();
}

const std::vector<Flight>& Lanes::settle() {
  failed_.clear();
  for (std::size_t number = 0; number < kLanes; ++number) {
    Lane& lane = lanes_[number];
    if (!lane.unguarded.empty()) {
      const auto event = backend_.record_event(streams_[number]);
      guard(lane, event);
      if (event) backend_.release_event(*event);
    }
    while (!lane.flights.empty()) {
      const Flight& flight = lane.flights.front();
      const EventState state = backend_.query_event(flight.event);
      if (state == EventState::pending) break;
      if (state == EventState::failed) failed_.push_back(flight);
      backend_.release_event(flight.event);
      lane.flights.pop_front();
      ++lane.ended;
    }
  }
  return failed_;
}

bool Lanes::any_under_way() const {
  for (const Lane& lane : lanes_)
    if (!lane.flights.empty()) return true;
  return false;
}

bool Lanes::any_under_way(Wire wire) const {
  for (std::size_t lane = 0; lane < kLanes; ++lane)
    if (wire_of(lane) == wire && !lanes_[lane].flights.empty()) return true;
  return false;
}

bool Lanes::ended(const FlightNumbers& numbers) const {
  for (std::size_t lane = 0; lane < kLanes; ++lane)
    if (numbers[lane] > lanes_[lane].ended) return false;
  return true;
}

EventId Lanes::event_of(std::size_t number, std::uint64_t flight) const {
  const Lane& lane = lanes_[number];
  return lane.flights[flight - lane.ended - 1].event;
}

void Lanes::order(StreamId stream, EventId event) {
  if (backend_.stream_wait(stream, event)) return;
  static_cast<void>(backend_.wait_event(event, kNever));
}

void Lanes::order(StreamId stream, const FlightNumbers& numbers, std::size_t except) {
  for (std::size_t lane = 0; lane < kLanes; ++lane)
    if (lane != except && numbers[lane] > lanes_[lane].ended) order(stream, event_of(lane, numbers[lane]));
}

}  // namespace harvest::moe
