// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "base/test_hooks.hpp"
#include "core/cache.hpp"
#include "core/ordering.hpp"

/// What runs for every read. Nothing here takes the control lock or allocates.
namespace harvest::core {

Reader& Cache::reader_of(StreamId stream) {
  return readers_[std::min(static_cast<std::uint32_t>(stream), kOverflowStreamBit)];
}

/// `stream` is given work that reads the object. Whoever frees the object's memory asks it for an event: so
/// only streams that read are known, and no number that is none.
void Cache::note_use(Object& object, StreamId stream) {
  const auto number = static_cast<std::uint32_t>(stream);
  if (number >= kOverflowStreamBit && !shared_streams_.contains(number) && backend_.stream_device(stream))
    shared_streams_.add(number);
  mark_used_by(object, stream);
}

Lease Cache::acquire(const Key& key, StreamId stream) {
  if (planted_bug(PlantedBug::callback_on_read_path)) poll();
  if (planted_bug(PlantedBug::read_path_locks)) MutexLock lock(control_);
  Lease lease;
  const bool by_host = stream == StreamId::none;
  const Pinned pinned = table_.find_and_pin(key, by_host ? tier_bit(Tier::host) : kAllTiers);
  if (pinned.object == nullptr) {
    log_.record_miss();
    lease.outcome_ = pinned.too_many ? ErrorCode::out_of_memory : ErrorCode::not_found;
    return lease;
  }
  Object& object = *pinned.object;
  const auto tier = static_cast<std::size_t>(pinned.tier);
  if (!by_host && !planted_bug(PlantedBug::leased_work_forgotten)) note_use(object, stream);
  if (!wait_for_write(stream, pinned)) [[unlikely]] {
    unpin(object, pinned.tier);
    log_.record_miss();
    lease.outcome_ = ErrorCode::busy;
    return lease;
  }
  log_.record(pinned.tier, object.index.load(std::memory_order_relaxed), AccessLog::How::leased);
  lease.address_ = object.address[tier].load(std::memory_order_relaxed);
  lease.object_ = &object;
  lease.tier_ = pinned.tier;
  lease.outcome_ = ErrorCode::ok;
  return lease;
}

/// The stream waits for the write of a copy that is shown before it is complete (I3). False if it cannot. The
/// host does not wait: no stream means false while the write is under way.
bool Cache::wait_for_write(StreamId stream, const Pinned& pinned) {
  if (!pinned.pending || planted_bug(PlantedBug::write_not_waited_for)) return true;
  const EventId ready =
      pinned.object->ready[static_cast<std::size_t>(pinned.tier)].load(std::memory_order_relaxed);
  pause_point(PausePoint::between_pin_and_wait_for_write);
  if (stream == StreamId::none) return backend_.query_event(ready) == EventState::complete;
  if (planted_bug(PlantedBug::read_waits_on_host)) backend_.wait_event(ready, kNever);
  return backend_.stream_wait(stream, ready).has_value();
}

/// A captured copy runs whenever its graph does, when the slot that it reads may hold another object.
Status Cache::check_not_capturing(StreamId stream) const {
  if (!backend_.is_capturing(stream)) return {};
  return fail(
      ErrorCode::not_supported,
      fmt::format("stream {} is being captured into a graph, whose replays would read memory that has "
                  "changed hands; capture your own copies under leases that live as long as the graph",
                  static_cast<std::uint32_t>(stream)));
}

Status Cache::check_fetch(std::span<const FetchItem> items, StreamId stream) const {
  const auto device = backend_.stream_device(stream);
  if (!device) return tl::unexpected(device.error());
  if (*device != config_.consumer) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("stream {} is of device {}, the consumer is {}",
                            static_cast<std::uint32_t>(stream), *device, config_.consumer));
  }
  if (Status status = check_not_capturing(stream); !status) return status;
  for (const FetchItem& item : items)
    if (item.destination == nullptr)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("item {} has no destination", &item - items.data()));
  return {};
}

