// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <array>
#include <map>

#include "core/cache.hpp"

/// Statistics and the audit.
namespace harvest::core {
namespace {

PoolStats describe(const memory::Pool& pool, Tier tier) {
  PoolStats stats;
  stats.device = pool.config().device;
  stats.tier = tier;
  stats.budget_bytes = pool.config().budget_bytes;
  stats.mapped_bytes = pool.mapped_bytes();
  stats.used_bytes = pool.used_bytes();
  stats.free_bytes = pool.free_bytes();
  stats.draining_bytes = pool.draining_bytes();
  for (const memory::Segment& segment : pool.segments()) stats.segments += segment.mapped() ? 1 : 0;
  return stats;
}

/// The sizes that somebody who may lend more, or wants some back, thinks about.
std::vector<ShadowPoint> points_of(const policy::ShadowCurve& curve, std::uint64_t capacity_bytes) {
  constexpr std::array kPercent{50U, 100U, 125U, 150U, 200U, 400U};
  static_assert(kPercent.back() <= 100 * policy::ShadowCurve::kMostMultiple);
  std::vector<ShadowPoint> points;
  for (const unsigned percent : kPercent) {
    const std::uint64_t bytes = capacity_bytes / 100 * percent + capacity_bytes % 100 * percent / 100;
    points.push_back({bytes, curve.hit_ratio(bytes)});
  }
  return points;
}

}  // namespace

CacheStats Cache::stats() const {
  MutexLock lock(control_);
  CacheStats stats = counters_;
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host}) {
    const auto t = static_cast<std::size_t>(tier);
    stats.hits[t] = log_.count(tier);
    stats.reads += stats.hits[t];
    stats.fetched_bytes[t] = fetched_.bytes[t].load(std::memory_order_relaxed);
  }
  stats.misses = log_.count(Tier::none);
  stats.reads += stats.misses;
  stats.fetches = fetched_.fetches.load(std::memory_order_relaxed);
  stats.fetched_items = fetched_.items.load(std::memory_order_relaxed);
  stats.fetch_fallbacks = fetched_.fallbacks.load(std::memory_order_relaxed);
  stats.failed_copies = copies_in_trouble_.load(std::memory_order_relaxed);
  stats.objects = table_.size();

  for (const Tier tier : {Tier::peer, Tier::host}) {
    const auto t = static_cast<std::size_t>(tier);
    const std::uint64_t capacity = tier == Tier::peer ? peer_capacity_bytes_ : config_.host_budget_bytes;
    if (shadow_[t] && shadow_[t]->has_accesses() && capacity != 0)
      stats.shadow[t] = points_of(*shadow_[t], capacity);
  }
  if (local_) stats.pools.push_back(describe(*local_, Tier::local));
  const TimeNs now = backend_.now_ns();
  for (const Peer& peer : peers_) {
    PoolStats pool = describe(*peer.pool, Tier::peer);
    pool.in_service = in_service(peer, now);
    if (!pool.in_service) pool.out_of_service_reason = peer.why_out_of_service;
    pool.device_free_bytes = peer.sampled.free_bytes;
    pool.reserve_bytes = peer.reserve_bytes;
    pool.allowed_bytes = peer.allowed_bytes;
    stats.pools.push_back(std::move(pool));
  }
  if (host_) stats.pools.push_back(describe(*host_, Tier::host));
  return stats;
}

Status Cache::audit() const {
  MutexLock lock(control_);
  std::map<const memory::Pool*, std::uint64_t> used;
  std::string wrong;
  table_.for_each([&](Object& object) HARVEST_REQUIRES(control_) {
    for (const Tier tier : {Tier::local, Tier::peer, Tier::host}) {
      const Copy& copy = object.copy(tier);
      const std::uint64_t meta = object.meta.load(std::memory_order_acquire);
      const bool seen = (meta & visible_bit(tier)) != 0;
      if (seen != (copy.state() == CopyState::live))
        wrong = fmt::format("object {} is {} readers in tier {} against its state",
                            object.index.load(std::memory_order_relaxed), seen ? "shown to" : "hidden from",
                            to_string(tier));
      if (!copy.has_slot) continue;
      const memory::Pool* pool = pool_of(tier, copy.device);
      used[pool] += copy.slot.bytes;
      const memory::Segment& segment = pool->segments()[copy.slot.segment];
      if (segment.owners[copy.slot.index] != object.index.load(std::memory_order_relaxed))
        wrong = fmt::format("slot {}.{} of device {} has another owner than its object", copy.slot.segment,
                            copy.slot.index, copy.device);
    }
  });
  const auto check = [&](const memory::Pool* pool) {
    if (pool == nullptr) return;
    if (!pool->is_valid())
      wrong = fmt::format("I7: the pool of device {} does not add up", pool->config().device);
    if (used[pool] != pool->used_bytes())
      wrong = fmt::format("I7: entries of device {} sum to {} bytes, its pool says {}", pool->config().device,
                          used[pool], pool->used_bytes());
  };
  check(local_.get());
  for (const Peer& peer : peers_) check(peer.pool.get());
  check(host_.get());
  if (!wrong.empty()) return fail(ErrorCode::invalid_argument, wrong);
  return {};
}

}  // namespace harvest::core
