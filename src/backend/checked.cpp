// SPDX-License-Identifier: Apache-2.0
#include "backend/checked.hpp"

#include <fmt/format.h>

#include <utility>

#include "base/assert.hpp"

namespace harvest {
namespace {

std::uintptr_t number(const std::byte* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

Access access(const std::byte* address, std::uint64_t bytes, bool writes) {
  return {number(address), number(address) + bytes, writes, 0, 0};
}

/// The runs of one batch have no order either: no two may touch the same bytes if one writes.
bool races_with_itself(std::vector<Access> accesses) {
  std::sort(accesses.begin(), accesses.end(),
            [](const Access& a, const Access& b) { return a.begin < b.begin; });
  std::uintptr_t written_to = 0, read_to = 0;
  for (const Access& next : accesses) {
    if (next.begin < written_to || (next.writes && next.begin < read_to)) return true;
    std::uintptr_t& reach = next.writes ? written_to : read_to;
    reach = std::max(reach, next.end);
  }
  return false;
}

}  // namespace

std::unique_ptr<CheckedBackend> make_checked_backend(Backend& inner, CheckedOptions options) {
  return std::make_unique<CheckedBackend>(inner, std::move(options));
}
std::unique_ptr<CheckedBackend> make_checked_backend(std::unique_ptr<Backend> inner, CheckedOptions options) {
  return std::make_unique<CheckedBackend>(std::move(inner), std::move(options));
}

CheckedBackend::CheckedBackend(Backend& inner, CheckedOptions options)
    : inner_(inner), options_(std::move(options)) {}

CheckedBackend::CheckedBackend(std::unique_ptr<Backend> inner, CheckedOptions options)
    : owned_(std::move(inner)), inner_(*owned_), options_(std::move(options)) {}

CheckedBackend::~CheckedBackend() {
  Findings leaks;
  {
    const MutexLock lock(mutex_);
    for (const auto& [address, segment] : segments_)
      leaks.push_back(fmt::format("leak: a segment of {} bytes on device {}", segment.bytes, segment.device));
    for (const auto& [address, bytes] : registered_)
      leaks.push_back(fmt::format("leak: {} bytes of registered host memory", bytes));
    for (const auto& [id, stream] : streams_)
      if (!stream.wrapped)
        leaks.push_back(
            fmt::format("leak: stream {} of device {}", static_cast<std::uint32_t>(id), stream.device));
    if (!events_.empty()) leaks.push_back(fmt::format("leak: {} events", events_.size()));
  }
  report(leaks);
}

std::vector<std::string> CheckedBackend::violations() const {
  const MutexLock lock(mutex_);
  return violations_;
}

void CheckedBackend::report(const Findings& findings) {
  if (findings.empty()) return;
  {
    const MutexLock lock(mutex_);
    violations_.insert(violations_.end(), findings.begin(), findings.end());
  }
  for (const std::string& finding : findings) {
    if (options_.on_violation) options_.on_violation(finding);
    HARVEST_ASSERT(!options_.abort, finding);
  }
}

// --- memory ---------------------------------------------------------------------------------------------

Result<std::byte*> CheckedBackend::map_segment(DeviceId device, std::uint64_t bytes,
                                               std::span<const DeviceId> readers) {
  Result<std::byte*> address = inner_.map_segment(device, bytes, readers);
  if (!address) return address;
  Findings findings;
  {
    const MutexLock lock(mutex_);
    const auto next = segments_.lower_bound(number(*address));
    const bool overlaps = (next != segments_.end() && next->first < number(*address) + bytes) ||
                          (next != segments_.begin() &&
                           std::prev(next)->first + std::prev(next)->second.bytes > number(*address));
    if (overlaps)
      findings.push_back(
          fmt::format("map: {} bytes at {} overlap a live segment", bytes, fmt::ptr(*address)));
    Segment& segment = segments_[number(*address)];
    segment.device = device;
    segment.bytes = bytes;
    segment.readers.assign(readers.begin(), readers.end());
  }
  report(findings);
  return address;
}

Status CheckedBackend::unmap_segment(std::byte* address) {
  Findings findings;
  Status status;
  {
    const MutexLock lock(mutex_);
    const auto found = segments_.find(number(address));
    if (found == segments_.end()) {
      findings.push_back(fmt::format("unmap: {} is not the address of a live segment", fmt::ptr(address)));
      status = fail(ErrorCode::invalid_argument, findings.back());
    } else {
      found->second.history.forget(host_);
      if (const std::size_t unfinished = found->second.history.size(); unfinished > 0) {
        findings.push_back(
            fmt::format("unmap: {} pieces of work touch the segment of device {} and the host has "
                        "not seen their end",
                        unfinished, found->second.device));
        status = fail(ErrorCode::busy, findings.back());
      } else {
        segments_.erase(found);
        status = inner_.unmap_segment(address);
      }
    }
  }
  report(findings);
  return status;
}

Status CheckedBackend::register_host(std::byte* address, std::uint64_t bytes) {
  const Status status = inner_.register_host(address, bytes);
  if (!status) return status;
  const MutexLock lock(mutex_);
  registered_[number(address)] = bytes;
  return status;
}

Status CheckedBackend::unregister_host(std::byte* address) {
  const MutexLock lock(mutex_);
  registered_.erase(number(address));
  return inner_.unregister_host(address);
}

// --- streams and events -----------------------------------------------------------------------------------

Result<StreamId> CheckedBackend::add_stream(Result<StreamId> made, DeviceId device, bool wrapped) {
  if (!made) return made;
  const MutexLock lock(mutex_);
  Stream& stream = streams_[*made];
  stream = Stream{};
  stream.device = device;
  stream.index = next_stream_index_++;
  stream.wrapped = wrapped;
  return made;
}

Result<StreamId> CheckedBackend::create_stream(DeviceId device) {
  return add_stream(inner_.create_stream(device), device, false);
}

Result<StreamId> CheckedBackend::wrap_stream(DeviceId device, void* native) {
  return add_stream(inner_.wrap_stream(device, native), device, true);
}

CheckedBackend::Stream* CheckedBackend::find_stream(StreamId stream, Findings& findings) {
  const auto found = streams_.find(stream);
  if (found != streams_.end()) return &found->second;
  findings.push_back(
      fmt::format("stream {} is unknown or was destroyed", static_cast<std::uint32_t>(stream)));
  return nullptr;
}

VectorClock* CheckedBackend::find_event(EventId event, Findings& findings) {
  const auto found = events_.find(event);
  if (found != events_.end()) return &found->second;
  findings.push_back(fmt::format("event {} is unknown or was released", static_cast<std::uint64_t>(event)));
  return nullptr;
}

Status CheckedBackend::destroy_stream(StreamId stream) {
  Findings findings;
  {
    const MutexLock lock(mutex_);
    if (find_stream(stream, findings) != nullptr) streams_.erase(stream);
  }
  report(findings);
  return inner_.destroy_stream(stream);
}

Result<EventId> CheckedBackend::record_event(StreamId id) {
  Findings findings;
  Result<EventId> event = EventId::none;
  {
    const MutexLock lock(mutex_);
    Stream* stream = find_stream(id, findings);
    event = inner_.record_event(id);
    if (stream != nullptr && event) {
      stream->before.join(host_);
      events_[*event] = stream->before;
    }
  }
  report(findings);
  return event;
}

void CheckedBackend::release_event(EventId event) {
  Findings findings;
  {
    const MutexLock lock(mutex_);
    if (find_event(event, findings) != nullptr) {
      events_.erase(event);
      inner_.release_event(event);
    }
  }
  report(findings);
}

/// The host saw an event's end, and so the end of all that is before it.
void CheckedBackend::saw(EventId event) {
  const MutexLock lock(mutex_);
  if (const auto found = events_.find(event); found != events_.end()) host_.join(found->second);
}

EventState CheckedBackend::query_event(EventId event) {
  Findings findings;
  EventState state = EventState::failed;
  {
    const MutexLock lock(mutex_);
    if (find_event(event, findings) != nullptr) state = inner_.query_event(event);
  }
  report(findings);
  if (state != EventState::pending) saw(event);
  return state;
}

EventState CheckedBackend::wait_event(EventId event, TimeNs deadline_ns) {
  Findings findings;
  {
    const MutexLock lock(mutex_);
    (void)find_event(event, findings);
  }
  report(findings);
  if (!findings.empty()) return EventState::failed;
  const EventState state = inner_.wait_event(event, deadline_ns);  // blocks: without the lock
  if (state != EventState::pending) saw(event);
  return state;
}

Status CheckedBackend::stream_wait(StreamId id, EventId event) {
  Findings findings;
  Status status = fail(ErrorCode::not_found, "no such stream or event");
  {
    const MutexLock lock(mutex_);
    Stream* stream = find_stream(id, findings);
    const VectorClock* clock = find_event(event, findings);
    if (stream != nullptr && clock != nullptr) {
      status = inner_.stream_wait(id, event);
      if (status) stream->before.join(*clock);
    }
  }
  report(findings);
  return status;
}

// --- work -------------------------------------------------------------------------------------------------

CheckedBackend::Segment* CheckedBackend::segment_at(const std::byte* address, std::uintptr_t* begin) {
  auto found = segments_.upper_bound(number(address));
  if (found == segments_.begin()) return nullptr;
  --found;
  if (number(address) - found->first >= found->second.bytes) return nullptr;
  if (begin != nullptr) *begin = found->first;
  return &found->second;
}

bool CheckedBackend::check_place(const std::byte* address, std::uint64_t bytes, DeviceId device,
                                 Findings& findings) {
  if (address == nullptr || bytes == 0) {
    findings.push_back(fmt::format("work on {} bytes at {}", bytes, fmt::ptr(address)));
    return false;
  }
  std::uintptr_t begin = 0;
  const Segment* segment = segment_at(address, &begin);
  if (segment == nullptr) {
    if (device == kHost) return true;  // the caller's own memory
    findings.push_back(fmt::format("{} is in no live segment of device {}", fmt::ptr(address), device));
    return false;
  }
  if (segment->device != device) {
    findings.push_back(fmt::format("{} is memory of device {}, the work says device {}", fmt::ptr(address),
                                   segment->device, device));
    return false;
  }
  const std::uint64_t room = segment->bytes - (number(address) - begin);
  if (bytes <= room) return true;
  findings.push_back(fmt::format("{} bytes at {} pass the end of their segment, {} bytes on", bytes,
                                 fmt::ptr(address), room));
  return false;
}

bool CheckedBackend::can_access(DeviceId device, const std::byte* address) {
  const Segment* segment = segment_at(address);
  if (segment == nullptr || segment->device == kHost || segment->device == device) return true;
  return std::find(segment->readers.begin(), segment->readers.end(), device) != segment->readers.end();
}

bool CheckedBackend::has_route(Route route) const {
  const auto links = inner_.links();
  return std::any_of(links.begin(), links.end(),
                     [&](const LinkInfo& link) { return link.from == route.from && link.to == route.to; });
}

/// Places, and that one of the devices concerned can reach both ends.
bool CheckedBackend::check_copy(const Stream& stream, Route route, const Copy& copy, Findings& findings) {
  if (!check_place(copy.source, copy.bytes, route.from, findings)) return false;
  if (!check_place(copy.destination, copy.bytes, route.to, findings)) return false;
  for (DeviceId device : {stream.device, route.from, route.to})
    if (device != kHost && can_access(device, copy.source) && can_access(device, copy.destination))
      return true;
  findings.push_back(
      fmt::format("copy from device {} to device {} on a stream of device {}: none of them may "
                  "access both ends",
                  route.from, route.to, stream.device));
  return true;  // a driver might stage it; the backend may say
}

AccessHistory& CheckedBackend::history_of(const Access& access) {
  Segment* segment = segment_at(reinterpret_cast<const std::byte*>(access.begin));
  return segment == nullptr ? other_memory_ : segment->history;
}

void CheckedBackend::check_races(const Stream& stream, std::span<const Access> accesses, Findings& findings) {
  VectorClock order = stream.before;
  order.join(host_);
  for (const Access& next : accesses) {
    AccessHistory& history = history_of(next);
    history.forget(host_);
    const Access* race = history.find_race(next, order);
    if (race == nullptr) continue;
    findings.push_back(
        fmt::format("race: work on a stream of device {} {} bytes that unfinished work {}, with no "
                    "order between them",
                    stream.device, next.writes ? "writes" : "reads", race->writes ? "writes" : "reads"));
    return;
  }
}

void CheckedBackend::add_accesses(Stream& stream, std::span<const Access> accesses) {
  stream.before.join(host_);
  stream.before.set(stream.index, ++stream.given);
  for (Access access : accesses) {
    access.stream = stream.index;
    access.count = stream.given;
    history_of(access).add(access);
  }
}

Status CheckedBackend::copy(StreamId id, Route route, std::span<const Copy> copies) {
  Findings findings;
  Status status = fail(ErrorCode::invalid_argument, "refused: the copy breaks the backend's contract");
  {
    const MutexLock lock(mutex_);
    Stream* stream = find_stream(id, findings);
    if (copies.empty()) findings.push_back("a batch of 0 copies");
    const bool known = has_route(route);
    bool good = stream != nullptr && known && !copies.empty();
    std::vector<Access> accesses;
    for (const Copy& copy : copies) {
      if (!good) break;
      good = check_copy(*stream, route, copy, findings);
      accesses.push_back(access(copy.source, copy.bytes, false));
      accesses.push_back(access(copy.destination, copy.bytes, true));
    }
    if (good) {
      check_races(*stream, accesses, findings);
      if (races_with_itself(accesses)) findings.push_back("race: copies of one batch touch the same bytes");
      status = inner_.copy(id, route, copies);
      if (status) add_accesses(*stream, accesses);
    } else if (stream == nullptr || !known) {
      status = inner_.copy(id, route, copies);  // it says what there is not
    }
  }
  report(findings);
  return status;
}

Status CheckedBackend::fill(StreamId id, DeviceId device, std::byte* address, std::uint64_t bytes,
                            std::uint8_t value) {
  Findings findings;
  Status status = fail(ErrorCode::invalid_argument, "refused: the fill breaks the backend's contract");
  {
    const MutexLock lock(mutex_);
    Stream* stream = find_stream(id, findings);
    if (stream == nullptr) {
      status = fail(ErrorCode::not_found, findings.back());
    } else if (check_place(address, bytes, device, findings)) {
      const Access write = access(address, bytes, true);
      check_races(*stream, {&write, 1}, findings);
      status = inner_.fill(id, device, address, bytes, value);
      if (status) add_accesses(*stream, {&write, 1});
    }
  }
  report(findings);
  return status;
}

}  // namespace harvest