Status Cache::fetch(std::span<FetchItem> items, StreamId stream) {
  if (Status status = check_fetch(items, stream); !status) return status;
  Reader& reader = reader_of(stream);
  for (std::size_t begin = 0; begin < items.size(); begin += Reader::kBatch) {
    const auto batch = items.subspan(begin, std::min(Reader::kBatch, items.size() - begin));
    fetch_batch(reader, batch, stream, nullptr);
  }
  return {};
}

Status Cache::fetch_and_wait(std::span<FetchItem> items, StreamId stream) {
  if (Status status = check_fetch(items, stream); !status) return status;
  constexpr int kAttempts = 4;
  std::vector<FetchItem> again(items.begin(), items.end());
  std::vector<std::size_t> origin(items.size());
  for (std::size_t i = 0; i < origin.size(); ++i) origin[i] = i;

  for (int attempt = 0; attempt < kAttempts && !again.empty(); ++attempt) {
    Reader::Ending ending;
    Reader& reader = reader_of(stream);
    for (std::size_t begin = 0; begin < again.size(); begin += Reader::kBatch)
      fetch_batch(reader, std::span(again).subspan(begin, std::min(Reader::kBatch, again.size() - begin)),
                  stream, &ending);
    TierSet failed = 0;
    for (const Reader::Watch& watch : ending.watches) {
      const bool unknown = watch.event == EventId::none;  // and so nobody can say that it is over
      const bool bad = unknown || backend_.wait_event(watch.event, kNever) == EventState::failed;
      if (bad && !planted_bug(PlantedBug::failed_copy_taken_as_good)) {
        failed |= tier_bit(watch.source == kHost              ? Tier::host
                           : watch.source == config_.consumer ? Tier::local
                                                              : Tier::peer);
        report_trouble(watch.source);
      }
      if (!unknown) backend_.release_event(watch.event);
    }
    if (failed != 0) {  // takes the peers that failed out of service, so that the next try goes elsewhere
      MutexLock lock(control_);
      hear_of_trouble();
    }
    const std::vector<const FetchItem*> doubtful = end_early(ending);
    std::vector<FetchItem> rest;
    std::vector<std::size_t> rest_origin;
    for (std::size_t i = 0; i < again.size(); ++i) {
      FetchItem& item = again[i];
      const bool arrived =
          item.served == Tier::none ||
          ((failed & tier_bit(item.served)) == 0 && std::ranges::find(doubtful, &item) == doubtful.end());
      if (!arrived) {
        rest.push_back(item);
        rest_origin.push_back(origin[i]);
        item.outcome = ErrorCode::copy_failed;
        item.served = Tier::none;
        fetched_.fallbacks.fetch_add(1, std::memory_order_relaxed);
      }
      items[origin[i]] = item;
    }
    again = std::move(rest);
    origin = std::move(rest_origin);
  }
  return {};
}

void Cache::note_early(Reader::Ending& ending, const FetchItem& item, const Pinned& pinned) {
  pinned.object->meta.fetch_add(one_pin(pinned.tier), std::memory_order_acquire);
  ending.early.push_back({&item, pinned.object, pinned.tier});
}

/// Lets go of what was read behind writes under way. Returns the items that are not known to have been
/// written well. The reads are over, and so are the writes they waited for.
std::vector<const FetchItem*> Cache::end_early(const Reader::Ending& ending) {
  std::vector<const FetchItem*> doubtful;
  for (const auto& [item, object, tier] : ending.early) {
    const EventId ready = object->ready[static_cast<std::size_t>(tier)].load(std::memory_order_relaxed);
    if (backend_.query_event(ready) != EventState::complete) doubtful.push_back(item);
    unpin(*object, tier);
  }
  if (!doubtful.empty()) {  // hides the copies that failed, so that the next try goes elsewhere
    MutexLock lock(control_);
    settle_pending();
  }
  return doubtful;
}

