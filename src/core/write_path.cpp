// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/assert.hpp"
#include "base/test_hooks.hpp"
#include "core/cache.hpp"
#include "core/ordering.hpp"

/// `put` and `erase`.
namespace harvest::core {

Status Cache::check_put(const void* source, std::uint64_t bytes, const PutOptions& options) const {
  if (source == nullptr) return fail(ErrorCode::invalid_argument, "the source of a put is null");
  if (bytes == 0) return fail(ErrorCode::invalid_argument, "an object has at least 1 byte, got 0");
  constexpr std::uint64_t kMostBytes = 1ULL << 46;
  if (bytes > kMostBytes) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("an object has at most {} bytes, got {}", kMostBytes, bytes));
  }
  if (UINTPTR_MAX - reinterpret_cast<std::uintptr_t>(source) < bytes) {
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("{} bytes from {} on run past the end of all addresses", bytes, fmt::ptr(source)));
  }
  if (options.backing > Backing::lossy) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("there is no backing {}", static_cast<int>(options.backing)));
  }
  if (!std::isfinite(options.recompute_cost_ns) || options.recompute_cost_ns < 0) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("recompute_cost_ns is {}, a finite number from 0", options.recompute_cost_ns));
  }
  if (topology_.device(options.source_device) == nullptr)
    return fail(ErrorCode::invalid_argument, fmt::format("there is no device {}", options.source_device));
  if (options.backing == Backing::external_host && options.source_device != kHost) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("external_host memory is on the host, but the source is on device {}",
                            options.source_device));
  }
  if (options.stream == StreamId::none) return {};
  if (const auto device = backend_.stream_device(options.stream); !device)
    return tl::unexpected(device.error());
  return check_not_capturing(options.stream);
}

Result<Generation> Cache::put(const Key& key, const void* source, std::uint64_t bytes,
                              const PutOptions& options) {
  if (Status status = check_put(source, bytes, options); !status) {
    MutexLock lock(control_);
    ++counters_.puts;
    ++counters_.puts_refused;
    return tl::unexpected(status.error());
  }
  EventId done = EventId::none;
  Result<Generation> generation;
  {
    MutexLock lock(control_);
    ++counters_.puts;
    const bool waits = options.stream == StreamId::none && options.backing != Backing::external_host;
    const StreamId stream = options.stream == StreamId::none ? consumer_background_ : options.stream;
    generation = put_on_stream(key, source, bytes, options, stream);
    ++(generation ? counters_.puts_stored : counters_.puts_refused);
    if (generation && waits)
      if (const auto event = record_surely(backend_, stream)) done = *event;
  }
  pause_point(PausePoint::between_write_and_wait);
  if (done != EventId::none) {
    backend_.wait_event(done, kNever);
    backend_.release_event(done);
    MutexLock lock(control_);
    settle_pending();
    // That the object is gone by now says nothing: it may have been replaced or revoked meanwhile.
    const bool stored =
        std::find(failed_writes_.begin(), failed_writes_.end(), *generation) == failed_writes_.end();
    if (!stored) generation = fail(ErrorCode::copy_failed, "the copy of the source failed on its way");
  }
  deliver_events();
  return generation;
}

Result<Generation> Cache::put_on_stream(const Key& key, const void* source, std::uint64_t bytes,
                                        const PutOptions& options, StreamId stream) {
  Object* object = table_.create(key, next_generation_);
  if (object == nullptr) {
    return fail(ErrorCode::out_of_memory,
                fmt::format("the cache holds {} objects, its limit (max_objects)", table_.max_objects()));
  }
  object->bytes.store(bytes, std::memory_order_relaxed);
  object->backing = options.backing;
  object->evictable = options.evictable;
  object->tenant = options.tenant;
  object->recompute_cost_ns = options.recompute_cost_ns;
  object->parent = options.parent;
  object->heat_at_ns = backend_.now_ns();
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host})
    if (has_tier(tier)) admission(tier).record(key, facts_of(*object, tier));

  if (planted_bug(PlantedBug::old_object_goes_first) && table_.find(key) != nullptr)
    retire(*table_.find(key), DropReason::replaced);
  if (Status status = write_object(*object, source, options, stream); !status) {
    table_.recycle(*object);
    return tl::unexpected(status.error());
  }
  if (options.source_device != kHost) write_faster_copies(*object, source, options, stream);

  // First the new bytes are there to be found, then the old ones go: a reader always finds one of them.
  Object* old = table_.find(key);
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host})
    if (object->copy(tier).has_bytes()) reveal(*object, tier);
  table_.link(*object);
  pause_point(PausePoint::between_link_and_unlink);
  if (old != nullptr)
    retire(*old, DropReason::replaced);
  else
    shadow_access(*object, Tier::none);  // who makes the bytes did not find them here
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host}) enter_policy(*object, tier);
  if (options.source_device == kHost && !wish(*object, Tier::local))
    static_cast<void>(wish(*object, Tier::peer));
  return planted_bug(PlantedBug::generation_reused) ? next_generation_ : next_generation_++;
}

