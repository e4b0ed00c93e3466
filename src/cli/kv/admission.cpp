// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cli/kv/server.hpp"

/// Which requests run, with which of their blocks, in which pages.
namespace harvest::cli {
namespace {

constexpr std::uint32_t kNoPage = UINT32_MAX;
constexpr std::uint64_t kParked = 1ULL << 32;  // the high part of the names of parked blocks

}  // namespace

Status Server::hear_of_arrivals() {
  const TimeNs now = backend_->now_ns() - begin_ns_;
  for (; next_arrival_ < run_.requests.size() && run_.requests[next_arrival_].arrival_ns <= now;
       ++next_arrival_) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = &run_.requests[next_arrival_];
    sequence->id = next_arrival_;
    sequence->keys = sequence->request->keys;
    sequence->target = sequence->request->input_tokens;
    if (Status added = turns_->add(sequence->id, sequence->target); !added) return added;
    sequences_[next_arrival_] = std::move(sequence);
  }
  return {};
}

Status Server::follow_turns() {
  for (;;) {
    std::erase_if(leaving_, [&](Sequence* sequence) { return has_left(*sequence); });
    const auto& moves = turns_->decide();
    if (moves.empty()) return {};
    for (const kv::Turns::Move& move : moves) {
      Sequence& sequence = *sequences_[move.id];
      const bool leaves = move.kind == kv::Turns::Move::Kind::leave;
      if (Status begun = leaves ? begin_to_leave(sequence) : begin(sequence); !begun) return begun;
    }
  }
}

kv::PrefixMatch Server::known_prefix(std::span<const Key> keys) {
  if (lower_) return lower_->blocks().lookup(keys);
  kv::PrefixMatch match;
  while (match.blocks < keys.size() && pages_->find(keys[match.blocks])) ++match.blocks;
  match.tiers.assign(match.blocks, Tier::local);
  return match;
}

/// Takes its known blocks, and pages for the others. Requires: there are enough; turns see to that.
Status Server::begin(Sequence& sequence) {
  if (!sequence.parked.empty()) return come_back(sequence);
  const auto& keys = sequence.keys;
  // At least one token is computed: the next one is drawn from it.
  const std::size_t most = std::min<std::size_t>(keys.size(), (sequence.target - 1) / run_.block_tokens);
  kv::PrefixMatch match = known_prefix(std::span(keys).first(most));
  const auto local = static_cast<std::size_t>(
      std::ranges::find_if(match.tiers, [](Tier tier) { return tier != Tier::local; }) - match.tiers.begin());
  if (local < match.blocks && match.load_ns + lower_->issue_ns(match) >= match.recompute_ns) {
    match.blocks = local;
    match.tiers.resize(local);
  }
  sequence.pages.assign(pages_for(sequence.target), kNoPage);
  for (std::size_t i = 0; i < match.blocks; ++i) {
    if (match.tiers[i] != Tier::local) continue;
    sequence.pages[i] = *pages_->find(keys[i]);
    pages_->use(sequence.pages[i]);
  }
  take_pages(sequence);
  sequence.named = local;
  sequence.computed = match.blocks * run_.block_tokens;
  if (sequence.times_left == 0) count_blocks(sequence, match);
  if (local < match.blocks)
    if (Status begun = begin_load(sequence, match); !begun) return begun;
  prefilling_.push_back(&sequence);
  return {};
}

void Server::count_blocks(const Sequence& sequence, const kv::PrefixMatch& match) {
  figures_.blocks += sequence.keys.size();
  figures_.recomputed += sequence.keys.size() - match.blocks;
  for (const Tier tier : match.tiers) ++figures_.hits[static_cast<std::size_t>(tier)];
}

Status Server::begin_load(Sequence& sequence, const kv::PrefixMatch& match) {
  std::vector<Key> keys;
  std::vector<std::uint32_t> pages;
  sequence.loading.clear();
  for (std::size_t i = 0; i < match.blocks; ++i) {
    if (match.tiers[i] == Tier::local) continue;
    sequence.loading.push_back({i, match.tiers[i], sequence.keys[i]});
    keys.push_back(sequence.keys[i]);
    pages.push_back(sequence.pages[i]);
  }
  return give_load(sequence, lower_->blocks(), keys, pages, match);
}

