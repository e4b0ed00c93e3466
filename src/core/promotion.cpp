// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <utility>

#include "base/test_hooks.hpp"
#include "core/cache.hpp"

/// What is hot climbs: from reads to wishes, from wishes to promotions.
namespace harvest::core {
namespace {

constexpr std::size_t kMostWishes = 65536;
constexpr double kHeatHalfLifeNs = 60e9;

}  // namespace

double Cache::heat_of(const Object& object, TimeNs now_ns) const {
  return object.heat * std::exp2(-static_cast<double>(now_ns - object.heat_at_ns) / kHeatHalfLifeNs);
}

void Cache::heat_up(Object& object, TimeNs now_ns) {
  object.heat = heat_of(object, now_ns) + 1;
  object.heat_at_ns = now_ns;
}

bool Cache::wish(Object& object, Tier tier) {
  if (!has_tier(tier) || object.copy(tier).state() != CopyState::none) return false;
  if ((object.wished & tier_bit(tier)) != 0) return true;
  ++counters_.admissions_asked;
  if (!admission(tier).admit(object.key, facts_of(object, tier), has_room(tier, object))) {
    ++counters_.admissions_refused;
    return false;
  }
  return enqueue(object, tier, false);
}

bool Cache::enqueue(Object& object, Tier tier, bool by_caller) {
  if (wishes_.size() >= kMostWishes) return false;
  object.wished |= tier_bit(tier);
  wishes_.push_back({{&object, object.generation.load(std::memory_order_relaxed), tier}, by_caller});
  return true;
}

/// The peers hear of what local memory did not serve, the host of what takes room there.
void Cache::shadow_access(const Object& object, Tier served) {
  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  if (shadow(Tier::peer) && served != Tier::local) shadow(Tier::peer)->access(object.key, bytes);
  if (shadow(Tier::host) && object.backing == Backing::managed_host)
    shadow(Tier::host)->access(object.key, bytes);
}

void Cache::learn_from_reads() {
  const TimeNs now = backend_.now_ns();
  samples_.clear();
  counters_.access_samples_lost += log_.drain(samples_);
  for (const auto& [served, index, how] : samples_) {
    Object& object = table_.at(index);
    if (!object.linked) continue;
    heat_up(object, now);
    shadow_access(object, served);
    // A tier hears of what it served and of what the tiers above it passed on; the host, which decides
    // about whole objects, hears of every read.
    for (const Tier tier : {Tier::local, Tier::peer, Tier::host}) {
      if (!has_tier(tier) || (tier == Tier::peer && served == Tier::local)) continue;
      admission(tier).record(object.key, facts_of(object, tier));
      if (is_ranked(object, tier)) eviction(tier).hit(object.key);
    }
    // What is read from the host climbs to a peer. Into local memory climbs what is read in place from
    // elsewhere; what was fetched is in the reader's own buffer already.
    const bool in_place = how == AccessLog::How::leased;
    const bool climbs = served != Tier::local && in_place && wish(object, Tier::local);
    if (!climbs && served == Tier::host) static_cast<void>(wish(object, Tier::peer));
  }
}

void Cache::promote_wished() {
  while (!wishes_.empty() && filling_bytes_ < config_.background_bytes) {
    if (planted_bug(PlantedBug::promoted_by_chance))
      std::swap(wishes_.front(), wishes_[planted_chance(wishes_.size())]);
    const auto [wanted, by_caller] = wishes_.front();
    wishes_.pop_front();
    Object& object = *wanted.object;
    if (object.generation.load(std::memory_order_relaxed) != wanted.generation) continue;
    object.wished &= ~tier_bit(wanted.tier);
    if (!object.linked || object.copy(wanted.tier).state() != CopyState::none) continue;
    const Tier source = best_source(object, wanted.tier);
    if (source == Tier::none) continue;
    // Pinned, so that making room cannot take the source away.
    object.meta.fetch_add(one_pin(source), std::memory_order_acquire);
    // What was let in because there was room may find that gone: then it must be worth an eviction.
    const bool may_evict =
        by_caller || admission(wanted.tier).admit(object.key, facts_of(object, wanted.tier), false);
    auto place = allocate(wanted.tier, object, may_evict);
    if (place)
      static_cast<void>(begin_fill(object, source, object, wanted.tier, std::move(*place), kPromotion));
    unpin(object, source);
    if (!place && !by_caller && wanted.tier == Tier::local) static_cast<void>(wish(object, Tier::peer));
  }
}

Tier Cache::best_source(const Object& object, Tier except) {
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host})
    if (tier != except && object.copy(tier).state() == CopyState::live) return tier;
  return Tier::none;
}

std::size_t Cache::prefetch(std::span<const Key> keys, Tier tier) {
  MutexLock lock(control_);
  if (tier == Tier::none || tier == Tier::host || !has_tier(tier)) return 0;
  std::size_t coming = 0;
  for (const Key& key : keys) {
    Object* object = table_.find(key);
    if (object == nullptr) continue;
    const CopyState state = object->copy(tier).state();
    const bool there =
        state == CopyState::live || state == CopyState::filling || (object->wished & tier_bit(tier)) != 0;
    if (there || (state == CopyState::none && enqueue(*object, tier, true))) ++coming;
  }
  promote_wished();
  return coming;
}

}  // namespace harvest::core
