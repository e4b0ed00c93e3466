// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include "moe/impl.hpp"

/// The rebalancer: which experts have a copy on a peer. Local slots hold what steps bring, and the host holds
/// everything; between them the hottest of the rest belong on peers. The PeerCache chooses the peer (its
/// placement spreads them) and drops copies that a peer's owner displaces; here those that are missing are
/// asked for again, hottest first, within a cap on bytes moved.
namespace harvest::moe {
namespace {

constexpr std::size_t kLookedAtOnce = 256;  // of locating 50 ns each
constexpr double kBurstNs = 100e6;          // the cap is kept over this time
/// A full peer gives way only for an expert so much hotter than its coldest: moving costs, and both odds are
/// estimates.
constexpr double kWorthSwapping = 2;

}  // namespace

/// Refreshes what is known of where experts are, a part of them a call. After each round they are sorted by
/// heat.
void ExpertCache::Impl::look_at_peers(std::size_t experts) {
  for (std::size_t i = 0; i < std::min(experts, experts_.size()); ++i) {
    if (looked_ == experts_.size()) {
      looked_ = 0;
      std::sort(by_heat_.begin(), by_heat_.end(), [&](std::uint32_t a, std::uint32_t b) {
        const bool a_here = experts_[a].slot != kNone;
        const bool b_here = experts_[b].slot != kNone;
        const double a_heat = frequency_of(experts_[a]);
        const double b_heat = frequency_of(experts_[b]);
        return a_here != b_here ? b_here : a_heat != b_heat ? a_heat > b_heat : a < b;
      });
    }
    Expert& expert = experts_[looked_++];
    const auto pieces = pieces_of(expert);
    expert.on_peers = !pieces.empty() && std::all_of(pieces.begin(), pieces.end(),
                                                     [&](const Piece& piece) { return is_on_peers(piece); });
  }
}

void ExpertCache::Impl::rebalance() {
  const TimeNs now = backend_.now_ns();
  const auto rate = static_cast<double>(config_.rebalance_bytes_per_s);
  const double most = std::max(rate * kBurstNs / 1e9, static_cast<double>(slot_bytes_));
  allowance_bytes_ =
      std::min(most, allowance_bytes_ + static_cast<double>(now - allowance_at_ns_) * rate / 1e9);
  allowance_at_ns_ = now;
  if (rate <= 0 || allowance_bytes_ < static_cast<double>(slot_bytes_)) return;

  std::uint64_t room_bytes = 0;
  for (const PoolStats& pool : cache_.stats().pools) {
    if (pool.tier != Tier::peer || !pool.in_service) continue;
    room_bytes += pool.free_bytes + (pool.allowed_bytes - std::min(pool.allowed_bytes, pool.mapped_bytes));
  }
  const auto coldest = std::find_if(by_heat_.rbegin(), by_heat_.rend(),
                                    [&](std::uint32_t number) { return experts_[number].on_peers; });
  const double coldest_heat = coldest == by_heat_.rend() ? 0 : frequency_of(experts_[*coldest]);
  for (const std::uint32_t number : by_heat_) {
    Expert& expert = experts_[number];
    if (expert.on_peers || expert.pieces == 0) continue;
    const bool fits = room_bytes >= slot_bytes_;
    const bool worth = expert.slot == kNone && frequency_of(expert) > kWorthSwapping * coldest_heat;
    if (!fits && !worth) return;
    if (allowance_bytes_ < static_cast<double>(slot_bytes_)) return;
    keys_.clear();
    for (const Piece& piece : pieces_of(expert)) keys_.push_back(piece.key);
    if (cache_.prefetch(keys_, Tier::peer) < keys_.size()) return;
    expert.on_peers = true;  // until it is looked at again
    allowance_bytes_ -= static_cast<double>(slot_bytes_);
    stats_.rebalanced_bytes += slot_bytes_;
    room_bytes -= std::min(room_bytes, slot_bytes_);
    if (!fits) return;  // one swap at a time: what goes is the PeerCache's choice, and is seen only then
  }
}

void ExpertCache::Impl::poll() {
  MutexLock lock(mutex_);
  settle();
  pump();
  look_at_peers(kLookedAtOnce);
  rebalance();
}

}  // namespace harvest::moe
