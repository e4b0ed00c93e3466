// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/access_history.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest {

struct CheckedOptions {
  /// Stop the process at the first violation, with its message.
  bool abort = false;
  /// Called for each violation, also for leaks when the backend is destroyed, without a lock held.
  std::function<void(const std::string&)> on_violation{};
};

/// Puts every call through the contract of `Backend` and passes it on. What breaks the contract is a
/// violation: it is recorded, and where passing it on would be undefined it is refused instead.
///
/// Violations: streams and events that are unknown or were given back; null, empty and stray addresses;
/// a route that does not match the memory; memory that no device of a copy can reach (`readers`); two
/// pieces of work that touch the same bytes, one of them writing, with no order between them; unmapping
/// memory with work on it that the host has not seen the end of; what is left at the end.
///
/// Order is known from streams, events and what the host saw (`query_event` and `wait_event` with an
/// answer other than pending); that work happened to be over in time does not count. All host threads
/// count as one. Thread-safe; submissions pass one at a time.
class CheckedBackend final : public Backend {
 public:
  /// `inner` outlives this.
  explicit CheckedBackend(Backend& inner, CheckedOptions options = {});
  explicit CheckedBackend(std::unique_ptr<Backend> inner, CheckedOptions options = {});
  ~CheckedBackend() override;

  /// What was violated so far, in words.
  [[nodiscard]] std::vector<std::string> violations() const HARVEST_EXCLUDES(mutex_);

  const BackendInfo& info() const override { return inner_.info(); }
  std::span<const DeviceInfo> devices() const override { return inner_.devices(); }
  std::span<const LinkInfo> links() const override { return inner_.links(); }
  Result<MemoryInfo> query_memory(DeviceId device) override { return inner_.query_memory(device); }
  Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override HARVEST_EXCLUDES(mutex_);
  Status unmap_segment(std::byte* address) override HARVEST_EXCLUDES(mutex_);
  Status register_host(std::byte* address, std::uint64_t bytes) override HARVEST_EXCLUDES(mutex_);
  Status unregister_host(std::byte* address) override HARVEST_EXCLUDES(mutex_);
  Result<StreamId> create_stream(DeviceId device) override HARVEST_EXCLUDES(mutex_);
  Result<StreamId> wrap_stream(DeviceId device, void* native) override HARVEST_EXCLUDES(mutex_);
  Status destroy_stream(StreamId stream) override HARVEST_EXCLUDES(mutex_);
  Result<DeviceId> stream_device(StreamId stream) const override { return inner_.stream_device(stream); }
  bool is_capturing(StreamId stream) const override { return inner_.is_capturing(stream); }
  Result<EventId> record_event(StreamId stream) override HARVEST_EXCLUDES(mutex_);
  void release_event(EventId event) override HARVEST_EXCLUDES(mutex_);
  EventState query_event(EventId event) override HARVEST_EXCLUDES(mutex_);
  Status stream_wait(StreamId stream, EventId event) override HARVEST_EXCLUDES(mutex_);
  EventState wait_event(EventId event, TimeNs deadline_ns) override HARVEST_EXCLUDES(mutex_);
  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override HARVEST_EXCLUDES(mutex_);
  Status fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override HARVEST_EXCLUDES(mutex_);
  TimeNs now_ns() const override { return inner_.now_ns(); }
  void sleep_until(TimeNs until_ns) override { inner_.sleep_until(until_ns); }

 private:
  struct Segment {
    DeviceId device = kHost;
    std::uint64_t bytes = 0;
    std::vector<DeviceId> readers;
    AccessHistory history;
  };
  struct Stream {
    DeviceId device = kHost;
    std::size_t index = 0;
    bool wrapped = false;
    std::uint64_t given = 0;  ///< pieces of work so far
    VectorClock before;       ///< what its next piece of work comes after
  };
  /// What a call found wrong; reported when the lock is open again.
  using Findings = std::vector<std::string>;

  void report(const Findings& findings) HARVEST_EXCLUDES(mutex_);
  Result<StreamId> add_stream(Result<StreamId> made, DeviceId device, bool wrapped) HARVEST_EXCLUDES(mutex_);
  Stream* find_stream(StreamId stream, Findings& findings) HARVEST_REQUIRES(mutex_);
  VectorClock* find_event(EventId event, Findings& findings) HARVEST_REQUIRES(mutex_);
  void saw(EventId event) HARVEST_EXCLUDES(mutex_);

  /// The segment that holds an address, or null.
  Segment* segment_at(const std::byte* address, std::uintptr_t* begin = nullptr) HARVEST_REQUIRES(mutex_);
  bool check_place(const std::byte* address, std::uint64_t bytes, DeviceId device, Findings& findings)
      HARVEST_REQUIRES(mutex_);
  bool has_route(Route route) const;
  bool can_access(DeviceId device, const std::byte* address) HARVEST_REQUIRES(mutex_);
  bool check_copy(const Stream& stream, Route route, const Copy& copy, Findings& findings)
      HARVEST_REQUIRES(mutex_);
  void check_races(const Stream& stream, std::span<const Access> accesses, Findings& findings)
      HARVEST_REQUIRES(mutex_);
  void add_accesses(Stream& stream, std::span<const Access> accesses) HARVEST_REQUIRES(mutex_);
  AccessHistory& history_of(const Access& access) HARVEST_REQUIRES(mutex_);

  const std::unique_ptr<Backend> owned_;
  Backend& inner_;
  const CheckedOptions options_;

  mutable Mutex mutex_;
  std::vector<std::string> violations_ HARVEST_GUARDED_BY(mutex_);
  std::map<std::uintptr_t, Segment> segments_ HARVEST_GUARDED_BY(mutex_);
  std::map<std::uintptr_t, std::uint64_t> registered_ HARVEST_GUARDED_BY(mutex_);
  std::map<StreamId, Stream> streams_ HARVEST_GUARDED_BY(mutex_);
  std::map<EventId, VectorClock> events_ HARVEST_GUARDED_BY(mutex_);
  std::size_t next_stream_index_ HARVEST_GUARDED_BY(mutex_) = 0;
  VectorClock host_ HARVEST_GUARDED_BY(mutex_);            ///< what the host has seen the end of
  AccessHistory other_memory_ HARVEST_GUARDED_BY(mutex_);  ///< the caller's own
};

/// Errors: none. The one to use where the inner backend belongs to the caller.
[[nodiscard]] std::unique_ptr<CheckedBackend> make_checked_backend(Backend& inner,
                                                                   CheckedOptions options = {});
[[nodiscard]] std::unique_ptr<CheckedBackend> make_checked_backend(std::unique_ptr<Backend> inner,
                                                                   CheckedOptions options = {});

}  // namespace harvest
