// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kv/impl.hpp"

/// Where blocks are: prefixes, the engine's own pages, and what is told about both.
namespace harvest::kv {
namespace {

TimeNs time_of(double ns) {
  return ns < static_cast<double>(kNever) ? static_cast<TimeNs>(ns) : kNever;
}

}  // namespace

TimeNs BlockCache::Impl::wire_ns(Wire wire, std::uint64_t bytes) const {
  if (bytes == 0) return 0;
  const WireFigures& figures = wires_[static_cast<std::size_t>(wire)];
  return figures.start_ns + static_cast<TimeNs>(static_cast<double>(bytes) * figures.ns_per_byte);
}

/// Of a block of a prefix of `blocks` blocks: layers with a window need not all of it.
std::uint64_t BlockCache::Impl::bytes_to_load(std::size_t block, std::size_t blocks) const {
  if (!windows_) return shape_.bytes();
  std::uint64_t bytes = 0;
  for (std::uint32_t layer = 0; layer < config_.layout.layers.size(); ++layer)
    if (shape_.needs(layer, tokens_behind(block, blocks))) bytes += shape_.bytes_of({layer, 1});
  return bytes;
}

PrefixMatch BlockCache::Impl::lookup(std::span<const Key> keys) {
  PrefixMatch match;
  MutexLock lock(mutex_);
  settle_flights();
  for (const Key& key : keys) {
    Tier tier = Tier::local;
    if (!local_.contains(key))
      tier = stored_.contains(object_key(key)) ? cache_.locate(object_key(key)) : Tier::none;
    if (tier == Tier::none) break;
    match.tiers.push_back(tier);
    ++stats_.found[static_cast<std::size_t>(tier)];
  }
  match.blocks = match.tiers.size();
  ++stats_.lookups;
  stats_.looked_up += keys.size();
  stats_.not_found += keys.size() - match.blocks;

  std::size_t to_load = 0;
  for (std::size_t i = 0; i < match.blocks; ++i) {
    if (match.tiers[i] == Tier::local) continue;
    ++to_load;
    match.bytes[static_cast<std::size_t>(match.tiers[i])] += bytes_to_load(i, match.blocks);
  }
  if (to_load == 0) return match;
  const auto expected = [&](std::uint64_t share) HARVEST_REQUIRES(mutex_) {
    std::array<TimeNs, kWires> ns{};
    for (const Wire wire : {Wire::peers, Wire::host}) {
      const Tier tier = wire == Wire::peers ? Tier::peer : Tier::host;
      const std::uint64_t mine = match.bytes[static_cast<std::size_t>(tier)] / share;
      const std::uint64_t waiting = wire == Wire::host ? host_bytes_waiting() : 0;
      if (mine != 0)
        ns[static_cast<std::size_t>(wire)] = wire_ns(wire, mine + lanes_.bytes_under_way(wire) + waiting);
    }
    return wires_apart_ ? std::max(ns[0], ns[1]) : ns[0] + ns[1];
  };
  match.load_ns = expected(1);
  match.first_layers_ns = expected(shape_.groups());
  match.recompute_ns = time_of(static_cast<double>(to_load * block_tokens_) * config_.recompute_ns_per_token);
  return match;
}

/// Bytes of loads that were begun and are not given to the wire yet.
std::uint64_t BlockCache::Impl::host_bytes_waiting() const {
  std::uint64_t bytes = 0;
  for (const Load& load : loads_)
    for (const PieceRef& piece : load.waiting) bytes += shape_.pieces()[piece.piece].bytes;
  return bytes;
}

Status BlockCache::Impl::note_local(std::span<const Key> keys, std::span<const std::uint32_t> pages) {
  if (Status status = check_pages(keys.size(), pages); !status) return status;
  MutexLock lock(mutex_);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto mine = pages.subspan(i * shape_.pages(), shape_.pages());
    local_[keys[i]].assign(mine.begin(), mine.end());
  }
  return {};
}

void BlockCache::Impl::forget_local(std::span<const Key> keys) {
  MutexLock lock(mutex_);
  for (const Key& key : keys) local_.erase(key);
}

std::vector<std::uint32_t> BlockCache::Impl::local_pages(const Key& key) {
  MutexLock lock(mutex_);
  const auto found = local_.find(key);
  return found == local_.end() ? std::vector<std::uint32_t>() : found->second;
}

Tier BlockCache::Impl::locate(const Key& key) {
  MutexLock lock(mutex_);
  if (local_.contains(key)) return Tier::local;
  return stored_.contains(object_key(key)) ? cache_.locate(object_key(key)) : Tier::none;
}

/// One that is on its way into the PeerCache cannot be stopped there: it is forgotten when it is shown.
Status BlockCache::Impl::erase(const Key& key) {
  bool known = false;
  {
    MutexLock lock(mutex_);
    settle_items();
    known = stored_.erase(object_key(key)) != 0;
    if (Item* item = find_item(object_key(key))) {
      item->unwanted = true;
      known = true;
    }
  }
  if (!known) return fail(ErrorCode::not_found, "no such block");
  static_cast<void>(cache_.erase(object_key(key)));
  return {};
}

void BlockCache::Impl::hear(const CacheEvent& event) {
  {
    MutexLock lock(mutex_);
    const auto found = stored_.find(event.key);
    if (found == stored_.end()) return;
    const Tier tier = cache_.locate(event.key);
    if (tier == found->second) return;
    found->second = tier;
    happened(tier == Tier::none ? BlockEvent::Kind::removed : BlockEvent::Kind::moved, event.key, tier);
    if (tier == Tier::none) stored_.erase(found);
  }
  tell();
}

void BlockCache::Impl::happened(BlockEvent::Kind kind, const Key& object, Tier tier) {
  if (config_.on_event) events_.push_back({kind, object_key(object), tier});
}

/// One thread at a time, so that events are told in their order. What happens meanwhile, to it or to others,
/// is told by it too.
void BlockCache::Impl::tell() noexcept {
  {
    MutexLock lock(mutex_);
    if (std::exchange(telling_, true)) return;
  }
  for (std::vector<BlockEvent> events;; events.clear()) {
    {
      MutexLock lock(mutex_);
      events.swap(events_);
      if (events.empty()) {
        telling_ = false;
        return;
      }
    }
    for (const BlockEvent& event : events) config_.on_event(event);
  }
}

BlockCacheStats BlockCache::Impl::stats() {
  MutexLock lock(mutex_);
  return stats_;
}

}  // namespace harvest::kv