void Cache::fetch_batch(Reader& reader, std::span<FetchItem> items, StreamId stream, Reader::Ending* ending) {
  MutexLock lock(reader.mutex);
  resolve(reader, items, stream, ending);
  if (config_.balance_paths) balance(reader, items);
  submit(reader, items, stream, ending);

  std::array<std::uint64_t, kTiers> bytes{};
  std::uint64_t served = 0;
  for (const FetchItem& item : items) {
    if (item.served == Tier::none) continue;
    bytes[static_cast<std::size_t>(item.served)] += item.bytes;
    ++served;
  }
  fetched_.fetches.fetch_add(1, std::memory_order_relaxed);
  fetched_.items.fetch_add(served, std::memory_order_relaxed);
  for (std::size_t t = 0; t < kTiers; ++t)
    if (bytes[t] != 0) fetched_.bytes[t].fetch_add(bytes[t], std::memory_order_relaxed);
}

void Cache::resolve(Reader& reader, std::span<FetchItem> items, StreamId stream, Reader::Ending* ending) {
  reader.items.clear();
  for (std::size_t i = 0; i < items.size(); ++i) {
    FetchItem& item = items[i];
    item.served = Tier::none;
    item.generation = 0;
    item.bytes = 0;
    const Pinned pinned = table_.find_and_pin(item.key, kAllTiers);
    if (pinned.object == nullptr) {
      item.outcome = pinned.too_many ? ErrorCode::out_of_memory : ErrorCode::not_found;
      log_.record_miss();
      continue;
    }
    Object& object = *pinned.object;
    const auto tier = static_cast<std::size_t>(pinned.tier);
    item.bytes = object.bytes.load(std::memory_order_relaxed);
    item.generation = object.generation.load(std::memory_order_relaxed);
    if (item.bytes > item.capacity_bytes && !planted_bug(PlantedBug::capacity_ignored)) {
      item.outcome = ErrorCode::invalid_argument;
      unpin(object, pinned.tier);
      log_.record_miss();
      continue;
    }
    item.outcome = ErrorCode::ok;
    item.served = pinned.tier;
    note_use(object, stream);
    if (!wait_for_write(stream, pinned)) {
      item.outcome = ErrorCode::unavailable;
      item.served = Tier::none;
      unpin(object, pinned.tier);
      log_.record_miss();
      continue;
    }
    if (pinned.pending && ending != nullptr) note_early(*ending, item, pinned);
    reader.items.push_back({&object, pinned.tier, object.device[tier].load(std::memory_order_relaxed),
                            object.address[tier].load(std::memory_order_relaxed),
                            static_cast<std::uint32_t>(i)});
  }
}

/// Peers and host are two wires. Where a batch would keep the peers' busy for longer than the host's, objects
/// that are on both are read from the host instead, until both take equally long.
void Cache::balance(Reader& reader, std::span<FetchItem> items) {
  constexpr double kWorthSplittingNs = 100'000;  // below this, joining two streams costs what it gains
  const auto way = [&](DeviceId device) -> const WayIn& {
    const DeviceId from_host = device - kHost;
    return ways_in_[static_cast<std::size_t>(from_host)];
  };
  double peers_ns = 0;
  double host_ns = 0;
  for (const Reader::Item& entry : reader.items) {
    const double ns = static_cast<double>(items[entry.index].bytes) * way(entry.device).ns_per_byte;
    if (entry.tier == Tier::host) host_ns += ns;
    if (entry.tier == Tier::peer && way(entry.device).beside_host) peers_ns += ns;
  }
  if (peers_ns < kWorthSplittingNs) return;
  for (Reader::Item& entry : reader.items) {
    if (entry.tier != Tier::peer || !way(entry.device).beside_host) continue;
    FetchItem& item = items[entry.index];
    const double from_host_ns = static_cast<double>(item.bytes) * way(kHost).ns_per_byte;
    if (host_ns + from_host_ns >= peers_ns) continue;
    const Pinned pinned = table_.find_and_pin(item.key, tier_bit(Tier::host));
    if (pinned.object == nullptr) continue;
    if (pinned.object != entry.object || pinned.pending) {
      unpin(*pinned.object, pinned.tier);
      continue;
    }
    unpin(*entry.object, Tier::peer);
    peers_ns -= static_cast<double>(item.bytes) * way(entry.device).ns_per_byte;
    host_ns += from_host_ns;
    entry.tier = item.served = Tier::host;
    entry.device = kHost;
    entry.source =
        entry.object->address[static_cast<std::size_t>(Tier::host)].load(std::memory_order_relaxed);
  }
}

