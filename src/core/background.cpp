// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <exception>

#include "base/assert.hpp"
#include "base/test_hooks.hpp"
#include "core/cache.hpp"

/// `poll`: everything that nobody waits for.
namespace harvest::core {
namespace {

constexpr std::size_t kFailedWritesKept = 256;
constexpr TimeNs kBusyPollNs = 50'000;  ///< while copies, leases or reclaims are under way
constexpr TimeNs kLongestPauseNs = 1'000'000;

}  // namespace

TimeNs Cache::poll() {
  TimeNs next = 0;
  {
    MutexLock lock(control_);
    work();
    const TimeNs now = backend_.now_ns();
    next = now + (idle() ? kLongestPauseNs : kBusyPollNs);
    for (const Peer& peer : peers_)
      if (!peer.lost) next = std::min(next, std::max(peer.next_sample_ns, now + 1));
  }
  deliver_events();
  return next;
}

/// One round, in an order that lets each step use what the one before it freed.
void Cache::work() {
  hear_of_fetches();
  hear_of_trouble();
  settle_pending();
  finish_fills();
  finish_all_leaving();
  collect_pools();
  sample_peers();
  advance_reclaims();
  learn_from_reads();
  promote_wished();
}

void Cache::collect_pools() {
  if (local_) local_->collect();
  for (Peer& peer : peers_) peer.pool->collect();
  if (host_) host_->collect();
  std::erase_if(settling_, [&](Settling& settling) HARVEST_REQUIRES(control_) {
    std::erase_if(settling.events, [&](EventId event) {
      if (backend_.query_event(event) == EventState::pending) return false;
      backend_.release_event(event);
      return true;
    });
    if (!settling.events.empty()) return false;
    if (config_.on_event)
      told_.push_back({CacheEvent::Kind::settled, settling.key, settling.generation, kHost});
    return true;
  });
}

/// Copies that were shown with their completion event: are they complete?
void Cache::settle_pending() {
  std::vector<CopyRef> failed;
  std::erase_if(pending_, [&](const CopyRef& ref) HARVEST_REQUIRES(control_) {
    if (!ref.is_live()) return true;
    const EventState state = backend_.query_event(ref.object->copy(ref.tier).ready);
    if (state == EventState::pending) return false;
    if (state == EventState::failed) {
      failed.push_back(ref);
      return true;
    }
    ObjectTable::clear_pending(*ref.object, ref.tier);
    spent_.push_back(ref);
    return true;
  });
  for (const CopyRef& ref : failed) {
    if (!ref.is_live()) continue;
    Object& object = *ref.object;
    if (ref.tier == Tier::peer) report_trouble(object.copy(ref.tier).device);
    if (ref.tier != Tier::local && elsewhere(object, ref.tier) == Elsewhere::nowhere)
      lose_unwritten(object);
    else
      drop_copy(object, ref.tier, DropReason::copy_failed);
  }
  // An event goes back when no reader can have seen the copy as pending and be about to wait for it.
  std::erase_if(spent_, [&](const CopyRef& ref) HARVEST_REQUIRES(control_) {
    if (!ref.is_live()) return true;
    if (pins(*ref.object, ref.tier) != 0) return false;
    Copy& copy = ref.object->copy(ref.tier);
    backend_.release_event(copy.ready);
    copy.ready = EventId::none;
    return true;
  });
}

/// The only copy of an object was not written. A `put` that waits for it will ask.
void Cache::lose_unwritten(Object& object) {
  failed_writes_.push_back(object.generation.load(std::memory_order_relaxed));
  if (failed_writes_.size() > kFailedWritesKept) failed_writes_.pop_front();
  lose(object, DropReason::copy_failed);
}

/// How did the fetches end that nobody waited for?
void Cache::hear_of_fetches() {
  // A bit is only set and cleared under its reader's lock, so none is missed for longer than a poll.
  for (std::uint64_t left = watching_.load(std::memory_order_relaxed); left != 0; left &= left - 1) {
    Reader& reader = readers_[static_cast<std::size_t>(std::countr_zero(left))];
    if (!reader.mutex.try_lock()) continue;  // one is being submitted: the next poll hears of those before it
    std::erase_if(reader.watches, [&](const Reader::Watch& watch) {
      const EventState state = backend_.query_event(watch.event);
      if (state == EventState::pending) return false;
      if (state == EventState::failed) report_trouble(watch.source);
      backend_.release_event(watch.event);
      return true;
    });
    if (reader.watches.empty()) watching_.fetch_and(~bit_of(reader), std::memory_order_relaxed);
    reader.mutex.unlock();
  }
}

bool Cache::idle() const {
  const bool reclaiming = std::any_of(reclaims_.begin(), reclaims_.end(),
                                      [](const Reclaim& reclaim) { return !reclaim.report.finished; });
  const auto drains = [](const memory::Pool* pool) { return pool != nullptr && pool->draining_bytes() != 0; };
  const bool draining =
      drains(local_.get()) || drains(host_.get()) ||
      std::any_of(peers_.begin(), peers_.end(), [&](const Peer& peer) { return drains(peer.pool.get()); });
  return fills_.empty() && leaving_.empty() && pending_.empty() && settling_.empty() && wishes_.empty() &&
         !reclaiming && !draining;
}

/// Until `done` says so under the lock, or the deadline: work, and let time pass. Events are only looked
/// at, never waited for without a limit: another thread may release one meanwhile.
bool Cache::work_until(TimeNs deadline_ns, const std::function<bool()>& done) {
  TimeNs pause = 1'000;
  constexpr TimeNs kLongestStepNs = 200'000;
  while (true) {
    // The last round is one that begins at the deadline or after it, so that it sees what is late.
    const bool last = backend_.now_ns() >= deadline_ns;
    {
      MutexLock lock(control_);
      work();
      if (done()) return true;
    }
    deliver_events();
    if (last) return false;
    backend_.sleep_until(std::min(deadline_ns, backend_.now_ns() + pause));
    pause = std::min(pause * 2, kLongestStepNs);
  }
}

Status Cache::settle(TimeNs deadline_ns) {
  const bool settled = work_until(deadline_ns, [this]() HARVEST_REQUIRES(control_) { return idle(); });
  deliver_events();
  if (!settled) return fail(ErrorCode::timed_out, "copies, leases or reclaims are still under way");
  return {};
}

void Cache::tell(CacheEvent::Kind kind, const Object& object, DeviceId device) {
  if (!config_.on_event) return;
  const CacheEvent event{kind, object.key, object.generation.load(std::memory_order_relaxed), device};
  if (planted_bug(PlantedBug::callback_under_lock)) return config_.on_event(event);
  told_.push_back(event);
}

void Cache::deliver_events() {
  if (!config_.on_event) return;
  std::vector<CacheEvent> events;
  {
    MutexLock lock(control_);
    events.swap(told_);
  }
  for (const CacheEvent& event : events) {
    try {
      config_.on_event(event);
    } catch (const std::exception& error) {  // what was not told yet would never be (I4)
      HARVEST_ASSERT(false, fmt::format("on_event may not throw, and threw: {}", error.what()));
    } catch (...) {
      HARVEST_ASSERT(false, "on_event may not throw, and did");
    }
  }
}

}  // namespace harvest::core
