// SPDX-License-Identifier: Apache-2.0
#include "kv/lanes.hpp"

#include <utility>

namespace harvest::kv {
namespace {

constexpr TimeNs kRecordPauseNs = 1'000'000;
constexpr std::uint64_t kBufferAlignment = 256;

}  // namespace

Lanes::~Lanes() {
  close();
  for (const Lane& lane : lanes_)
    if (lane.stream != StreamId::none) static_cast<void>(backend_.destroy_stream(lane.stream));
  for (const StreamId stream : lease_streams_)
    if (stream != StreamId::none) static_cast<void>(backend_.destroy_stream(stream));
  if (buffers_ != nullptr) static_cast<void>(backend_.unmap_segment(buffers_));
}

Status Lanes::open(DeviceId consumer, std::uint64_t buffer_bytes) {
  const auto create = [&](StreamId& stream) -> Status {
    const auto created = backend_.create_stream(consumer);
    if (!created) return tl::unexpected(created.error());
    stream = *created;
    return {};
  };
  for (Lane& lane : lanes_)
    if (Status status = create(lane.stream); !status) return status;
  for (StreamId& stream : lease_streams_)
    if (Status status = create(stream); !status) return status;
  if (buffer_bytes == 0) return {};
  buffer_bytes_ = (buffer_bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  const std::uint64_t granularity =
      backend_.devices()[static_cast<std::size_t>(consumer)].segment_granularity_bytes;
  const std::uint64_t bytes = (kLanes * buffer_bytes_ + granularity - 1) / granularity * granularity;
  const auto mapped = backend_.map_segment(consumer, bytes, {});
  if (!mapped) return tl::unexpected(mapped.error());
  buffers_ = *mapped;
  return {};
}

void Lanes::close() {
  for (std::size_t number = 0; number < kLanes; ++number) {
    Lane& lane = lanes_[number];
    if (lane.stream == StreamId::none) continue;
    wait(lane.stream);
    lane.ended += lane.flights.size();
    lane.flights.clear();
  }
  under_way_ = {};
}

std::size_t Lanes::next_lane(Wire wire) {
  const auto number = static_cast<std::size_t>(wire);
  const std::size_t turn = std::exchange(turn_[number], (turn_[number] + 1) % kLanesOfWire[number]);
  return wire == Wire::peers ? turn : kLanesOfWire[0] + turn;
}

std::optional<EventId> Lanes::record(StreamId stream) {
  for (;;) {
    const auto event = backend_.record_event(stream);
    if (event) return *event;
    if (event.error().code != ErrorCode::out_of_memory) return std::nullopt;
    backend_.sleep_until(backend_.now_ns() + kRecordPauseNs);
  }
}

void Lanes::wait(StreamId stream) {
  const auto event = record(stream);
  if (!event) return;
  static_cast<void>(backend_.wait_event(*event, kNever));
  backend_.release_event(*event);
}

SharedEvent Lanes::record_shared(StreamId stream) {
  const auto event = record(stream);
  if (!event) return nullptr;
  return {new EventId(*event), [&backend = backend_](const EventId* shared) {
            backend.release_event(*shared);
            delete shared;
          }};
}

std::uint64_t Lanes::depart(std::size_t number, Flight flight) {
  Lane& lane = lanes_[number];
  flight.event = record_shared(lane.stream);
  if (flight.event) order(lease_stream(wire_of(number)), *flight.event);
  under_way_[static_cast<std::size_t>(wire_of(number))] += flight.bytes;
  lane.flights.push_back(std::move(flight));
  return lane.ended + lane.flights.size();
}

const std::vector<Lanes::Landed>& Lanes::settle() {
  landed_.clear();
  for (std::size_t number = 0; number < kLanes; ++number) {
    Lane& lane = lanes_[number];
    while (!lane.flights.empty()) {
      Flight& flight = lane.flights.front();
      const EventState state = flight.event ? backend_.query_event(*flight.event) : EventState::failed;
      if (state == EventState::pending) break;
      flight.event.reset();
      under_way_[static_cast<std::size_t>(wire_of(number))] -= flight.bytes;
      landed_.push_back({std::move(flight), state == EventState::failed});
      lane.flights.pop_front();
      ++lane.ended;
    }
  }
  return landed_;
}

void Lanes::order(StreamId stream, EventId event) {
  if (backend_.stream_wait(stream, event)) return;
  static_cast<void>(backend_.wait_event(event, kNever));
}

void Lanes::order(StreamId stream, const FlightNumbers& numbers) {
  for (std::size_t number = 0; number < kLanes; ++number) {
    const Lane& lane = lanes_[number];
    if (numbers[number] <= lane.ended) continue;
    const SharedEvent& event = lane.flights[numbers[number] - lane.ended - 1].event;
    if (event) order(stream, *event);
  }
}

/// One without an event is over when those before it are.
SharedEvent Lanes::event_of(const FlightNumbers& numbers) const {
  for (std::size_t number = 0; number < kLanes; ++number) {
    const Lane& lane = lanes_[number];
    for (std::uint64_t flight = numbers[number]; flight > lane.ended; --flight)
      if (const SharedEvent& event = lane.flights[flight - lane.ended - 1].event) return event;
  }
  return nullptr;
}

}  // namespace harvest::kv