void Cache::submit(Reader& reader, std::span<FetchItem> items, StreamId stream, Reader::Ending* ending) {
  // By source: the host first, since it may begin on the side stream; by address, so that a backend can merge
  // neighbours. It alone knows where an allocation ends, over whose end no copy may go.
  std::sort(reader.items.begin(), reader.items.end(), [](const Reader::Item& a, const Reader::Item& b) {
    return a.device != b.device ? a.device < b.device : a.source < b.source;
  });
  const std::span<const Reader::Item> all = reader.items;
  const bool mixed = !all.empty() && all.front().device == kHost && all.back().device != kHost;
  const StreamId side = side_stream(reader, stream, mixed);
  EventId joined = EventId::none;

  for (std::size_t begin = 0; begin < all.size();) {
    std::size_t end = begin + 1;
    while (end < all.size() && all[end].device == all[begin].device) ++end;
    const auto group = all.subspan(begin, end - begin);
    const bool on_side = group.front().device == kHost && side != stream;
    const Status status = submit_group(reader, group, items, on_side ? side : stream, ending);
    if (!status) {
      // One item whose destination is wrong must not cost the others their tier: they are tried one by one.
      const bool trouble = is_trouble(status.error());
      if (trouble) report_trouble(group.front().device);
      for (const Reader::Item& entry : group)
        serve_from_next_tier(reader, items[entry.index], trouble ? entry.tier : Tier::none, stream, ending);
    } else if (on_side) {
      if (const auto event = record_surely(backend_, side)) {
        joined = *event;
      } else {  // without the join the caller's stream would not wait for these bytes
        for (const Reader::Item& entry : group) {
          note_use(*entry.object, side);  // whose copies nobody waits for now
          items[entry.index].served = Tier::none;
          items[entry.index].outcome = event.error().code;
        }
      }
    }
    begin = end;
  }
  if (joined != EventId::none) {
    pause_point(PausePoint::between_record_and_join);
    if (!planted_bug(PlantedBug::host_reads_not_joined)) order_after(backend_, stream, joined);
    backend_.release_event(joined);
  }
  pause_point(PausePoint::between_submit_and_unpin);
  // The copies are in the stream, and the object knows the stream: from here on that mark protects them.
  for (const Reader::Item& entry : all) {
    const Tier served = items[entry.index].served;
    if (served == Tier::none)
      log_.record_miss();
    else
      log_.record(served, entry.object->index.load(std::memory_order_relaxed), AccessLog::How::fetched);
    unpin(*entry.object, entry.tier);
  }
}

StreamId Cache::side_stream(Reader& reader, StreamId stream, bool host_beside_others) {
  if (!host_beside_others) return stream;
  if (reader.side == StreamId::none) {
    auto created = backend_.create_stream(config_.consumer);
    if (!created) return stream;
    reader.side = *created;
  }
  const auto begin = backend_.record_event(stream);
  if (!begin) return stream;
  if (planted_bug(PlantedBug::host_reads_start_early)) return reader.side;
  const Status waits = backend_.stream_wait(reader.side, *begin);
  backend_.release_event(*begin);
  return waits ? reader.side : stream;
}

