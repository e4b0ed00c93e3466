// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

namespace harvest::test {

/// Passes every call on: the base of backends that do one thing differently.
class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend& inner) : inner_(inner) {}

  const BackendInfo& info() const override { return inner_.info(); }
  std::span<const DeviceInfo> devices() const override { return inner_.devices(); }
  std::span<const LinkInfo> links() const override { return inner_.links(); }
  Result<MemoryInfo> query_memory(DeviceId device) override { return inner_.query_memory(device); }
  Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override {
    return inner_.map_segment(device, bytes, readers);
  }
  Status unmap_segment(std::byte* address) override { return inner_.unmap_segment(address); }
  Status register_host(std::byte* address, std::uint64_t bytes) override {
    return inner_.register_host(address, bytes);
  }
  Status unregister_host(std::byte* address) override { return inner_.unregister_host(address); }
  Result<StreamId> create_stream(DeviceId device) override { return inner_.create_stream(device); }
  Result<StreamId> wrap_stream(DeviceId device, void* native) override {
    return inner_.wrap_stream(device, native);
  }
  Status destroy_stream(StreamId stream) override { return inner_.destroy_stream(stream); }
  Result<DeviceId> stream_device(StreamId stream) const override { return inner_.stream_device(stream); }
  bool is_capturing(StreamId stream) const override { return inner_.is_capturing(stream); }
  Result<EventId> record_event(StreamId stream) override { return inner_.record_event(stream); }
  void release_event(EventId event) override { inner_.release_event(event); }
  EventState query_event(EventId event) override { return inner_.query_event(event); }
  Status stream_wait(StreamId stream, EventId event) override { return inner_.stream_wait(stream, event); }
  EventState wait_event(EventId event, TimeNs deadline_ns) override {
    return inner_.wait_event(event, deadline_ns);
  }
  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override {
    return inner_.copy(stream, route, copies);
  }
  Status fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override {
    return inner_.fill(stream, device, address, bytes, value);
  }
  TimeNs now_ns() const override { return inner_.now_ns(); }
  void sleep_until(TimeNs until_ns) override { inner_.sleep_until(until_ns); }

 protected:
  Backend& inner_;
};

}  // namespace harvest::test
