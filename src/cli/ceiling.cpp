// SPDX-License-Identifier: Apache-2.0
#include "cli/ceiling.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <queue>

namespace harvest::cli {
namespace {

constexpr std::size_t kNever = std::numeric_limits<std::size_t>::max();

/// For each use the position of the next one of its block, if that is a reload.
std::vector<std::size_t> next_reloads(std::span<const BlockUse> uses) {
  std::vector<std::size_t> next(uses.size(), kNever);
  std::map<Key, std::size_t> seen_at;
  for (std::size_t i = uses.size(); i-- > 0;) {
    const auto seen = seen_at.find(uses[i].block);
    if (seen != seen_at.end() && uses[seen->second].reload) next[i] = seen->second;
    seen_at[uses[i].block] = i;
  }
  return next;
}

double wire_ns(const Wire& wire, std::uint64_t bytes) {
  if (bytes == 0) return 0;
  return wire.overhead_ns + static_cast<double>(bytes) * 1e9 / wire.bandwidth_bytes_per_s;
}

}  // namespace

std::vector<bool> peer_reloads_at_best(std::span<const BlockUse> uses, std::uint64_t capacity_blocks) {
  const std::vector<std::size_t> next = next_reloads(uses);
  // A resident is known by the position of its next reload; the farthest one goes first.
  std::vector<bool> kept_until(uses.size(), false);
  std::priority_queue<std::size_t> farthest;
  std::uint64_t residents = 0;
  for (std::size_t now = 0; now < uses.size(); ++now) {
    if (kept_until[now]) --residents;
    if (next[now] == kNever || capacity_blocks == 0) continue;
    if (residents == capacity_blocks) {
      if (farthest.top() <= next[now]) continue;
      kept_until[farthest.top()] = false;
      farthest.pop();
      --residents;
    }
    kept_until[next[now]] = true;
    farthest.push(next[now]);
    ++residents;
  }
  return kept_until;
}

Ceiling find_ceiling(std::span<const BlockUse> uses, std::uint64_t capacity_blocks, std::uint64_t block_bytes,
                     const Wire& peer, const Wire& host) {
  const std::vector<bool> from_peer = peer_reloads_at_best(uses, capacity_blocks);
  Ceiling ceiling;
  ceiling.capacity_blocks = capacity_blocks;
  for (std::size_t begin = 0; begin < uses.size();) {
    std::uint64_t peer_blocks = 0;
    std::uint64_t host_blocks = 0;
    std::size_t end = begin;
    for (; end < uses.size() && uses[end].request == uses[begin].request; ++end)
      if (uses[end].reload) ++(from_peer[end] ? peer_blocks : host_blocks);
    const double peer_ns = wire_ns(peer, peer_blocks * block_bytes);
    const double host_ns = wire_ns(host, host_blocks * block_bytes);
    ceiling.reloads += peer_blocks + host_blocks;
    ceiling.from_peer += peer_blocks;
    ceiling.one_after_other_ns += peer_ns + host_ns;
    ceiling.overlapping_ns += std::max(peer_ns, host_ns);
    begin = end;
  }
  return ceiling;
}

}  // namespace harvest::cli
