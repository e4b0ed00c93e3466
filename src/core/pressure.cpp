// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/log.hpp"
#include "base/test_hooks.hpp"
#include "core/cache.hpp"

/// The monitor: how much of each peer may be ours, and whether it is in service.
namespace harvest::core {
namespace {

constexpr TimeNs kQueryShare = 20;  ///< asking for the free memory takes at most 1/20 of the time
constexpr TimeNs kFirstSuspensionNs = 1'000'000'000;
constexpr TimeNs kLongestSuspensionNs = 60'000'000'000;
constexpr double kBurstHalfLifeNs = 60e9;
constexpr double kMostTokensNs = 1e9;  ///< growth that was not used adds up for this long

}  // namespace

void Cache::sample_peers() {
  const TimeNs now = backend_.now_ns();
  for (Peer& peer : peers_) {
    if (peer.lost || now < peer.next_sample_ns) continue;
    sample(peer);
    shrink_to_allowed(peer);
  }
  resize_peer_policy();
}

void Cache::sample(Peer& peer) {
  const auto memory = backend_.query_memory(peer.device);
  const TimeNs now = backend_.now_ns();
  if (!memory) {
    peer.next_sample_ns = now + config_.pressure.sample_interval_ns;
    if (memory.error().code == ErrorCode::unavailable) lose_device(peer, memory.error().message);
    return;
  }
  const std::uint64_t ours = peer.pool->mapped_bytes();
  const std::uint64_t used = memory->total_bytes - std::min(memory->total_bytes, memory->free_bytes);
  const std::uint64_t others = used - std::min(used, ours);
  const auto elapsed = static_cast<double>(now - peer.sampled_ns);
  const bool first = peer.sampled_ns == 0 && peer.sampled.total_bytes == 0;

  if (!first) {
    const std::uint64_t rise = others - std::min(others, peer.others_bytes);
    const double faded = peer.burst_bytes * std::exp2(-elapsed / kBurstHalfLifeNs);
    peer.burst_bytes = std::max(faded, static_cast<double>(rise));
  }
  const auto growth_per_s = static_cast<double>(config_.pressure.growth_bytes_per_s);
  const double earned = peer.growth_tokens_bytes + elapsed * 1e-9 * growth_per_s;
  peer.growth_tokens_bytes = first ? most_tokens() : std::min(earned, most_tokens());
  peer.others_bytes = others;
  peer.sampled = *memory;
  peer.sampled_ns = now;
  peer.next_sample_ns =
      now + std::max(config_.pressure.sample_interval_ns, memory->query_cost_ns * kQueryShare);
  // A burst as large as the largest seen lately may come between two samples.
  peer.reserve_bytes =
      std::max(config_.pressure.reserve_bytes,
               std::min(static_cast<std::uint64_t>(peer.burst_bytes), memory->total_bytes / 4));
  if (planted_bug(PlantedBug::reserve_ignored)) peer.reserve_bytes = 0;
  const std::uint64_t ours_or_free = memory->free_bytes + ours;
  peer.allowed_bytes =
      std::min(config_.peer_budget_bytes, ours_or_free - std::min(ours_or_free, peer.reserve_bytes));
}

void Cache::shrink_to_allowed(Peer& peer) {
  if (planted_bug(PlantedBug::pressure_ignored)) return;
  const std::uint64_t staying = peer.pool->mapped_bytes() - peer.pool->fenced_bytes();
  if (staying <= peer.allowed_bytes) return;
  open_reclaim(peer, staying - peer.allowed_bytes, backend_.now_ns() + config_.pressure.sample_interval_ns,
               true);
}

double Cache::most_tokens() const {
  return kMostTokensNs * 1e-9 * static_cast<double>(config_.pressure.growth_bytes_per_s);
}

std::uint64_t Cache::growable_bytes(const Peer& peer, TimeNs now_ns) const {
  if (!in_service(peer, now_ns) || now_ns < peer.no_growth_before_ns) return 0;
  // What an owner waits for is not taken anew meanwhile.
  const bool owner_waits = std::any_of(reclaims_.begin(), reclaims_.end(), [&](const Reclaim& reclaim) {
    return !reclaim.report.finished && reclaim.report.device == peer.device;
  });
  if (owner_waits && !planted_bug(PlantedBug::growth_while_owner_waits)) return 0;
  // A budget is the caller's own limit: only what the device has left needs the margin.
  const std::uint64_t by_device =
      peer.sampled.free_bytes > peer.reserve_bytes + config_.pressure.hysteresis_bytes
          ? peer.sampled.free_bytes - peer.reserve_bytes - config_.pressure.hysteresis_bytes
          : 0;
  const std::uint64_t by_budget =
      config_.peer_budget_bytes - std::min(config_.peer_budget_bytes, peer.pool->mapped_bytes());
  // All that can add up lets any segment in, and leaves a debt if it is larger: a slow rate is not a ban.
  const std::uint64_t by_rate = peer.growth_tokens_bytes >= most_tokens()
                                    ? UINT64_MAX
                                    : static_cast<std::uint64_t>(std::max(0.0, peer.growth_tokens_bytes));
  return std::min({by_device, by_budget, by_rate});
}

Status Cache::grow(Peer& peer, std::uint64_t object_bytes) {
  const auto plan = peer.pool->growth(object_bytes);
  if (!plan || growable_bytes(peer, backend_.now_ns()) < plan->segment_bytes)
    return fail(ErrorCode::out_of_memory, fmt::format("peer {} may not grow now", peer.device));
  if (!planted_bug(PlantedBug::growth_on_old_sample))
    sample(peer);  // I6: what counts is what is free at this moment
  if (peer.lost || growable_bytes(peer, backend_.now_ns()) < plan->segment_bytes)
    return fail(ErrorCode::out_of_memory, fmt::format("peer {} has no memory to spare", peer.device));
  const Status grown = peer.pool->grow(object_bytes);
  if (!grown) {
    peer.no_growth_before_ns = backend_.now_ns() + config_.pressure.regrow_delay_ns;
    if (grown.error().code == ErrorCode::unavailable) lose_device(peer, grown.error().message);
    return grown;
  }
  peer.growth_tokens_bytes -= static_cast<double>(plan->segment_bytes);
  peer.sampled.free_bytes -= std::min(peer.sampled.free_bytes, plan->segment_bytes);
  return {};
}

/// Copies failed somewhere since we last looked. A peer whose copies fail leaves service (I10): for good if
/// its device is lost, else for a while that doubles each time, until the peer has served well for long.
void Cache::hear_of_trouble() {
  for (Peer& peer : peers_) {
    if (trouble_[static_cast<std::size_t>(peer.device)].exchange(0, std::memory_order_relaxed) == 0 ||
        peer.lost)
      continue;
    if (const auto memory = backend_.query_memory(peer.device);
        !memory && memory.error().code == ErrorCode::unavailable) {
      lose_device(peer, memory.error().message);
      continue;
    }
    if (!in_service(peer, backend_.now_ns())) continue;
    suspend(peer);
  }
}

void Cache::suspend(Peer& peer) {
  if (planted_bug(PlantedBug::failed_path_in_service)) return;
  const bool long_in_service = backend_.now_ns() - peer.suspended_until_ns >= kLongestSuspensionNs;
  if (long_in_service) peer.suspension_ns = 0;
  peer.suspension_ns = std::clamp(peer.suspension_ns * 2, kFirstSuspensionNs, kLongestSuspensionNs);
  peer.suspended_until_ns = backend_.now_ns() + peer.suspension_ns;
  peer.why_out_of_service = "a copy failed";
  log().warn("peer {} leaves service for {} ms: a copy to or from it failed", peer.device,
             peer.suspension_ns / 1'000'000);
  // What lives elsewhere too is read from there at once; what does not is moved away.
  drop_copies_on(peer, DropReason::device_lost);
  if (peer.pool->mapped_bytes() > peer.pool->fenced_bytes())
    open_reclaim(peer, peer.pool->mapped_bytes() - peer.pool->fenced_bytes(), peer.suspended_until_ns, true);
}

void Cache::lose_device(Peer& peer, std::string why) {
  if (peer.lost || planted_bug(PlantedBug::device_loss_not_noticed)) return;
  log().error("peer {} is lost: {}", peer.device, why);
  peer.lost = true;
  peer.why_out_of_service = std::move(why);
  peer.allowed_bytes = 0;
  table_.for_each([&](Object& object) HARVEST_REQUIRES(control_) {
    const Copy& copy = object.copy(Tier::peer);
    if (copy.state() != CopyState::live || copy.device != peer.device) return;
    if (elsewhere(object, Tier::peer) == Elsewhere::nowhere)
      lose(object, DropReason::device_lost);
    else
      drop_copy(object, Tier::peer, DropReason::device_lost);
  });
  if (peer.pool->mapped_bytes() > peer.pool->fenced_bytes())
    open_reclaim(peer, peer.pool->mapped_bytes() - peer.pool->fenced_bytes(), backend_.now_ns(), true);
}

void Cache::drop_copies_on(Peer& peer, DropReason reason) {
  table_.for_each([&](Object& object) HARVEST_REQUIRES(control_) {
    const Copy& copy = object.copy(Tier::peer);
    if (copy.state() == CopyState::live && copy.device == peer.device &&
        elsewhere(object, Tier::peer) == Elsewhere::surely)
      drop_copy(object, Tier::peer, reason);
  });
}

void Cache::resize_peer_policy() {
  std::uint64_t capacity = 0;
  for (const Peer& peer : peers_)
    if (!peer.lost) capacity += std::max(peer.pool->mapped_bytes(), peer.allowed_bytes);
  if (capacity == peer_capacity_bytes_ || capacity == 0) return;
  peer_capacity_bytes_ = capacity;
  eviction(Tier::peer).set_capacity(capacity);
  admission(Tier::peer).set_capacity(capacity);
  if (shadow(Tier::peer)) shadow(Tier::peer)->set_capacity(capacity);
}

}  // namespace harvest::core
