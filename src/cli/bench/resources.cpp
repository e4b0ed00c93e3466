// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/resources.hpp"

#include <algorithm>

namespace harvest::cli::bench {

Result<Segment> Segment::map(Backend& backend, DeviceId device, std::uint64_t bytes,
                             std::span<const DeviceId> readers) {
  const DeviceInfo* info = device_of(backend, device);
  const std::uint64_t unit =
      info == nullptr ? 1 : std::max<std::uint64_t>(1, info->segment_granularity_bytes);
  const std::uint64_t whole = (bytes + unit - 1) / unit * unit;
  const auto data = backend.map_segment(device, whole, readers);
  if (!data) return tl::unexpected(data.error());
  return Segment(backend, *data, whole);
}

Segment& Segment::operator=(Segment&& other) noexcept {
  static_cast<void>(unmap());
  backend_ = std::exchange(other.backend_, nullptr);
  data_ = other.data_;
  bytes_ = other.bytes_;
  return *this;
}

Status Segment::unmap() {
  Backend* backend = std::exchange(backend_, nullptr);
  if (backend == nullptr) return {};
  return backend->unmap_segment(data_);
}

Status Event::wait() {
  const EventState state = backend_->wait_event(id_, kNever);
  if (state == EventState::complete) return {};
  return fail(ErrorCode::copy_failed, state == EventState::failed ? "work on a stream failed on its way"
                                                                  : "work on a stream never ends");
}

Result<Stream> Stream::create(Backend& backend, DeviceId device) {
  const auto id = backend.create_stream(device);
  if (!id) return tl::unexpected(id.error());
  return Stream(backend, device, *id);
}

Stream::~Stream() {
  if (backend_ == nullptr) return;
  static_cast<void>(wait());
  static_cast<void>(backend_->destroy_stream(id_));
}

Result<Event> Stream::record() const {
  const auto event = backend_->record_event(id_);
  if (!event) return tl::unexpected(event.error());
  return Event(*backend_, *event);
}

Status Stream::copy(Route route, std::byte* destination, const std::byte* source, std::uint64_t bytes) const {
  const Copy run{destination, source, bytes};
  return backend_->copy(id_, route, {&run, 1});
}

Status Stream::wait() const {
  auto event = record();
  if (!event) return tl::unexpected(event.error());
  return event->wait();
}

std::vector<DeviceId> gpus_of(const Backend& backend) {
  std::vector<DeviceId> gpus;
  for (const DeviceInfo& device : backend.devices())
    if (device.id != kHost) gpus.push_back(device.id);
  return gpus;
}

const DeviceInfo* device_of(const Backend& backend, DeviceId device) {
  for (const DeviceInfo& info : backend.devices())
    if (info.id == device) return &info;
  return nullptr;
}

const LinkInfo* link_of(const Backend& backend, Route route) {
  for (const LinkInfo& link : backend.links())
    if (link.from == route.from && link.to == route.to) return &link;
  return nullptr;
}

}  // namespace harvest::cli::bench
