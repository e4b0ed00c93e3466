// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstdint>
#include <span>
#include <vector>

/// How much faster reloads could be at best: what nobody can beat who does not know the future.
namespace harvest::cli {

/// The cache got a block from the engine, or brought it back for a request from below the local tier.
struct BlockUse {
  Key block;
  std::uint32_t request = 0;
  bool reload = false;  ///< false: the block was computed and stored
};

/// For each use: would it be a reload from a peer, if a clairvoyant chose what the peers keep? They have
/// room for `capacity_blocks`; a block can go there whenever it is stored or reloaded, at no cost. Belady's
/// rule with bypass, which no choice can beat in the number of reloads. Storing a block anew makes an older
/// copy worthless. Cost: n log n.
[[nodiscard]] std::vector<bool> peer_reloads_at_best(std::span<const BlockUse> uses,
                                                     std::uint64_t capacity_blocks);

/// Time for n bytes over it: overhead + n / bandwidth.
struct Wire {
  double overhead_ns = 0;
  double bandwidth_bytes_per_s = 1;
};

struct Ceiling {
  std::uint64_t capacity_blocks = 0;
  std::uint64_t reloads = 0;
  std::uint64_t from_peer = 0;    ///< of those
  double one_after_other_ns = 0;  ///< total reload time; a request uses one wire at a time
  double overlapping_ns = 0;      ///< the same, with both wires busy at once
};

[[nodiscard]] Ceiling find_ceiling(std::span<const BlockUse> uses, std::uint64_t capacity_blocks,
                                   std::uint64_t block_bytes, const Wire& peer, const Wire& host);

}  // namespace harvest::cli
