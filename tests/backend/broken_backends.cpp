// SPDX-License-Identifier: Apache-2.0
#include "backend/broken_backends.hpp"

#include <map>
#include <utility>

#include "backend/forwarding_backend.hpp"

namespace harvest::test {
namespace {

using Base = ForwardingBackend;
using Copies = std::span<const Copy>;

// --- copies and fills that do something else -----------------------------------------------------------

/// Gives the inner backend a changed batch.
template <typename Change>
Status copy_changed(Backend& inner, StreamId stream, Route route, Copies copies, Change change) {
  std::vector<Copy> changed(copies.begin(), copies.end());
  change(changed);
  return inner.copy(stream, route, changed);
}

struct IgnoresOffset : Base {
  using Base::Base;
  Result<std::byte*> map_segment(DeviceId d, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override {
    auto address = inner_.map_segment(d, bytes, readers);
    if (address) segments_[*address] = bytes;
    return address;
  }
  Status copy(StreamId stream, Route route, Copies copies) override {
    return copy_changed(inner_, stream, route, copies, [&](std::vector<Copy>& changed) {
      for (Copy& one : changed) one.source = begin_of(one.source);
    });
  }
  const std::byte* begin_of(const std::byte* address) const {
    for (const auto& [begin, bytes] : segments_)
      if (address >= begin && address < begin + bytes) return begin;
    return address;
  }
  std::map<const std::byte*, std::uint64_t> segments_;
};

struct Truncates : Base {
  using Base::Base;
  Status copy(StreamId stream, Route route, Copies copies) override {
    return copy_changed(inner_, stream, route, copies, [](std::vector<Copy>& changed) {
      for (Copy& one : changed) one.bytes -= one.bytes > 1 ? 1 : 0;
    });
  }
};

struct Overruns : Base {
  using Base::Base;
  Status copy(StreamId stream, Route route, Copies copies) override {
    return copy_changed(inner_, stream, route, copies, [&](std::vector<Copy>& changed) {
      if (route.to != kHost || changed.size() > 1) return;  // stays inside what the laws allocate
      changed[0].bytes += changed[0].bytes < 4'097 ? 1 : 0;
    });
  }
};

struct DropsLastCopy : Base {
  using Base::Base;
  Status copy(StreamId stream, Route route, Copies copies) override {
    return inner_.copy(stream, route, copies.size() > 1 ? copies.first(copies.size() - 1) : copies);
  }
};

struct SwallowsErrors : Base {
  using Base::Base;
  Status copy(StreamId stream, Route route, Copies copies) override {
    (void)inner_.copy(stream, route, copies);
    return {};
  }
};

struct FillsWrongValue : Base {
  using Base::Base;
  Status fill(StreamId stream, DeviceId d, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override {
    return inner_.fill(stream, d, address, bytes, value == 0xA7 ? std::uint8_t{0xA6} : value);
  }
};

struct FillsTooMuch : Base {
  using Base::Base;
  Status fill(StreamId stream, DeviceId d, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override {
    return inner_.fill(stream, d, address, bytes % 2 == 1 ? bytes + 1 : bytes, value);
  }
};

/// Reads the caller's batch only when the stream's next event is recorded.
struct KeepsTheBatch : Base {
  using Base::Base;
  Status copy(StreamId stream, Route route, Copies copies) override {
    flush();
    stream_ = stream;
    route_ = route;
    kept_ = copies;
    return inner_.stream_device(stream) && !copies.empty() && copies[0].destination && copies[0].source &&
                   copies[0].bytes > 0 && route.to < 8
               ? Status{}
               : inner_.copy(stream, route, copies);
  }
  Result<EventId> record_event(StreamId stream) override {
    flush();
    return inner_.record_event(stream);
  }
  void flush() {
    if (!kept_.empty()) (void)inner_.copy(stream_, route_, kept_);
    kept_ = {};
  }
  StreamId stream_ = StreamId::none;
  Route route_;
  Copies kept_;
};

// --- order ------------------------------------------------------------------------------------------------

struct CompletesEarly : Base {
  using Base::Base;
  EventState query_event(EventId) override { return EventState::complete; }
};

struct IgnoresStreamWait : Base {
  using Base::Base;
  Status stream_wait(StreamId, EventId) override { return {}; }
};

struct DoesNotWait : Base {
  using Base::Base;
  EventState wait_event(EventId event, TimeNs) override { return inner_.query_event(event); }
};

/// Every second copy of a stream overtakes the one before it, on a stream of its own.
struct Reorders : Base {
  using Base::Base;
  Status copy(StreamId stream, Route route, Copies copies) override {
    const auto device = inner_.stream_device(stream);
    if (!device || ++copies_ % 2 == 0) return inner_.copy(stream, route, copies);
    auto [shadow, is_new] = shadows_.try_emplace(stream, StreamId::none);
    if (is_new) shadow->second = *inner_.create_stream(*device);
    return inner_.copy(shadow->second, route, copies);
  }
  Result<EventId> record_event(StreamId stream) override {
    if (const auto shadow = shadows_.find(stream); shadow != shadows_.end()) {
      const EventId done = *inner_.record_event(shadow->second);
      (void)inner_.stream_wait(stream, done);
      inner_.release_event(done);
    }
    return inner_.record_event(stream);
  }
  std::map<StreamId, StreamId> shadows_;
  int copies_ = 0;
};

/// Events of a destroyed stream stay pending.
struct DestroyForgetsEvents : Base {
  using Base::Base;
  Result<EventId> record_event(StreamId stream) override {
    const auto event = inner_.record_event(stream);
    if (event) stream_of_[*event] = stream;
    return event;
  }
  EventState wait_event(EventId event, TimeNs deadline_ns) override {
    if (!inner_.stream_device(stream_of_[event])) return EventState::pending;
    return inner_.wait_event(event, deadline_ns);
  }
  std::map<EventId, StreamId> stream_of_;
};

// --- memory -----------------------------------------------------------------------------------------------

struct KeepsMemory : Base {
  using Base::Base;
  Status unmap_segment(std::byte*) override { return {}; }
};

struct UnmapsAnything : Base {
  using Base::Base;
  Status unmap_segment(std::byte* address) override {
    (void)inner_.unmap_segment(address);
    return {};
  }
};

struct FreeCountNeverChanges : Base {
  using Base::Base;
  Result<MemoryInfo> query_memory(DeviceId device) override {
    const auto [first, is_new] = answers_.try_emplace(device);
    if (is_new) first->second = inner_.query_memory(device);
    return first->second;
  }
  std::map<DeviceId, Result<MemoryInfo>> answers_;
};

/// Gives the second half of the last segment out once more.
struct MapsOverlapping : Base {
  using Base::Base;
  Result<std::byte*> map_segment(DeviceId d, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override {
    const auto address = inner_.map_segment(d, bytes, readers);
    if (!address || last_ == nullptr) {
      last_ = address ? *address : nullptr;
      return address;
    }
    return std::exchange(last_, nullptr) + bytes / 2;
  }
  std::byte* last_ = nullptr;
};

struct MapsHalfGranules : Base {
  using Base::Base;
  Result<std::byte*> map_segment(DeviceId d, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override {
    const std::uint64_t step = inner_.devices()[0].segment_granularity_bytes;
    return inner_.map_segment(d, (bytes + step - 1) / step * step, readers);
  }
};

struct RefusesReaders : Base {
  using Base::Base;
  Result<std::byte*> map_segment(DeviceId d, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override {
    if (readers.size() > 1) return fail(ErrorCode::invalid_argument, "too many readers");
    return inner_.map_segment(d, bytes, readers);
  }
};

// --- time -------------------------------------------------------------------------------------------------

struct ClockGoesBack : Base {
  using Base::Base;
  TimeNs now_ns() const override { return inner_.now_ns() - (++calls_ % 3) * 10'000'000; }
  mutable TimeNs calls_ = 0;
};

struct ClockStandsStill : Base {
  using Base::Base;
  TimeNs now_ns() const override { return 5; }
};

template <typename Broken>
std::unique_ptr<Backend> make(Backend& inner) {
  return std::make_unique<Broken>(inner);
}

}  // namespace

std::vector<BrokenBackend> broken_backends() {
  return {
      {"copy_ignores_offset", "parts_of_a_segment_are_told_apart", make<IgnoresOffset>},
      {"copy_truncates", "copies_arrive", make<Truncates>},
      {"copy_overruns", "copies_arrive", make<Overruns>},
      {"batch_drops_last_copy", "batches_arrive_whole", make<DropsLastCopy>},
      {"copy_swallows_errors", "bad_work_is_refused", make<SwallowsErrors>},
      {"copy_reads_batch_late", "batches_arrive_whole", make<KeepsTheBatch>},
      {"fill_sets_wrong_value", "fills_set_their_bytes_and_no_others", make<FillsWrongValue>},
      {"fill_overruns", "fills_set_their_bytes_and_no_others", make<FillsTooMuch>},
      {"event_completes_early", "an_event_is_not_early", make<CompletesEarly>},
      {"stream_wait_is_ignored", "streams_wait_for_events", make<IgnoresStreamWait>},
      {"wait_event_does_not_wait", "time_goes_forward", make<DoesNotWait>},
      {"stream_breaks_order", "a_stream_keeps_its_order", make<Reorders>},
      {"destroyed_stream_forgets_events", "a_destroyed_stream_finishes_its_work", make<DestroyForgetsEvents>},
      {"unmap_keeps_memory", "memory_is_counted", make<KeepsMemory>},
      {"unmap_accepts_anything", "bad_segments_are_refused", make<UnmapsAnything>},
      {"free_count_never_changes", "memory_is_counted", make<FreeCountNeverChanges>},
      {"map_returns_overlap", "segments_lie_apart", make<MapsOverlapping>},
      {"map_refuses_readers", "every_device_may_be_named_as_reader", make<RefusesReaders>},
      {"map_accepts_half_granules", "bad_segments_are_refused", make<MapsHalfGranules>},
      {"clock_goes_back", "time_goes_forward", make<ClockGoesBack>},
      {"clock_stands_still", "time_goes_forward", make<ClockStandsStill>},
  };
}

}  // namespace harvest::test