Status Cache::write_object(Object& object, const void* source, const PutOptions& options, StreamId stream) {
  switch (options.backing) {
    case Backing::external_host: {
      Copy& copy = object.copy(Tier::host);
      // Never written through: the address is only ever a source.
      copy.slot.address = static_cast<std::byte*>(const_cast<void*>(source));  // NOLINT
      copy.device = kHost;
      return {};
    }
    case Backing::managed_host: return write_copy(object, Tier::host, source, options.source_device, stream);
    case Backing::lossy: return write_copy(object, Tier::peer, source, options.source_device, stream);
    case Backing::spill: {
      if (write_copy(object, Tier::peer, source, options.source_device, stream)) return {};
      return write_copy(object, Tier::host, source, options.source_device, stream);
    }
  }
  return fail(ErrorCode::invalid_argument, "unknown backing");
}

Status Cache::write_copy(Object& object, Tier tier, const void* source, DeviceId source_device,
                         StreamId stream) {
  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  auto place = allocate(tier, object, true);
  if (!place) {
    if (!has_tier(tier)) {
      return fail(ErrorCode::out_of_memory,
                  fmt::format("no room for {} bytes: this cache has {}", bytes,
                              tier == Tier::peer ? "no peer"
                                                 : "no host memory of its own, as host_budget_bytes is 0"));
    }
    if (tier == Tier::peer) {
      return fail(
          ErrorCode::out_of_memory,
          fmt::format("no peer has room for {} bytes within its budget, reserve and growth rate", bytes));
    }
    return fail(
        ErrorCode::out_of_memory,
        fmt::format(
            "host memory has no room for {} bytes: {} of {} budget bytes are used and nothing may be evicted",
            bytes, host_ ? host_->used_bytes() : 0, config_.host_budget_bytes));
  }
  wait_for_slot(stream, *place);
  this->place(object, tier, *place);
  Copy& copy = object.copy(tier);
  const harvest::Copy run{copy.slot.address, static_cast<const std::byte*>(source), bytes};
  const Result<EventId> ready = copy_and_record(stream, {source_device, copy.device}, run);
  if (!ready) {
    if (tier == Tier::peer && is_trouble(ready.error())) report_trouble(copy.device);
    free_slot(object, tier, std::move(place->allocation.after));
    return tl::unexpected(ready.error());
  }
  release_events(*place);
  copy.ready = *ready;
  counters_.written_bytes[static_cast<std::size_t>(tier)] += bytes;
  return {};
}

/// Gives a copy, and the event that tells how it ends. An event tells of failures since the event before it,
/// so nobody may record one in between: fetches on the same stream have to wait.
Result<EventId> Cache::copy_and_record(StreamId stream, Route route, const harvest::Copy& run) {
  MutexLock lock(reader_of(stream).mutex);
  if (Status given = backend_.copy(stream, route, {&run, 1}); !given) return tl::unexpected(given.error());
  pause_point(PausePoint::between_copy_and_watch);
  return record_surely(backend_, stream);
}

/// The bytes are on a GPU now: writing them to a faster tier from there costs the least.
void Cache::write_faster_copies(Object& object, const void* source, const PutOptions& options,
                                StreamId stream) {
  for (const Tier tier : {Tier::local, Tier::peer}) {
    if (!has_tier(tier) || object.copy(tier).has_bytes()) continue;
    ++counters_.admissions_asked;
    if (!admission(tier).admit(object.key, facts_of(object, tier), has_room(tier, object))) {
      ++counters_.admissions_refused;
      continue;
    }
    if (write_copy(object, tier, source, options.source_device, stream)) return;
  }
}

Status Cache::erase(const Key& key) {
  {
    MutexLock lock(control_);
    Object* object = table_.find(key);
    if (object == nullptr)
      return fail(ErrorCode::not_found,
                  fmt::format("no object has the key {:016x}:{:016x}", key.high, key.low));
    retire(*object, DropReason::erased);
    for (auto& curve : shadow_)
      if (curve) curve->forget(key);
  }
  deliver_events();
  return {};
}

Status Cache::forget_stream(StreamId stream) {
  if (const auto known = backend_.stream_device(stream); !known) return tl::unexpected(known.error());
  const auto event = record_apart(stream);
  if (!event) return tl::unexpected(event.error());
  backend_.wait_event(*event, kNever);
  backend_.release_event(*event);
  MutexLock lock(control_);
  forgotten_streams_.insert(static_cast<std::uint32_t>(stream));
  return {};
}

}  // namespace harvest::core
