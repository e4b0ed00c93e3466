// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <set>

#include "backend/forwarding_backend.hpp"
#include "core/random.hpp"

namespace harvest::moe {

/// Stands between both caches and their machine, and sees what they took, gave back and copied into the
/// slots.
class LifeWitness : public test::ForwardingBackend {
 public:
  explicit LifeWitness(Backend& inner) : ForwardingBackend(inner) {}

  /// Copies into this range are counted from now on.
  void watch_slots(const std::byte* begin, std::uint64_t bytes) {
    slots_begin_ = begin;
    slots_end_ = begin + bytes;
  }
  /// Bytes of copies into slots that the machine accepted, by where they came from.
  [[nodiscard]] const std::map<DeviceId, std::uint64_t>& brought_bytes() const { return brought_bytes_; }

  /// The driver has no event to give, with this probability each time that somebody asks for one.
  void set_shortage_of_events(double probability, std::uint64_t seed) {
    shortage_ = probability;
    random_ = testing::Random(seed);
  }

  [[nodiscard]] std::size_t live_events() const { return events_.size(); }
  [[nodiscard]] std::size_t live_streams() const { return streams_.size(); }
  [[nodiscard]] std::size_t live_segments() const { return segments_.size(); }

  Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override {
    auto address = inner_.map_segment(device, bytes, readers);
    if (address) segments_.insert(*address);
    return address;
  }
  Status unmap_segment(std::byte* address) override {
    segments_.erase(address);
    return inner_.unmap_segment(address);
  }
  Result<StreamId> create_stream(DeviceId device) override {
    auto stream = inner_.create_stream(device);
    if (stream) streams_.insert(*stream);
    return stream;
  }
  Status destroy_stream(StreamId stream) override {
    streams_.erase(stream);
    return inner_.destroy_stream(stream);
  }
  Result<EventId> record_event(StreamId stream) override {
    if (shortage_ > 0 && random_.chance(shortage_)) return fail(ErrorCode::out_of_memory, "no event is left");
    auto event = inner_.record_event(stream);
    if (event) events_.insert(*event);
    return event;
  }
  void release_event(EventId event) override {
    events_.erase(event);
    inner_.release_event(event);
  }
  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override {
    Status given = inner_.copy(stream, route, copies);
    if (!given) return given;
    for (const Copy& copy : copies)
      if (copy.destination >= slots_begin_ && copy.destination < slots_end_)
        brought_bytes_[route.from] += copy.bytes;
    return given;
  }

 private:
  const std::byte* slots_begin_ = nullptr;
  const std::byte* slots_end_ = nullptr;
  std::map<DeviceId, std::uint64_t> brought_bytes_;
  std::set<std::byte*> segments_;
  std::set<EventId> events_;
  double shortage_ = 0;
  testing::Random random_{0};
  std::set<StreamId> streams_;
};

}  // namespace harvest::moe
