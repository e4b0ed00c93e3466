// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "base/log.hpp"
#include "base/test_hooks.hpp"
#include "core/cache.hpp"

/// Giving memory back: fence, empty, drain, unmap. Owners and the monitor come the same way.
namespace harvest::core {
namespace {

constexpr std::size_t kReclaimsKept = 64;

}  // namespace

Reclaim& Cache::open_reclaim(Peer& peer, std::uint64_t bytes, TimeNs deadline_ns, bool by_monitor) {
  if (reclaims_.size() >= kReclaimsKept) {  // the oldest that is over goes; one that a lease holds up stays
    const auto over = std::find_if(reclaims_.begin(), reclaims_.end(),
                                   [](const Reclaim& reclaim) { return reclaim.report.finished; });
    if (over != reclaims_.end()) reclaims_.erase(over);
  }
  const TimeNs now = backend_.now_ns();
  Reclaim reclaim;
  reclaim.id = next_reclaim_++;
  reclaim.by_monitor = by_monitor;
  reclaim.begun_ns = now;
  reclaim.deadline_ns = deadline_ns;
  reclaim.report.device = peer.device;
  reclaim.report.requested_bytes = bytes;
  ++counters_.reclaims;
  counters_.reclaim_requested_bytes += std::min(bytes, peer.sampled.total_bytes);
  peer.last_shrink_ns = now;
  peer.no_growth_before_ns = std::max(peer.no_growth_before_ns, now + config_.pressure.regrow_delay_ns);
  reclaims_.push_back(reclaim);
  return reclaims_.back();
}

Reclaim* Cache::find_reclaim(std::uint64_t id) {
  const auto it =
      std::find_if(reclaims_.begin(), reclaims_.end(), [&](const Reclaim& r) { return r.id == id; });
  return it == reclaims_.end() ? nullptr : &*it;
}

Result<ReclaimId> Cache::begin_reclaim(DeviceId device, std::uint64_t bytes, TimeNs deadline_ns) {
  ReclaimId id = ReclaimId::none;
  {
    MutexLock lock(control_);
    Peer* peer = find_peer(device);
    if (peer == nullptr)
      return fail(ErrorCode::not_found, fmt::format("device {} is not a peer of this cache", device));
    if (bytes == 0) return fail(ErrorCode::invalid_argument, "a reclaim asks for at least 1 byte, got 0");
    id = static_cast<ReclaimId>(open_reclaim(*peer, bytes, deadline_ns, false).id);
    settle_pending();
    finish_fills();
    advance_reclaims();
  }
  deliver_events();
  return id;
}

Result<ReclaimReport> Cache::reclaim_status(ReclaimId id) const {
  MutexLock lock(control_);
  for (const Reclaim& reclaim : reclaims_)
    if (reclaim.id == static_cast<std::uint64_t>(id)) return reclaim.report;
  return fail(ErrorCode::not_found,
              fmt::format("no reclaim {} among the last {}", static_cast<std::uint64_t>(id), kReclaimsKept));
}

Result<ReclaimReport> Cache::reclaim(DeviceId device, std::uint64_t bytes, TimeNs deadline_ns) {
  const auto id = begin_reclaim(device, bytes, deadline_ns);
  if (!id) return tl::unexpected(id.error());
  ReclaimReport report;
  work_until(deadline_ns, [&]() HARVEST_REQUIRES(control_) {
    const Reclaim* reclaim = find_reclaim(static_cast<std::uint64_t>(*id));
    if (reclaim != nullptr) report = reclaim->report;
    return reclaim == nullptr || report.finished;  // one that is over may be forgotten by now
  });
  deliver_events();
  return report;
}

void Cache::advance_reclaims() {
  bool open = false;
  for (const Reclaim& reclaim : reclaims_) open = open || !reclaim.report.finished;
  const TimeNs now = backend_.now_ns();
  for (Peer& peer : peers_) {
    if (open) fence_cheapest(peer, now);
    if (peer.pool->fenced_bytes() == 0) continue;
    for (std::uint32_t i = 0; i < peer.pool->segments().size(); ++i)
      if (peer.pool->segments()[i].fenced()) empty_segment(peer, i);
    peer.pool->collect();
    unmap_drained(peer);
  }
  if (!open) return;
  for (Reclaim& reclaim : reclaims_) {
    ReclaimReport& report = reclaim.report;
    if (report.finished) continue;
    const Peer* peer = find_peer(report.device);
    report.duration_ns = backend_.now_ns() - reclaim.begun_ns;
    report.finished = report.returned_bytes >= report.requested_bytes || peer->pool->mapped_bytes() == 0;
    if (!report.finished && backend_.now_ns() >= reclaim.deadline_ns) {
      const std::uint64_t missing = report.requested_bytes - report.returned_bytes;
      if (report.late_bytes == 0) ++counters_.reclaims_late;
      report.late_bytes = std::min(missing, peer->pool->mapped_bytes());
    } else {
      report.late_bytes = 0;
    }
  }
}

/// Fences segments, those whose loss costs the least for each byte first, until what is fenced covers what
/// is asked for.
void Cache::fence_cheapest(Peer& peer, TimeNs now_ns) {
  // Who asks for more than there is wants all of it: sums of such numbers must not overflow.
  const std::uint64_t mapped = peer.pool->mapped_bytes();
  std::uint64_t needed = 0;
  for (const Reclaim& reclaim : reclaims_)
    if (!reclaim.report.finished && reclaim.report.device == peer.device)
      needed += std::min(reclaim.report.requested_bytes - reclaim.report.returned_bytes, mapped - needed);
  if (needed <= peer.pool->fenced_bytes()) return;

  std::vector<std::pair<double, std::uint32_t>> by_value;
  const auto segments = peer.pool->segments();
  for (std::uint32_t i = 0; i < segments.size(); ++i)
    if (segments[i].state() == memory::SegmentState::active)
      by_value.emplace_back(value_of(segments[i], now_ns) / static_cast<double>(segments[i].bytes), i);
  std::sort(by_value.begin(), by_value.end());
  if (planted_bug(PlantedBug::fenced_by_chance) && !by_value.empty())
    std::swap(by_value.front(), by_value[planted_chance(by_value.size())]);
  for (const auto& [value, segment] : by_value) {
    if (peer.pool->fenced_bytes() >= needed) break;
    peer.pool->fence(segment);
    if (planted_bug(PlantedBug::reclaim_credited_when_fenced)) credit_reclaims(peer, segments[segment].bytes);
  }
}

/// What giving a segment back costs: for each object what a later read loses, by how likely it is.
double Cache::value_of(const memory::Segment& segment, TimeNs now_ns) const {
  double value = 0;
  for (const std::uint32_t owner : segment.owners) {
    if (owner == 0) continue;
    const Object& object = table_.at(owner);
    const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
    const double from_host = topology_.expected_copy_ns(kHost, config_.consumer, bytes);
    const double cost =
        object.backing == Backing::lossy ? std::max(object.recompute_cost_ns, from_host) : from_host;
    // A copy that must be moved first costs that in any case.
    const bool moves =
        object.backing != Backing::lossy && elsewhere(object, Tier::peer) == Elsewhere::nowhere;
    value += cost * heat_of(object, now_ns) + (moves ? from_host : 0.0) + 1;
  }
  return value;
}

void Cache::empty_segment(Peer& peer, std::uint32_t segment) {
  const std::vector<std::uint32_t> owners = peer.pool->segments()[segment].owners;
  for (const std::uint32_t owner : owners) {
    if (owner == 0) continue;
    Object& object = table_.at(owner);
    if (object.copy(Tier::peer).state() != CopyState::live) continue;  // leaves already, or is not there yet
    const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
    Reclaim* reclaim = first_open_reclaim(peer.device);
    switch (elsewhere(object, Tier::peer)) {
      case Elsewhere::surely:
        if (reclaim != nullptr) reclaim->report.dropped_bytes += bytes;
        tell(CacheEvent::Kind::revoked, object, peer.device);
        drop_copy(object, Tier::peer, revocation_reason(reclaim));
        break;
      case Elsewhere::perhaps: break;  // its other copy is on the way: soon we know
      case Elsewhere::nowhere:
        if (object.backing == Backing::lossy || planted_bug(PlantedBug::spill_not_moved)) {
          if (reclaim != nullptr) reclaim->report.lost_bytes += bytes;
          lose(object, revocation_reason(reclaim));
        } else {
          move_away(peer, object, reclaim == nullptr ? kReclaimIsOver : reclaim->id);
        }
        break;
    }
  }
}

/// The only copy of an object goes to another peer if one has room, else to host memory.
void Cache::move_away(Peer& peer, Object& object, std::uint64_t reclaim) {
  for (const Fill& fill : fills_)
    if (fill.source == &object && fill.from == Tier::peer && fill.reclaim != kPromotion)
      return;  // on its way

  // Looking for room asks the drivers, and may so find this very peer lost, and the object with it.
  const auto is_still_there = [&object] { return object.copy(Tier::peer).state() == CopyState::live; };

  // A second copy on a peer needs an object of its own; it takes the first one's place when it is complete.
  const Generation generation = planted_bug(PlantedBug::moved_object_renamed)
                                    ? next_generation_++
                                    : object.generation.load(std::memory_order_relaxed);
  if (Object* twin = peers_.size() > 1 ? table_.create(object.key, generation) : nullptr) {
    twin->bytes.store(object.bytes.load(std::memory_order_relaxed), std::memory_order_relaxed);
    twin->backing = object.backing;
    twin->evictable = object.evictable;
    twin->tenant = object.tenant;
    twin->recompute_cost_ns = object.recompute_cost_ns;
    twin->parent = object.parent;
    twin->heat = object.heat;
    twin->heat_at_ns = object.heat_at_ns;
    if (auto place = allocate(Tier::peer, *twin, false)) {
      const DeviceId there = place->pool->config().device;  // another segment of the same peer is as good
      const bool reachable = there == peer.device || topology_.usable_as_peer(peer.device, there);
      if (reachable && is_still_there()) {
        if (begin_fill(object, Tier::peer, *twin, Tier::peer, std::move(*place), reclaim)) return;
      } else {
        place->pool->release(place->allocation.slot, std::move(place->allocation.after));
      }
    }
    table_.recycle(*twin);
  }
  if (!is_still_there()) return;
  if (object.copy(Tier::host).state() != CopyState::none) return;
  if (auto place = allocate(Tier::host, object, true))
    static_cast<void>(begin_fill(object, Tier::peer, object, Tier::host, std::move(*place), reclaim));
}

/// Returns drained segments and credits the reclaims that wait, oldest first (I5). What the driver fails to
/// take back is neither ours any more nor known to be free: another segment must go in its stead.
void Cache::unmap_drained(Peer& peer) {
  for (std::uint32_t i = 0; i < peer.pool->segments().size(); ++i) {
    const memory::Segment& segment = peer.pool->segments()[i];
    if (segment.fenced() && !segment.empty() && planted_bug(PlantedBug::lease_holds_up_others)) return;
    if (!segment.drained()) continue;
    const std::uint64_t bytes = segment.bytes;
    if (const Status returned = peer.pool->unmap(i); !returned) {
      if (!peer.lost)
        log().error("{} bytes of peer {} did not go back: {}", bytes, peer.device, returned.error().message);
      continue;
    }
    counters_.reclaim_returned_bytes += bytes;
    peer.sampled.free_bytes += bytes;
    pause_point(PausePoint::between_unmap_and_credit);
    credit_reclaims(peer, bytes);
  }
}

void Cache::credit_reclaims(const Peer& peer, std::uint64_t bytes) {
  for (Reclaim& reclaim : reclaims_) {
    ReclaimReport& report = reclaim.report;
    if (report.finished || report.device != peer.device) continue;
    const std::uint64_t credit = std::min(bytes, report.requested_bytes - report.returned_bytes);
    report.returned_bytes += credit;
    bytes -= credit;
  }
}

Reclaim* Cache::first_open_reclaim(DeviceId device) {
  for (Reclaim& reclaim : reclaims_)
    if (!reclaim.report.finished && reclaim.report.device == device &&
        reclaim.report.returned_bytes < reclaim.report.requested_bytes)
      return &reclaim;
  return nullptr;
}

DropReason Cache::revocation_reason(const Reclaim* reclaim) {
  return reclaim == nullptr || reclaim->by_monitor ? DropReason::pressure : DropReason::reclaimed;
}

}  // namespace harvest::core
