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

constexpr std::size_t kLookedAtOnce = 256;    // of locating 50 ns each
constexpr double kBurstNs = 100e6;            // the cap is kept over this time
constexpr TimeNs kStepsPauseNs = 10'000'000;  // after which the next step is not expected any more
constexpr TimeNs kPauseNs = 2'000'000;        // between two looks, however often they are asked for
/// A full peer gives way only for an expert so much hotter than its coldest: moving costs, and both odds are
/// estimates.
constexpr double kWorthSwapping = 2;

}  // namespace

/// Refreshes what is known of where experts are, a part of them a call. True after each round over all.
bool ExpertCache::Impl::look_at_peers() {
  for (std::size_t i = 0; i < std::min(kLookedAtOnce, experts_.size()); ++i) {
    Expert& expert = experts_[looked_++];
    const auto pieces = pieces_of(expert);
    note_on_peers(expert,
                  !pieces.empty() && std::all_of(pieces.begin(), pieces.end(),
                                                 [&](const Piece& piece) { return is_on_peers(piece); }));
    if (looked_ < experts_.size()) continue;
    looked_ = 0;
    return true;
  }
  return false;
}

void ExpertCache::Impl::note_on_peers(Expert& expert, bool is) {
  if (is != expert.on_peers) experts_on_peers_ = is ? experts_on_peers_ + 1 : experts_on_peers_ - 1;
  expert.on_peers = is;
}

std::vector<ExpertCache::Impl::Heat> ExpertCache::Impl::heats() const {
  std::vector<Heat> heats;
  heats.reserve(experts_.size());
  for (std::uint32_t i = 0; i < experts_.size(); ++i)
    heats.push_back({i, experts_[i].slot != kNone, frequency_of(experts_[i])});
  return heats;
}

/// Milliseconds for a large model, so not under the lock.
void ExpertCache::Impl::sort_by_heat(std::vector<Heat>& heats) {
  std::sort(heats.begin(), heats.end(), [](const Heat& a, const Heat& b) {
    return a.here != b.here             ? b.here
           : a.frequency != b.frequency ? a.frequency > b.frequency
                                        : a.expert < b.expert;
  });
}

std::uint64_t ExpertCache::Impl::room_on_peers() const {
  std::uint64_t room_bytes = 0;
  for (const PoolStats& pool : cache_.stats().pools) {
    if (pool.tier != Tier::peer || !pool.in_service) continue;
    room_bytes += pool.free_bytes + (pool.allowed_bytes - std::min(pool.allowed_bytes, pool.mapped_bytes));
  }
  return room_bytes;
}

std::vector<ExpertCache::Impl::Move> ExpertCache::Impl::choose_moves(std::uint64_t room_bytes) {
  std::vector<Move> moves;
  auto allowance_bytes = static_cast<std::uint64_t>(allowance_bytes_);
  const auto coldest =
      std::find_if(by_heat_.rbegin(), by_heat_.rend(),
                   [&](std::uint32_t number) HARVEST_REQUIRES(mutex_) { return experts_[number].on_peers; });
  const double coldest_heat = coldest == by_heat_.rend() ? 0 : frequency_of(experts_[*coldest]);
  for (const std::uint32_t number : by_heat_) {
    const Expert& expert = experts_[number];
    if (expert.on_peers || expert.pieces == 0) continue;
    const bool fits = room_bytes >= slot_bytes_;
    const bool worth = expert.slot == kNone && frequency_of(expert) > kWorthSwapping * coldest_heat;
    if ((!fits && !worth) || allowance_bytes < slot_bytes_) break;
    Move& move = moves.emplace_back(Move{number, {}});
    for (const Piece& piece : pieces_of(expert)) move.keys.push_back(piece.key);
    allowance_bytes -= slot_bytes_;
    room_bytes -= std::min(room_bytes, slot_bytes_);
    if (!fits) break;  // one swap at a time: what goes is the PeerCache's choice, and is seen only then
  }
  return moves;
}

/// Whether the cap on bytes moved lets an expert move now.
bool ExpertCache::Impl::may_move() {
  const TimeNs now = backend_.now_ns();
  const auto rate = static_cast<double>(config_.rebalance_bytes_per_s);
  const double most = std::max(rate * kBurstNs / 1e9, static_cast<double>(slot_bytes_));
  allowance_bytes_ =
      std::min(most, allowance_bytes_ + static_cast<double>(now - allowance_at_ns_) * rate / 1e9);
  allowance_at_ns_ = now;
  return rate > 0 && allowance_bytes_ >= static_cast<double>(slot_bytes_);
}

/// What takes long is done without the lock: sorting, and what waits for the PeerCache, which may map memory
/// when it is asked for copies.
void ExpertCache::Impl::poll() {
  MutexLock lock(mutex_);
  settle();
  // Steps that follow each other begin guesses themselves, early enough to be done before the next one.
  const TimeNs busy_until = *std::max_element(demand_until_ns_.begin(), demand_until_ns_.end());
  if (backend_.now_ns() - busy_until >= kStepsPauseNs) pump();
  if (polling_ || backend_.now_ns() < next_balance_ns_) return;
  next_balance_ns_ = backend_.now_ns() + kPauseNs;
  polling_ = true;
  if (look_at_peers()) {
    std::vector<Heat> all = heats();
    lock.unlock();
    sort_by_heat(all);
    lock.lock();
    for (std::size_t i = 0; i < all.size(); ++i) by_heat_[i] = all[i].expert;
  }
  if (may_move()) {
    lock.unlock();
    const std::uint64_t room_bytes = room_on_peers();
    lock.lock();
    const std::vector<Move> moves = choose_moves(room_bytes);
    lock.unlock();
    std::size_t done = 0;
    while (done < moves.size() && cache_.prefetch(moves[done].keys, Tier::peer) == moves[done].keys.size())
      ++done;
    lock.lock();
    for (const Move& move : std::span(moves).first(done)) {
      note_on_peers(experts_[move.expert], true);  // until it is looked at again
      allowance_bytes_ -= static_cast<double>(slot_bytes_);
      stats_.rebalanced_bytes += slot_bytes_;
    }
  }
  polling_ = false;
}

}  // namespace harvest::moe