Status Cache::submit_group(Reader& reader, std::span<const Reader::Item> group,
                           std::span<const FetchItem> items, StreamId stream, Reader::Ending* ending) {
  reader.copies.clear();
  if (planted_bug(PlantedBug::read_path_allocates)) reader.copies.shrink_to_fit();
  for (const Reader::Item& entry : group) {
    const FetchItem& item = items[entry.index];
    reader.copies.push_back({static_cast<std::byte*>(item.destination), entry.source, item.bytes});
  }
  const DeviceId source = group.front().device;
  Status status = backend_.copy(stream, {source, config_.consumer}, reader.copies);
  if (!status) return status;
  pause_point(PausePoint::between_copy_and_watch);
  watch(reader, stream, source, ending);
  return {};
}

void Cache::watch(Reader& reader, StreamId stream, DeviceId source, Reader::Ending* ending) {
  if (ending == nullptr && reader.watches.size() == Reader::kWatches) {
    std::erase_if(reader.watches, [&](const Reader::Watch& watch) {
      const EventState state = backend_.query_event(watch.event);
      if (state == EventState::pending) return false;
      if (state == EventState::failed) report_trouble(watch.source);
      backend_.release_event(watch.event);
      return true;
    });
    if (reader.watches.size() == Reader::kWatches) return;
  }
  const auto event = backend_.record_event(stream);
  if (ending != nullptr)
    ending->watches.push_back({event.value_or(EventId::none), source});
  else if (event)
    remember(reader, {*event, source});
}

void Cache::remember(Reader& reader, Reader::Watch watch) {
  if (reader.watches.empty()) watching_.fetch_or(bit_of(reader), std::memory_order_relaxed);
  reader.watches.push_back(watch);
}

void Cache::serve_from_next_tier(Reader& reader, FetchItem& item, Tier failed, StreamId stream,
                                 Reader::Ending* ending) {
  TierSet allowed = kAllTiers & ~tier_bit(failed);
  item.served = Tier::none;
  item.outcome = ErrorCode::unavailable;
  if (planted_bug(PlantedBug::next_tier_not_asked)) return;
  while (allowed != 0) {
    const Pinned pinned = table_.find_and_pin(item.key, allowed);
    if (pinned.object == nullptr) return;
    Object& object = *pinned.object;
    const auto tier = static_cast<std::size_t>(pinned.tier);
    note_use(object, stream);
    const bool waits = wait_for_write(stream, pinned);
    const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
    const harvest::Copy copy{static_cast<std::byte*>(item.destination),
                             object.address[tier].load(std::memory_order_relaxed), bytes};
    const DeviceId device = object.device[tier].load(std::memory_order_relaxed);
    const bool fits = bytes <= item.capacity_bytes;
    Status status = fail(ErrorCode::unavailable, {});
    if (fits && waits) status = backend_.copy(stream, {device, config_.consumer}, {&copy, 1});
    const bool given = status.has_value();
    if (given) {
      item.served = pinned.tier;
      item.outcome = ErrorCode::ok;
      item.bytes = bytes;
      item.generation = object.generation.load(std::memory_order_relaxed);
      if (pinned.pending && ending != nullptr) note_early(*ending, item, pinned);
      fetched_.fallbacks.fetch_add(1, std::memory_order_relaxed);
      watch(reader, stream, device, ending);
    } else if (fits && is_trouble(status.error())) {
      report_trouble(device);
    } else {
      item.outcome = ErrorCode::invalid_argument;
    }
    unpin(object, pinned.tier);
    if (given || !fits) return;
    allowed &= ~tier_bit(pinned.tier);
  }
}

void Cache::report_trouble(DeviceId device) {
  copies_in_trouble_.fetch_add(1, std::memory_order_relaxed);
  if (device >= 0) trouble_[static_cast<std::size_t>(device)].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace harvest::core
