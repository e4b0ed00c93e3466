// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

/// What a benchmark holds of a machine, given back by itself. A stream ends its work before it goes, so it
/// is declared after the segments that the work touches.
namespace harvest::cli::bench {

/// Memory of one device. Its size is rounded up to what the device gives.
class Segment {
 public:
  [[nodiscard]] static Result<Segment> map(Backend& backend, DeviceId device, std::uint64_t bytes,
                                           std::span<const DeviceId> readers = {});
  Segment() = default;
  Segment(Segment&& other) noexcept
      : backend_(std::exchange(other.backend_, nullptr)), data_(other.data_), bytes_(other.bytes_) {}
  Segment& operator=(Segment&& other) noexcept;
  ~Segment() { static_cast<void>(unmap()); }

  /// Requires: no work touches it any more.
  [[nodiscard]] Status unmap();

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  Segment(Backend& backend, std::byte* data, std::uint64_t bytes)
      : backend_(&backend), data_(data), bytes_(bytes) {}
  Backend* backend_ = nullptr;
  std::byte* data_ = nullptr;
  std::uint64_t bytes_ = 0;
};

class Event {
 public:
  Event(Backend& backend, EventId id) : backend_(&backend), id_(id) {}
  Event(Event&& other) noexcept : backend_(std::exchange(other.backend_, nullptr)), id_(other.id_) {}
  Event& operator=(Event&&) = delete;
  ~Event() {
    if (backend_ != nullptr) backend_->release_event(id_);
  }
  [[nodiscard]] bool pending() { return backend_->query_event(id_) == EventState::pending; }
  /// Errors: copy_failed (work before it failed).
  [[nodiscard]] Status wait();

 private:
  Backend* backend_;
  EventId id_;
};

class Stream {
 public:
  [[nodiscard]] static Result<Stream> create(Backend& backend, DeviceId device);
  Stream(Stream&& other) noexcept
      : backend_(std::exchange(other.backend_, nullptr)), device_(other.device_), id_(other.id_) {}
  Stream& operator=(Stream&&) = delete;
  ~Stream();

  [[nodiscard]] Backend& backend() const { return *backend_; }
  [[nodiscard]] DeviceId device() const { return device_; }
  [[nodiscard]] StreamId id() const { return id_; }
  [[nodiscard]] Result<Event> record() const;
  [[nodiscard]] Status copy(Route route, std::byte* destination, const std::byte* source,
                            std::uint64_t bytes) const;
  /// Until all that was given is done. Errors: copy_failed.
  [[nodiscard]] Status wait() const;

 private:
  Stream(Backend& backend, DeviceId device, StreamId id) : backend_(&backend), device_(device), id_(id) {}
  Backend* backend_;
  DeviceId device_;
  StreamId id_;
};

/// The GPUs of a machine.
[[nodiscard]] std::vector<DeviceId> gpus_of(const Backend& backend);
/// Null if there is none.
[[nodiscard]] const DeviceInfo* device_of(const Backend& backend, DeviceId device);
[[nodiscard]] const LinkInfo* link_of(const Backend& backend, Route route);

}  // namespace harvest::cli::bench
