// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cli/kv/server.hpp"

/// Which requests run, with which of their blocks, in which pages.
namespace harvest::cli {
namespace {

constexpr std::uint32_t kNoPage = UINT32_MAX;
constexpr std::uint64_t kKeptFree = 100;  ///< one page of so many is left for answers when a prompt comes in

std::uint64_t pages_for(std::uint64_t tokens) {
  return (tokens + kServedBlockTokens - 1) / kServedBlockTokens;
}

}  // namespace

void Server::hear_of_arrivals() {
  const TimeNs now = backend_->now_ns() - begin_ns_;
  for (; next_arrival_ < run_.requests.size() && run_.requests[next_arrival_].arrival_ns <= now;
       ++next_arrival_) {
    Sequence sequence;
    sequence.request = &run_.requests[next_arrival_];
    sequence.target = sequence.request->input_tokens;
    waiting_.push_back(std::move(sequence));
  }
}

/// First come, first served: nobody overtakes a prompt that does not fit yet.
Status Server::admit() {
  while (!waiting_.empty() && running_.size() < run_.most_running) {
    const auto begun = begin(waiting_.front());
    if (!begun) return tl::unexpected(begun.error());
    if (!*begun) return {};
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  return {};
}

/// Whether there are pages for what it lacks, beside those of its blocks that nobody uses now.
bool Server::has_room(const Sequence& sequence, std::size_t most) const {
  const auto& keys = sequence.request->keys;
  std::uint64_t needed = pages_for(sequence.target);
  for (std::size_t i = 0; i < most; ++i) {
    const auto page = pages_->find(keys[i]);
    if (!page) break;
    if (pages_->is_used(*page)) --needed;
  }
  const std::uint64_t spare = running_.empty() ? 0 : pages_->size() / kKeptFree;
  return needed + spare <= pages_->available();
}

kv::PrefixMatch Server::known_prefix(std::span<const Key> keys) {
  if (lower_) return lower_->blocks().lookup(keys);
  kv::PrefixMatch match;
  while (match.blocks < keys.size() && pages_->find(keys[match.blocks])) ++match.blocks;
  match.tiers.assign(match.blocks, Tier::local);
  return match;
}

/// Takes its known blocks, and pages for the others; false if there are not enough.
Result<bool> Server::begin(Sequence& sequence) {
  const auto& keys = sequence.request->keys;
  // At least one token is computed: the next one is drawn from it.
  const std::size_t most = std::min<std::size_t>(keys.size(), (sequence.target - 1) / kServedBlockTokens);
  if (!has_room(sequence, most)) return false;
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
  sequence.computed = match.blocks * kServedBlockTokens;
  if (!sequence.again) count_blocks(sequence, match);
  if (local < match.blocks)
    if (Status begun = begin_load(sequence, match); !begun) return tl::unexpected(begun.error());
  return true;
}

void Server::count_blocks(const Sequence& sequence, const kv::PrefixMatch& match) {
  figures_.blocks += sequence.request->keys.size();
  figures_.recomputed += sequence.request->keys.size() - match.blocks;
  for (const Tier tier : match.tiers) ++figures_.hits[static_cast<std::size_t>(tier)];
}

Status Server::begin_load(Sequence& sequence, const kv::PrefixMatch& match) {
  std::vector<Key> keys;
  std::vector<std::uint32_t> pages;
  sequence.loading.clear();
  for (std::size_t i = 0; i < match.blocks; ++i) {
    if (match.tiers[i] == Tier::local) continue;
    sequence.loading.push_back({i, match.tiers[i]});
    keys.push_back(sequence.request->keys[i]);
    pages.push_back(sequence.pages[i]);
  }
  auto load = lower_->load(keys, pages, match);
  if (!load) return tl::unexpected(load.error());
  sequence.load.emplace(std::move(*load));
  sequence.load_due_ns = backend_->now_ns() + match.load_ns + lower_->issue_ns(match);
  return {};
}

/// Where it has none yet.
void Server::take_pages(Sequence& sequence) {
  taken_.clear();
  for (std::uint32_t& page : sequence.pages)
    if (page == kNoPage) taken_.push_back(page = pages_->take());
  if (lower_ && !taken_.empty()) static_cast<void>(lower_->blocks().order_behind_stores(taken_, compute_));
}

/// A page for the next token; false if there is none.
bool Server::grow(Sequence& sequence) {
  const std::uint64_t needed = pages_for(sequence.computed + 1);
  if (sequence.pages.size() >= needed) return true;
  if (pages_->available() == 0) return false;
  sequence.pages.push_back(kNoPage);
  take_pages(sequence);
  return true;
}

/// Its pages are needed by older ones. It comes back before those that wait, and computes anew what is not
/// kept anywhere.
void Server::preempt(Running::iterator victim) {
  ++figures_.preempted;
  Sequence sequence = std::move(*victim);
  running_.erase(victim);
  let_go(sequence);
  sequence.again = true;
  sequence.target = sequence.request->input_tokens + sequence.produced;
  waiting_.push_front(std::move(sequence));
}

/// The last page first, so that the end of a prefix goes before its beginning, without which it is worth
/// nothing.
void Server::let_go(Sequence& sequence) {
  sequence.load.reset();
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) pages_->let_go(*page);
  sequence.pages.clear();
  sequence.computed = 0;
  sequence.named = 0;
}

}  // namespace harvest::cli
