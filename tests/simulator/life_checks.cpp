// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "simulator/life.hpp"
#include "simulator/violation.hpp"
#include "simulator/words.hpp"

/// What must hold after every step, and when everything is at rest.
namespace harvest::simulator {

void Life::check() {
  check_arrivals();
  check_sources();
  check_reclaims();
  const Status audit = cache_->audit();
  require(audit.has_value(), "I7", "{}", audit ? std::string() : audit.error().message);
}

void Life::check_arrivals() {
  std::vector<Check> arrived;
  std::erase_if(checks_, [&](Check& check) {
    if (backend_->query_event(check.event) == EventState::pending) return false;
    arrived.push_back(std::move(check));
    return true;
  });
  for (Check& check : arrived) {
    backend_->release_event(check.event);
    // A copy that failed in flight took its bytes along; only a fetch that waits is told of it.
    if (failures() != check.failures_before || check.on_lost_device) continue;
    for (const Expected& expected : check.expected)
      compare(check.buffer + expected.offset, expected.generation, "a read on a stream", false);
  }
}

/// What a put also wrote to a peer, and what arrived there: then it is not lost because the host's copy
/// failed.
void Life::note_arrivals_on_peers() {
  if (plan_.phantom) return;
  for (const Source& source : sources_) {
    Stored* what = source.generation == 0 ? nullptr : model_.find(source.generation);
    if (what == nullptr || what->on_peer == nullptr || what->arrived_on_peer) continue;
    what->arrived_on_peer =
        backend_->segment_of(what->peer, what->on_peer).first != nullptr &&
        first_wrong_word(what->on_peer, what->bytes, what->version, what->tenant) == what->bytes;
    require(
        !what->arrived_on_peer || !what->told_lost || what->backing == Backing::lossy || is_lost(what->peer),
        "I4", "key {} is told lost, and arrived on device {}", what->key, what->peer);
  }
}

void Life::check_sources() {
  note_arrivals_on_peers();
  std::erase_if(sources_, [&](Source& source) {
    if (backend_->query_event(source.event) == EventState::pending) return false;
    backend_->release_event(source.event);
    const bool garbled =
        source.uploaded != EventId::none && backend_->query_event(source.uploaded) == EventState::failed;
    if (source.uploaded != EventId::none) backend_->release_event(source.uploaded);
    if (source.memory != nullptr) static_cast<void>(simulated_->release_host_range(source.memory));
    if (Stored* what = source.generation == 0 ? nullptr : model_.find(source.generation)) {
      what->under_way = false;
      what->garbled = garbled;
      what->doubtful = what->doubtful || failures() != what->failures_before;
    }
    return true;
  });
}

void Life::check_reclaims() {
  std::map<DeviceId, std::uint64_t> credited = returned_;
  for (Begun& begun : reclaims_) {
    const auto report = cache_->reclaim_status(begun.id);
    if (report) {
      require(
          report->returned_bytes >= begun.last.returned_bytes && (report->finished || !begun.last.finished),
          "I5", "a reclaim that had {} bytes returned has {}", begun.last.returned_bytes,
          report->returned_bytes);
      require(report->returned_bytes + report->late_bytes <= report->requested_bytes, "I5",
              "a reclaim of {} bytes reports {} returned and {} late", report->requested_bytes,
              report->returned_bytes, report->late_bytes);
      require(!report->finished || report->returned_bytes == report->requested_bytes || begun.was_empty ||
                  backend_->account(begun.device).times_emptied > begun.emptied_before,
              "I5", "a reclaim of {} bytes is over with {} returned", report->requested_bytes,
              report->returned_bytes);
      begun.last = *report;
    }
    // Of those that are over only the last few are remembered; one that is not over is never forgotten.
    if (!report) begun.last.finished = true;
    credited[begun.device] += begun.last.returned_bytes;
  }
  for (const auto& [device, bytes] : credited)
    require(bytes <= backend_->account(device).unmapped_bytes, "I5",
            "{} bytes of device {} are reported as returned, {} were unmapped", bytes, device,
            backend_->account(device).unmapped_bytes);
}

void Life::check_statistics(bool at_rest) {
  const CacheStats stats = cache_->stats();
  require(stats.reads == stats.hits[0] + stats.hits[1] + stats.hits[2] + stats.misses, "statistics",
          "{} reads are not {} + {} + {} hits and {} misses", stats.reads, stats.hits[0], stats.hits[1],
          stats.hits[2], stats.misses);
  require(stats.puts == stats.puts_stored + stats.puts_refused, "statistics", "{} puts are not {} + {}",
          stats.puts, stats.puts_stored, stats.puts_refused);
  require(stats.admissions_refused <= stats.admissions_asked, "statistics", "{} of {} admissions are refused",
          stats.admissions_refused, stats.admissions_asked);
  for (const auto& points : stats.shadow)
    for (std::size_t i = 0; i < points.size(); ++i)
      require(points[i].hit_ratio <= 1 && points[i].hit_ratio >= (i == 0 ? 0 : points[i - 1].hit_ratio),
              "statistics", "a tier of {} bytes would hit {} of the reads", points[i].capacity_bytes,
              points[i].hit_ratio);
  for (const PoolStats& pool : stats.pools) {
    require(pool.used_bytes + pool.free_bytes + pool.draining_bytes == pool.mapped_bytes, "I7",
            "device {}: {} used, {} free and {} draining are not {} mapped", pool.device, pool.used_bytes,
            pool.free_bytes, pool.draining_bytes, pool.mapped_bytes);
    require(pool.mapped_bytes == backend_->account(pool.device).mapped_bytes, "I7",
            "device {} has {} bytes mapped, the statistics say {}", pool.device,
            backend_->account(pool.device).mapped_bytes, pool.mapped_bytes);
    require(pool.segments == backend_->account(pool.device).segments.size(), "I7",
            "device {} has {} segments, the statistics say {}", pool.device,
            backend_->account(pool.device).segments.size(), pool.segments);
  }
  require(stats.objects == model_.alive().size() || !at_rest, "I4",
          "{} objects are there, the statistics say {}", model_.alive().size(), stats.objects);
  require(!at_rest || stats.promotions == stats.promotions_completed + stats.promotions_failed, "statistics",
          "{} promotions are not {} + {}", stats.promotions, stats.promotions_completed,
          stats.promotions_failed);
  observe(stats.reads, stats.misses, stats.promotions, stats.spilled_bytes, stats.objects,
          stats.failed_copies);
}

/// I6: when all is at rest, what the owner does not use is free, or nothing is ours.
void Life::check_owners_at_rest() {
  for (const DeviceId peer : peers_) {
    if (is_lost(peer)) continue;
    const std::uint64_t mapped = backend_->account(peer).mapped_bytes;
    const std::uint64_t total = simulated_->devices()[static_cast<std::size_t>(peer)].total_bytes;
    const std::uint64_t free = total - simulated_->tenant_bytes(peer) - simulated_->mapped_bytes(peer);
    require(mapped == 0 || free >= plan_.config.pressure.reserve_bytes, "I6",
            "device {} has {} bytes free, {} are reserved, and {} are ours", peer, free,
            plan_.config.pressure.reserve_bytes, mapped);
    require(mapped <= plan_.config.peer_budget_bytes, "I6",
            "{} bytes of device {} are ours, the budget is {}", mapped, peer, plan_.config.peer_budget_bytes);
  }
}

/// I12: a tenant's bytes lie in objects that are alive, and nowhere else in memory of ours.
void Life::check_wiped_at_rest() {
  if (!plan_.tenants || plan_.phantom) return;
  std::set<std::uint32_t> alive;
  for (const auto& [key, generation] : model_.alive()) alive.insert(model_.at(generation).version);
  for (const DeviceInfo& device : simulated_->devices()) {
    if (is_lost(device.id)) continue;
    for (const auto& [address, bytes] : backend_->account(device.id).segments)
      for (std::uint64_t at = 0; at + 8 <= bytes; at += 8)
        if (const auto word = read_word(address + at, next_version_);
            word && word->tenant != 0 && !alive.contains(word->version))
          violated("I12", fmt::format("bytes of tenant {} (version {}, which is gone) are left on device {}",
                                      word->tenant, word->version, device.id));
  }
}

/// Everything that the streams were given is done.
void Life::synchronize() {
  for (const Stream& stream : streams_) {
    const auto event = backend_->record_event(stream.id);
    if (!event) continue;
    require(backend_->wait_event(*event, kNever) != EventState::pending, "liveness", "a stream stands still");
    backend_->release_event(*event);
  }
}

bool Life::may_be_stuck() const {
  return std::any_of(model_.alive().begin(), model_.alive().end(), [&](const auto& entry) {
    const auto& [key, generation] = entry;
    return model_.stored().at(generation).backing == Backing::spill && cache_->locate(key) != Tier::host;
  });
}

std::uint64_t Life::leased_segment_bytes(DeviceId device) const {
  std::set<std::byte*> segments;
  std::uint64_t sum = 0;
  for (const Held& held : leases_) {
    if (!held.lease || held.lease.device() != device) continue;
    const auto [segment, bytes] = backend_->segment_of(device, held.lease.data());
    if (segment != nullptr && segments.insert(segment).second) sum += bytes;
  }
  return sum;
}

}  // namespace harvest::simulator