Status Server::give_load(Sequence& sequence, kv::BlockCache& cache, std::span<const Key> keys,
                         std::span<const std::uint32_t> pages, const kv::PrefixMatch& match) {
  auto load = lower_->load(cache, keys, pages, match);
  if (!load) return tl::unexpected(load.error());
  sequence.load.emplace(std::move(*load));
  sequence.load_due_ns = backend_->now_ns() + match.load_ns + lower_->issue_ns(match);
  return {};
}

/// For its next turn, with what was kept of it. Before prompts that wait to be computed: a token is all that
/// it needs, as a rule.
Status Server::come_back(Sequence& sequence) {
  kv::BlockCache& cache = lower_->parked();
  const std::uint64_t tokens = sequence.target - 1;  // but for the last one that was drawn
  kv::PrefixMatch match = cache.lookup(sequence.parked);
  if (match.load_ns + lower_->issue_ns(match) >= match.recompute_ns) match.blocks = 0;
  sequence.pages.assign(pages_for(sequence.target), kNoPage);
  take_pages(sequence);
  sequence.computed = std::min(match.blocks * run_.block_tokens, tokens);
  sequence.named = std::min(match.blocks, sequence.keys.size());
  figures_.parked_lost += sequence.parked.size() - match.blocks;
  const auto new_ones = std::ranges::find(prefilling_, 0U, &Sequence::times_left);
  prefilling_.insert(new_ones, &sequence);
  if (match.blocks == 0) {
    unpark(sequence);
    return {};
  }
  sequence.loading.clear();
  for (std::size_t i = 0; i < match.blocks; ++i)
    sequence.loading.push_back({i, match.tiers[i], content_of(sequence, i)});
  return give_load(sequence, cache, std::span(sequence.parked).first(match.blocks),
                   std::span(sequence.pages).first(match.blocks), match);
}

/// Where it has none yet.
void Server::take_pages(Sequence& sequence) {
  taken_.clear();
  for (std::uint32_t& page : sequence.pages)
    if (page == kNoPage) taken_.push_back(page = pages_->take());
  if (lower_ && !taken_.empty()) static_cast<void>(lower_->blocks().order_behind_stores(taken_, compute_));
}

/// A page for the next token.
void Server::grow(Sequence& sequence) {
  if (sequence.pages.size() >= pages_for(sequence.computed + 1)) return;
  sequence.pages.push_back(kNoPage);
  take_pages(sequence);
}

/// Its pages are free when what is in them is kept elsewhere.
Status Server::begin_to_leave(Sequence& sequence) {
  ++figures_.left;
  ++sequence.times_left;
  leaving_.push_back(&sequence);
  if (!takes_turns()) return {};
  const auto pages = std::span(sequence.pages).first(pages_for(sequence.computed));
  for (std::size_t i = 0; i < pages.size(); ++i)
    sequence.parked.emplace_back(kParked + sequence.id, std::uint64_t{sequence.times_left} << 32 | i);
  for (std::size_t i = sequence.keys.size(); i < pages.size(); ++i)
    lower_->stamp(pages[i], content_of(sequence, i));
  return lower_->park(sequence.parked, pages);
}

/// Answers whether it has: it waits for its next turn then. It computes anew what is not kept anywhere when
/// it comes back.
bool Server::has_left(Sequence& sequence) {
  if (!sequence.parked.empty() && lower_->parked().storing(sequence.parked) > 0) return false;
  turns_->left(sequence.id);
  let_go(sequence);
  sequence.target = sequence.request->input_tokens + sequence.produced;
  return true;
}

/// What its block holds is known by this.
Key Server::content_of(const Sequence& sequence, std::size_t block) const {
  return block < sequence.keys.size() ? sequence.keys[block] : sequence.parked[block];
}

void Server::unpark(Sequence& sequence) {
  for (const Key& key : sequence.parked) static_cast<void>(lower_->parked().erase(key));
  sequence.parked.clear();
}

/// The last page first, so that the end of a prefix goes before its beginning, without which it is worth
/// nothing.
void Server::let_go(Sequence& sequence) {
  sequence.load.reset();
  for (; !sequence.pages.empty(); sequence.pages.pop_back()) pages_->let_go(sequence.pages.back());
  sequence.computed = 0;
  sequence.named = 0;
}

}  // namespace harvest::cli
