// SPDX-License-Identifier: Apache-2.0
#include <harvest/loopback.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <vector>

namespace harvest {
namespace {

constexpr DeviceId kFirst = 0;  ///< the GPU
constexpr DeviceId kTwin = 1;   ///< the GPU again

class LoopbackBackend final : public Backend {
 public:
  LoopbackBackend(Backend& inner, DeviceId device) : inner_(inner), device_(device), info_(inner.info()) {
    info_.name += " loopback";
    info_.loopback = true;
    for (const DeviceInfo& known : inner.devices()) {
      if (known.id != device && known.id != kHost) continue;
      DeviceInfo shown = known;
      if (known.id == kHost) {
        devices_.push_back(shown);
        continue;
      }
      shown.id = kFirst;
      devices_.push_back(shown);
      shown.id = kTwin;
      shown.name += " (loopback)";
      devices_.push_back(shown);
    }
    for (const LinkInfo& link : inner.links()) add_links(link);
  }

  const BackendInfo& info() const override { return info_; }
  std::span<const DeviceInfo> devices() const override { return devices_; }
  std::span<const LinkInfo> links() const override { return links_; }

  Result<MemoryInfo> query_memory(DeviceId device) override {
    if (!is_known(device)) return no_device(device);
    return inner_.query_memory(inside(device));
  }

  Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override {
    if (!is_known(device)) return no_device(device);
    for (const DeviceId reader : readers)
      if (!is_known(reader)) return no_device(reader);
    // The one GPU may read its own memory anyway, and the host is no reader.
    return inner_.map_segment(inside(device), bytes, {});
  }
  Status unmap_segment(std::byte* address) override { return inner_.unmap_segment(address); }
  Status register_host(std::byte* address, std::uint64_t bytes) override {
    return inner_.register_host(address, bytes);
  }
  Status unregister_host(std::byte* address) override { return inner_.unregister_host(address); }

  Result<StreamId> create_stream(DeviceId device) override {
    if (!is_known(device) || device == kHost) return no_device(device);
    return remember(inner_.create_stream(device_), device);
  }
  Result<StreamId> wrap_stream(DeviceId device, void* native) override {
    if (!is_known(device) || device == kHost) return no_device(device);
    return remember(inner_.wrap_stream(device_, native), device);
  }
  Status destroy_stream(StreamId stream) override {
    Status status = inner_.destroy_stream(stream);
    const std::unique_lock lock(mutex_);
    of_twin_.erase(stream);
    return status;
  }
  Result<DeviceId> stream_device(StreamId stream) const override {
    const auto device = inner_.stream_device(stream);
    if (!device) return device;
    const std::shared_lock lock(mutex_);
    return of_twin_.contains(stream) ? kTwin : kFirst;
  }
  bool is_capturing(StreamId stream) const override { return inner_.is_capturing(stream); }

  Result<EventId> record_event(StreamId stream) override { return inner_.record_event(stream); }
  void release_event(EventId event) override { inner_.release_event(event); }
  EventState query_event(EventId event) override { return inner_.query_event(event); }
  Status stream_wait(StreamId stream, EventId event) override { return inner_.stream_wait(stream, event); }
  EventState wait_event(EventId event, TimeNs deadline_ns) override {
    return inner_.wait_event(event, deadline_ns);
  }

  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override {
    for (const DeviceId end : {route.from, route.to})
      if (!is_known(end)) return no_device(end);
    return inner_.copy(stream, {inside(route.from), inside(route.to)}, copies);
  }
  Status fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override {
    if (!is_known(device)) return no_device(device);
    return inner_.fill(stream, inside(device), address, bytes, value);
  }

  TimeNs now_ns() const override { return inner_.now_ns(); }
  void sleep_until(TimeNs until_ns) override { inner_.sleep_until(until_ns); }

 private:
  static bool is_known(DeviceId device) { return device == kFirst || device == kTwin || device == kHost; }
  static tl::unexpected<Error> no_device(DeviceId device) {
    return fail(
        ErrorCode::not_found,
        fmt::format("no device {}; in loopback there are GPU 0, GPU 1 and the host, {}", device, kHost));
  }
  [[nodiscard]] DeviceId inside(DeviceId device) const { return device == kHost ? kHost : device_; }

  /// A link of the one GPU stands for all of its pairs.
  void add_links(const LinkInfo& link) {
    constexpr std::array kGpus{kFirst, kTwin};
    constexpr std::array kJustHost{kHost};
    const auto ends = [&](DeviceId end) {
      return end == kHost ? std::span<const DeviceId>(kJustHost) : std::span<const DeviceId>(kGpus);
    };
    for (const DeviceId end : {link.from, link.to})
      if (end != kHost && end != device_) return;
    for (const DeviceId from : ends(link.from))
      for (const DeviceId to : ends(link.to)) {
        LinkInfo shown = link;
        shown.from = from;
        shown.to = to;
        links_.push_back(std::move(shown));
      }
  }

  Result<StreamId> remember(Result<StreamId> stream, DeviceId device) {
    if (!stream || device != kTwin) return stream;
    const std::unique_lock lock(mutex_);
    of_twin_.insert(*stream);
    return stream;
  }

  Backend& inner_;
  const DeviceId device_;
  BackendInfo info_;
  std::vector<DeviceInfo> devices_;
  std::vector<LinkInfo> links_;
  mutable std::shared_mutex mutex_;
  std::set<StreamId> of_twin_;  ///< guarded by mutex_
};

}  // namespace

Result<std::unique_ptr<Backend>> make_loopback_backend(Backend& inner, DeviceId device) {
  const auto devices = inner.devices();
  const bool known = device != kHost && std::any_of(devices.begin(), devices.end(),
                                                    [&](const DeviceInfo& one) { return one.id == device; });
  if (!known)
    return fail(ErrorCode::not_found,
                fmt::format("device {} is not a GPU of this machine; it has {}", device, devices.size() - 1));
  return std::make_unique<LoopbackBackend>(inner, device);
}

}  // namespace harvest
