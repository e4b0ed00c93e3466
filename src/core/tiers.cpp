// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "base/assert.hpp"
#include "base/test_hooks.hpp"
#include "core/cache.hpp"
#include "core/ordering.hpp"

/// How copies come into a tier and leave it.
namespace harvest::core {
namespace {

constexpr int kMostEvictions = 256;  ///< for one object; bounds the time under the control lock

}  // namespace

// --- room ------------------------------------------------------------------------------------------

std::vector<PeerSnapshot> Cache::snapshot_peers(const Object& object) {
  const TimeNs now = backend_.now_ns();
  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  std::vector<PeerSnapshot> snapshots;
  for (const Peer& peer : peers_) {
    if (!in_service(peer, now)) continue;
    PeerSnapshot snapshot;
    snapshot.device = peer.device;
    if (peer.pool->has_room(bytes)) snapshot.free_slot_bytes = std::max(peer.pool->free_bytes(), bytes);
    const auto plan = peer.pool->growth(bytes);
    const std::uint64_t growable = growable_bytes(peer, now);
    if (plan && plan->segment_bytes <= growable) snapshot.growable_bytes = growable;
    snapshot.used_bytes = peer.pool->used_bytes();
    snapshot.fetch_ns = topology_.expected_copy_ns(peer.device, config_.consumer, bytes);
    const auto tenant = peer.tenant_bytes.find(object.tenant);
    snapshot.tenant_used_bytes = tenant == peer.tenant_bytes.end() ? 0 : tenant->second;
    snapshot.stable_ns = static_cast<double>(now - peer.last_shrink_ns);
    snapshots.push_back(snapshot);
  }
  return snapshots;
}

bool Cache::has_room(Tier tier, const Object& object) {
  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  if (tier != Tier::peer) {
    memory::Pool* pool = pool_of(tier, tier == Tier::local ? config_.consumer : kHost);
    return pool != nullptr && (pool->has_room(bytes) || pool->growth(bytes).has_value());
  }
  const auto peers = snapshot_peers(object);
  return std::any_of(peers.begin(), peers.end(), [&](const PeerSnapshot& p) {
    return p.free_slot_bytes >= bytes || p.growable_bytes >= bytes;
  });
}

std::optional<Cache::Place> Cache::allocate_from(memory::Pool& pool, Object& object) {
  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  const std::uint32_t owner = object.index.load(std::memory_order_relaxed);
  auto allocation = pool.allocate(bytes, owner);
  if (!allocation) {
    Peer* peer = find_peer(pool.config().device);
    const Status grown = peer != nullptr ? grow(*peer, bytes) : pool.grow(bytes);
    if (!grown) return std::nullopt;
    allocation = pool.allocate(bytes, owner);
  }
  if (!allocation) return std::nullopt;
  return Place{&pool, std::move(*allocation)};
}

std::optional<Cache::Place> Cache::allocate_on_peer(Object& object) {
  std::vector<PeerSnapshot> peers = snapshot_peers(object);
  const PlacementRequest request{object.bytes.load(std::memory_order_relaxed)};
  while (const auto device = placement_->choose(peers, request)) {
    if (auto place = allocate_from(*pool_of(Tier::peer, *device), object)) return place;
    std::erase_if(peers, [&](const PeerSnapshot& p) { return p.device == *device; });
  }
  return std::nullopt;
}

std::optional<Cache::Place> Cache::allocate(Tier tier, Object& object, bool may_evict) {
  if (!has_tier(tier)) return std::nullopt;
  auto place = tier == Tier::peer
                   ? allocate_on_peer(object)
                   : allocate_from(*pool_of(tier, tier == Tier::local ? config_.consumer : kHost), object);
  if (!place && may_evict) place = evict_for(tier, object);
  return place;
}

bool Cache::evictable(const Object& object, Tier tier) const {
  const Copy& copy = object.copy(tier);
  if (copy.state() != CopyState::live || !copy.has_slot || pins(object, tier) != 0) return false;
  if (tier == Tier::host) return object.evictable && object.backing == Backing::managed_host;
  const Elsewhere other = elsewhere(object, tier);
  if (planted_bug(PlantedBug::sole_copy_evicted)) return other != Elsewhere::perhaps;
  return other == Elsewhere::surely || (other == Elsewhere::nowhere && object.backing == Backing::lossy);
}

std::optional<Cache::Place> Cache::evict_for(Tier tier, Object& object) {
  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  const auto may_go = [&](const Key& key) HARVEST_REQUIRES(control_) {
    if (key == object.key) return false;
    const Object* candidate = table_.find(key);
    if (candidate == nullptr || !evictable(*candidate, tier)) return false;
    const Copy& copy = candidate->copy(tier);
    // Room on a peer that is out of service, or in a segment that goes back, is of no use.
    const Peer* peer = tier == Tier::peer ? find_peer(copy.device) : nullptr;
    if (peer != nullptr && !in_service(*peer, backend_.now_ns())) return false;
    return !in_fenced_segment(copy, tier) && pool_of(tier, copy.device)->config().budget_bytes >= bytes;
  };
  for (int i = 0; i < kMostEvictions; ++i) {
    const auto victim = eviction(tier).evict(object.key, facts_of(object, tier), may_go);
    if (!victim || *victim == object.key) return std::nullopt;
    Object* evicted = table_.find(*victim);
    HARVEST_ASSERT(evicted != nullptr, "a policy may only name residents");
    memory::Pool& pool = *pool_of(tier, evicted->copy(tier).device);
    const std::uint32_t segment = evicted->copy(tier).slot.segment;
    evict_copy(*evicted, tier);
    if (auto place = allocate_from(pool, object)) return place;
    // Of another size: a segment that is emptied can be cut anew.
    if (pool.segments()[segment].bytes >= memory::slot_bytes_for(bytes)) {
      make_room_in_segment(pool, segment, tier, object.key);
      if (auto place = allocate_from(pool, object)) return place;
    }
  }
  return std::nullopt;
}

void Cache::make_room_in_segment(memory::Pool& pool, std::uint32_t segment, Tier tier, const Key& incoming) {
  std::vector<Object*> there;
  for (const std::uint32_t owner : pool.segments()[segment].owners) {
    if (owner == 0) continue;
    Object& object = table_.at(owner);
    if (!object.linked || object.key == incoming || !evictable(object, tier)) return;
    there.push_back(&object);
  }
  for (Object* object : there) {
    eviction(tier).erase(object->key);
    evict_copy(*object, tier);
  }
}

void Cache::evict_copy(Object& object, Tier tier) {
  if (tier == Tier::host) {
    ++counters_.objects_evicted;
    tell(CacheEvent::Kind::evicted, object, kHost);
    retire(object, DropReason::evicted);
  } else if (elsewhere(object, tier) == Elsewhere::nowhere) {
    lose(object, DropReason::evicted);
  } else {
    const bool demote = tier == Tier::local && object.copy(Tier::peer).state() == CopyState::none;
    drop_copy(object, tier, DropReason::evicted);
    if (demote && object.linked) static_cast<void>(wish(object, Tier::peer));
  }
}

// --- copies come -----------------------------------------------------------------------------------

void Cache::place(Object& object, Tier tier, const Place& place) {
  Copy& copy = object.copy(tier);
  HARVEST_ASSERT(copy.state() == CopyState::none, "one copy of an object in a tier");
  copy.has_slot = true;
  copy.slot = place.allocation.slot;
  copy.device = place.pool->config().device;
  if (Peer* peer = find_peer(copy.device); peer != nullptr && tier == Tier::peer)
    peer->tenant_bytes[object.tenant] += copy.slot.bytes;
}

void Cache::free_slot(Object& object, Tier tier, std::vector<EventId> events) {
  Copy& copy = object.copy(tier);
  if (copy.has_slot) {
    if (Peer* peer = find_peer(copy.device); peer != nullptr && tier == Tier::peer)
      peer->tenant_bytes[object.tenant] -= copy.slot.bytes;
    const bool to_wipe = object.tenant != 0 && !planted_bug(PlantedBug::wipe_skipped);
    pool_of(tier, copy.device)->release(copy.slot, std::move(events), to_wipe);
  } else {
    if (planted_bug(PlantedBug::external_settled_early)) events.clear();
    settling_.push_back({object.key, object.generation.load(std::memory_order_relaxed), std::move(events)});
  }
  copy.clear();
}

/// The write into a slot waits for whoever still reads what was there before (write after read). The
/// events stay the slot's until the write is given: if it is not, the slot still has those readers.
void Cache::wait_for_slot(StreamId stream, const Place& place) {
  if (planted_bug(PlantedBug::slot_readers_not_waited_for)) return;
  for (const EventId event : place.allocation.after) order_after(backend_, stream, event);
}

void Cache::release_events(const Place& place) {
  for (const EventId event : place.allocation.after) backend_.release_event(event);
}

void Cache::reveal(Object& object, Tier tier) {
  Copy& copy = object.copy(tier);
  copy.become(CopyState::live);
  const bool pending = copy.ready != EventId::none && !planted_bug(PlantedBug::write_shown_as_complete);
  ObjectTable::show(object, tier, pending);
  if (pending) pending_.push_back({&object, object.generation.load(std::memory_order_relaxed), tier});
}

/// Policies rank what may go: every copy on the consumer and on peers, on the host evictable objects only.
bool Cache::is_ranked(const Object& object, Tier tier) {
  const Copy& copy = object.copy(tier);
  return copy.state() == CopyState::live && copy.has_slot && (tier != Tier::host || object.evictable);
}

void Cache::enter_policy(Object& object, Tier tier) {
  if (is_ranked(object, tier)) eviction(tier).insert(object.key, facts_of(object, tier));
}

bool Cache::begin_fill(Object& source, Tier from, Object& object, Tier to, Place place,
                       std::uint64_t reclaim) {
  const StreamId stream = background_stream(from, to, source.copy(from).device, place.pool->config().device);
  source.meta.fetch_add(one_pin(from), std::memory_order_acquire);
  const Copy& read = source.copy(from);
  if (read.ready != EventId::none && !planted_bug(PlantedBug::unwritten_source_copied))
    order_after(backend_, stream, read.ready);
  wait_for_slot(stream, place);

  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  const harvest::Copy copy{place.allocation.slot.address, read.slot.address, bytes};
  const DeviceId from_device = read.device;
  this->place(object, to, place);
  Copy& written = object.copy(to);
  const Status given = backend_.copy(stream, {from_device, written.device}, {&copy, 1});
  const Result<EventId> done = given ? record_surely(backend_, stream) : tl::unexpected(given.error());
  if (reclaim == kPromotion) ++counters_.promotions;
  if (!done) {
    unpin(source, from);
    report_trouble(to == Tier::peer ? written.device : from_device);
    free_slot(object, to, std::move(place.allocation.after));
    if (reclaim == kPromotion) ++counters_.promotions_failed;
    return false;
  }
  release_events(place);
  written.become(CopyState::filling);
  filling_bytes_ += bytes;
  fills_.push_back({&object, to, &source, from, *done, reclaim});
  return true;
}

/// After `settle_pending`, which knows of the sources whose own writes failed.
void Cache::finish_fills() {
  for (std::size_t i = 0; i < fills_.size();) {
    const EventState state = backend_.query_event(fills_[i].done);
    if (state == EventState::pending && !planted_bug(PlantedBug::promotion_shown_unfinished)) {
      ++i;
      continue;
    }
    const Fill fill = fills_[i];
    fills_[i] = fills_.back();
    fills_.pop_back();
    backend_.release_event(fill.done);
    pause_point(PausePoint::between_end_of_fill_and_reveal);
    end_fill(fill, state != EventState::failed);
  }
}

void Cache::end_fill(const Fill& fill, bool arrived) {
  Object& object = *fill.object;
  Object& source = *fill.source;
  const bool moves_between_peers = &object != &source;
  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  unpin(source, fill.from);
  filling_bytes_ -= bytes;
  Copy& copy = object.copy(fill.to);
  const DeviceId device = copy.device;

  if (!arrived) report_trouble(fill.to == Tier::peer ? device : source.copy(fill.from).device);
  // One that left may have done so because its write failed; of one that is live that may not be known yet.
  const Copy& read = source.copy(fill.from);
  const bool was_written =
      (read.state() == CopyState::live &&
       (read.ready == EventId::none || backend_.query_event(read.ready) == EventState::complete)) ||
      planted_bug(PlantedBug::failed_write_copied_on);
  const Peer* peer = fill.to == Tier::peer ? find_peer(device) : nullptr;
  const bool wanted = source.linked && was_written && (peer == nullptr || !peer->lost) &&
                      (fill.reclaim != kPromotion || !in_fenced_segment(copy, fill.to));
  if (!arrived || !wanted) {
    free_slot(object, fill.to, {});
    if (fill.reclaim == kPromotion) ++counters_.promotions_failed;
    if (moves_between_peers)
      table_.recycle(object);
    else
      forget_if_gone(object);
    return;
  }

  counters_.written_bytes[static_cast<std::size_t>(fill.to)] += bytes;
  reveal(object, fill.to);
  if (fill.reclaim == kPromotion) {
    ++counters_.promotions_completed;
    enter_policy(object, fill.to);
    return;
  }
  counters_.spilled_bytes += bytes;
  if (Reclaim* reclaim = find_reclaim(fill.reclaim)) reclaim->report.spilled_bytes += bytes;
  tell(CacheEvent::Kind::spilled, object, device);
  if (moves_between_peers) {
    table_.link(object);
    retire(source, DropReason::reclaimed);
  } else {
    drop_copy(source, fill.from, DropReason::reclaimed);
  }
  enter_policy(object, fill.to);
}

// --- copies go -------------------------------------------------------------------------------------

Cache::Elsewhere Cache::elsewhere(const Object& object, Tier tier) const {
  Elsewhere best = Elsewhere::nowhere;
  for (const Tier other : {Tier::peer, Tier::host}) {  // a local copy comes and goes and vouches for nothing
    const Copy& copy = object.copy(other);
    if (other == tier || copy.state() != CopyState::live) continue;
    if (planted_bug(PlantedBug::unwritten_copy_vouches)) return Elsewhere::surely;
    if (copy.ready == EventId::none || backend_.query_event(copy.ready) == EventState::complete)
      return Elsewhere::surely;
    best = Elsewhere::perhaps;
  }
  return best;
}

void Cache::drop_copy(Object& object, Tier tier, DropReason reason) {
  Copy& copy = object.copy(tier);
  copy.become(CopyState::leaving);
  ObjectTable::hide(object, tier);
  pause_point(PausePoint::between_hide_and_look_at_pins);
  eviction(tier).erase(object.key);
  ++counters_.dropped_copies[static_cast<std::size_t>(tier)][static_cast<std::size_t>(reason)];
  if (!finish_leaving(object, tier))
    leaving_.push_back({&object, object.generation.load(std::memory_order_relaxed), tier});
}

bool Cache::finish_leaving(Object& object, Tier tier) {
  if (pins(object, tier) != 0 && !planted_bug(PlantedBug::lease_not_counted)) return false;
  auto asked = events_of_users(object);
  if (!asked) return false;
  std::vector<EventId> events = std::move(*asked);
  if (planted_bug(PlantedBug::users_forgotten)) events.clear();
  pause_point(PausePoint::between_events_and_free_slot);
  // Nobody pins it, so nobody can be about to wait for the write; but the write itself may still run.
  const EventId ready = object.copy(tier).ready;
  if (ready != EventId::none && !planted_bug(PlantedBug::unfinished_write_forgotten)) events.push_back(ready);
  free_slot(object, tier, std::move(events));
  return true;
}

void Cache::finish_all_leaving() {
  std::erase_if(leaving_, [&](const CopyRef& ref) HARVEST_REQUIRES(control_) {
    if (!finish_leaving(*ref.object, ref.tier)) return false;
    forget_if_gone(*ref.object);
    return true;
  });
}

/// An event on a caller's stream. Between a fetch's copy and its own event, this one would take the news of a
/// failure away from it.
Result<EventId> Cache::record_apart(StreamId stream) {
  MutexLock lock(reader_of(stream).mutex);
  return backend_.record_event(stream);
}

/// The same, unless a fetch is being submitted there, which may wait for a driver: nobody waits for it under
/// the control lock. Errors: busy, then.
Result<EventId> Cache::try_record_apart(StreamId stream) {
  Mutex& mutex = reader_of(stream).mutex;
  if (!mutex.try_lock()) return fail(ErrorCode::busy, "a fetch is being submitted on this stream");
  Result<EventId> event = backend_.record_event(stream);
  mutex.unlock();
  return event;
}

/// Whose work may read the object, by its marks.
std::vector<StreamId> Cache::users_of(const Object& object) const {
  std::vector<StreamId> users;
  const auto add = [&](std::uint32_t stream) HARVEST_REQUIRES(control_) {
    if (!forgotten_streams_.contains(stream))
      users.push_back(StreamId{stream});  // else it was waited for then
  };
  const std::uint64_t used_by = object.used_by.load(std::memory_order_acquire);
  for (std::uint32_t stream = 1; stream < kOverflowStreamBit; ++stream)
    if ((used_by >> stream) & 1) add(stream);
  if ((used_by >> kOverflowStreamBit) & 1) {
    std::vector<std::uint32_t> shared;
    shared_streams_.for_each([&](std::uint32_t stream) { shared.push_back(stream); });
    for (const std::uint32_t stream : shared) add(stream);
  }
  return users;
}

/// One event on each stream that was given work on the object; nothing if some could not be had now.
std::optional<std::vector<EventId>> Cache::events_of_users(const Object& object) {
  std::vector<EventId> events;
  bool all = true;
  for (const StreamId stream : users_of(object)) {
    const auto event = try_record_apart(stream);
    if (event) {
      events.push_back(*event);
      continue;
    }
    // A stream that is not known any more has done its work, or its owner forgot to say that it goes; a lost
    // device reads nothing any more. Anything else says nothing of the stream's work.
    const ErrorCode code = event.error().code;
    all = all && (code == ErrorCode::not_found || code == ErrorCode::unavailable);
  }
  if (all) return events;
  for (const EventId event : events) backend_.release_event(event);
  return std::nullopt;
}

/// I12: bytes of a tenant do not stay behind, neither for the next user of the slot nor for the owner. False
/// if the driver refuses now: the pool keeps the slot, and asks again. (A wipe fails in flight only where its
/// device is lost.)
bool Cache::wipe(const memory::Slot& slot, DeviceId device, std::vector<EventId>& events) {
  const StreamId stream = stream_of(device);
  if (!planted_bug(PlantedBug::wipe_before_last_read))
    for (const EventId event : events) order_after(backend_, stream, event);
  const std::uint64_t bytes = planted_bug(PlantedBug::wipe_of_first_part) ? slot.bytes / 2 : slot.bytes;
  const Status given = backend_.fill(stream, device, slot.address, bytes, 0);
  const Result<EventId> done = given ? backend_.record_event(stream) : tl::unexpected(given.error());
  if (!done) {  // of a device that is lost nothing is left to wipe
    if (planted_bug(PlantedBug::refused_wipe_forgotten)) return true;
    const auto memory = backend_.query_memory(device);
    return !memory && memory.error().code == ErrorCode::unavailable;
  }
  if (planted_bug(PlantedBug::wipe_not_waited_for))
    backend_.release_event(*done);
  else
    events.push_back(*done);
  return true;
}

void Cache::forget_if_gone(Object& object) {
  if (object.linked) return;
  for (const Copy& copy : object.copies)
    if (copy.state() != CopyState::none) return;
  table_.recycle(object);
}

void Cache::retire(Object& object, DropReason reason) {
  if (object.linked) table_.unlink(object);
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host})
    if (object.copy(tier).state() == CopyState::live) drop_copy(object, tier, reason);
  forget_if_gone(object);
}

void Cache::lose(Object& object, DropReason reason) {
  ++counters_.objects_lost;
  const DeviceId device = object.copy(Tier::peer).device;
  if (!planted_bug(PlantedBug::loss_not_told)) tell(CacheEvent::Kind::lost, object, device);
  if (planted_bug(PlantedBug::loss_told_twice)) tell(CacheEvent::Kind::lost, object, device);
  retire(object, reason);
}

}  // namespace harvest::core
