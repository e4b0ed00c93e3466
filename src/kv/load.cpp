// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/assert.hpp"
#include "kv/impl.hpp"

/// How blocks come to their pages: layer after layer, in each from all blocks. What peers have is given to
/// the wire at once, so that no lease of ours holds a peer's memory for longer than the copies take; what
/// only the host has, as far ahead as `ahead_ns` says, so that a load can be cancelled.
namespace harvest::kv {

BlockCache::Impl::Load& BlockCache::Impl::find(std::uint64_t id) {
  const auto found = std::ranges::find(loads_, id, &Load::id);
  HARVEST_ASSERT(found != loads_.end(), "a load that was forgotten");
  return *found;
}

void BlockCache::Impl::settle_flights() {
  for (const Lanes::Landed& landed : lanes_.settle()) {
    Load& load = find(landed.flight.load);
    --load.flying;
    if (landed.failed) load.blocks[landed.flight.block].failed = true;
  }
}

Result<std::uint64_t> BlockCache::Impl::load(std::span<const Key> keys, std::span<const std::uint32_t> pages,
                                             StreamId stream) {
  if (Status status = check(keys, pages, stream); !status) return tl::unexpected(status.error());
  MutexLock lock(mutex_);
  settle_flights();
  const auto begin = lanes_.record(stream);
  if (!begin) return fail(ErrorCode::unavailable, "the consumer is lost");
  Load& load = loads_.emplace_back();
  load.id = next_load_++;
  load.pages.assign(pages.begin(), pages.end());
  load.groups.resize(shape_.groups());
  load.begin = *begin;
  ++stats_.loads;
  open_blocks(load, keys);
  plan(load);
  give_all_ahead();
  return load.id;
}

/// Of the stream that waits for the wire which brings it. Where it is may change between the question and the
/// lease.
Lease BlockCache::Impl::lease(const Key& key) {
  Wire wire = cache_.locate(key) == Tier::host ? Wire::host : Wire::peers;
  for (;;) {
    Lease lease = cache_.acquire(key, lanes_.lease_stream(wire));
    if (!lease || wire_of(lease) == wire) return lease;
    wire = wire_of(lease);
  }
}

/// The last block first: a policy that goes by the last use then lets leaves go before what they hang on.
void BlockCache::Impl::open_blocks(Load& load, std::span<const Key> keys) {
  load.blocks.resize(keys.size());
  for (std::size_t i = keys.size(); i-- > 0;) {
    Block& block = load.blocks[i];
    block.key = object_key(keys[i]);
    if (stored_.contains(block.key)) block.lease = lease(block.key);
    block.lost = !block.lease || block.lease.bytes() != shape_.bytes();
    if (block.lost) {
      block.lease.release();
      continue;
    }
    block.tier = block.lease.tier();
  }
}

void BlockCache::Impl::plan(Load& load) {
  const auto pieces = shape_.pieces();
  std::vector<PieceRef> from_peers;
  for (std::uint32_t piece = 0; piece < pieces.size(); ++piece) {
    for (std::uint32_t number = 0; number < load.blocks.size(); ++number) {
      Block& block = load.blocks[number];
      if (block.lost) continue;
      shape_.needed(pieces[piece], tokens_behind(number, load.blocks.size()), ranges_);
      if (ranges_.empty()) continue;
      ++block.pieces_left;
      if (wire_of(block.lease) == Wire::host)
        load.waiting.push_back({number, piece});
      else
        from_peers.push_back({number, piece});
    }
  }
  for (Block& block : load.blocks)
    if (block.pieces_left == 0) block.lease.release();
  for (const PieceRef& piece : from_peers) give(load, piece);
}

/// Pieces of groups up to the named one, whatever is under way; without one, as far ahead as is allowed, and
/// one at least.
void BlockCache::Impl::give_waiting(Load& load, std::optional<std::uint32_t> up_to_group) {
  while (!load.waiting.empty()) {
    const PieceRef piece = load.waiting.front();
    const bool must = up_to_group && shape_.pieces()[piece.piece].group <= *up_to_group;
    const std::uint64_t ahead = lanes_.bytes_under_way(Wire::host);
    if (!must && ahead != 0 && wire_ns(Wire::host, ahead) >= config_.ahead_ns) return;
    load.waiting.pop_front();
    give(load, piece);
  }
}

/// First come, first served.
void BlockCache::Impl::give_all_ahead() {
  for (Load& load : loads_) {
    give_waiting(load, std::nullopt);
    if (!load.waiting.empty()) return;
  }
}

void BlockCache::Impl::give(Load& load, const PieceRef& piece) {
  Block& block = load.blocks[piece.block];
  --block.pieces_left;
  if (!block.failed) {
    const std::size_t lane = lanes_.next_lane(wire_of(block.lease));
    if (const std::uint64_t bytes = copy_to_pages(load, piece, lane); bytes != 0) {
      load.groups[shape_.pieces()[piece.piece].group][lane] =
          lanes_.depart(lane, {.load = load.id, .block = piece.block, .bytes = bytes});
      ++load.flying;
      const auto tier = static_cast<std::size_t>(block.lease.tier());
      load.bytes[tier] += bytes;
      stats_.loaded_bytes[tier] += bytes;
    }
  }
  if (block.pieces_left == 0) block.lease.release();
}

/// How many bytes are on their way; 0 if nothing is. A block of which anything could not be given has failed.
std::uint64_t BlockCache::Impl::copy_to_pages(Load& load, const PieceRef& piece, std::size_t lane) {
  shape_.needed(shape_.pieces()[piece.piece], tokens_behind(piece.block, load.blocks.size()), ranges_);
  std::uint64_t bytes = 0;
  for (const BlockShape::LayerRange& range : ranges_) bytes += shape_.bytes_of(range);
  const Status given = direct_ ? copy_directly(load, piece, lane) : copy_through_buffer(load, piece, lane);
  if (given) return bytes;
  load.blocks[piece.block].failed = true;
  // The copy into the buffer may be under way, and reads under the block's lease.
  return direct_ ? 0 : bytes;
}

Status BlockCache::Impl::copy_through_buffer(Load& load, const PieceRef& piece, std::size_t lane) {
  const Lease& lease = load.blocks[piece.block].lease;
  const DeviceId consumer = cache_.config().consumer;
  const std::uint64_t begin = shape_.pieces()[piece.piece].offset;
  copies_.clear();
  for (const BlockShape::LayerRange& range : ranges_) {
    const std::uint64_t offset = shape_.offset_of(range.first);
    copies_.push_back(
        {lanes_.buffer(lane) + (offset - begin), lease.data() + offset, shape_.bytes_of(range)});
  }
  const StreamId stream = lanes_.stream(lane);
  if (Status given = backend_.copy(stream, {lease.device(), consumer}, copies_); !given) return given;
  order_lane(load, lane);
  copies_.clear();
  for (const BlockShape::LayerRange& range : ranges_)
    shape_.append_scatter(range, pages_of(load, piece.block),
                          lanes_.buffer(lane) + (shape_.offset_of(range.first) - begin), copies_);
  return backend_.copy(stream, {consumer, consumer}, copies_);
}

Status BlockCache::Impl::copy_directly(Load& load, const PieceRef& piece, std::size_t lane) {
  const Lease& lease = load.blocks[piece.block].lease;
  order_lane(load, lane);
  copies_.clear();
  for (const BlockShape::LayerRange& range : ranges_)
    shape_.append_scatter(range, pages_of(load, piece.block), lease.data() + shape_.offset_of(range.first),
                          copies_);
  return backend_.copy(lanes_.stream(lane), {lease.device(), cache_.config().consumer}, copies_);
}

void BlockCache::Impl::order_lane(Load& load, std::size_t lane) {
  if (std::exchange(load.ordered[lane], true)) return;
  lanes_.order(lanes_.stream(lane), load.begin);
}

/// Numbers of a lane grow, so the last of several groups are the largest.
FlightNumbers BlockCache::Impl::flights_of(const Load& load, std::size_t groups) {
  FlightNumbers last{};
  for (std::size_t group = 0; group < groups; ++group)
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      last[lane] = std::max(last[lane], load.groups[group][lane]);
  return last;
}

Status BlockCache::Impl::order_behind(std::uint64_t id, std::uint32_t layer, StreamId stream) {
  if (layer >= config_.layout.layers.size())
    return fail(ErrorCode::invalid_argument, fmt::format("layer {}; the layout has layers 0 to {}", layer,
                                                         config_.layout.layers.size() - 1));
  if (Status status = check_stream(stream); !status) return status;
  MutexLock lock(mutex_);
  settle_flights();
  Load& load = find(id);
  load.let_go = true;
  const std::uint32_t group = shape_.group_of(layer);
  give_waiting(load, group);
  lanes_.order(stream, flights_of(load, group + 1));
  return {};
}

bool BlockCache::Impl::done(std::uint64_t id) {
  MutexLock lock(mutex_);
  settle_flights();
  give_all_ahead();
  const Load& load = find(id);
  return load.flying == 0 && load.waiting.empty();
}

void BlockCache::Impl::wait_for_flights(std::uint64_t id) {
  for (;;) {
    SharedEvent event;
    {
      MutexLock lock(mutex_);
      settle_flights();
      const Load& load = find(id);
      if (load.flying == 0) return;
      event = lanes_.event_of(flights_of(load, load.groups.size()));
    }
    if (event) backend_.wait_event(*event, kNever);
  }
}

std::vector<std::uint32_t> BlockCache::Impl::finish(std::uint64_t id) {
  {
    MutexLock lock(mutex_);
    give_waiting(find(id), shape_.groups());
  }
  wait_for_flights(id);
  retry_failed(id);
  std::vector<std::uint32_t> lost;
  MutexLock lock(mutex_);
  const Load& load = find(id);
  for (std::uint32_t number = 0; number < load.blocks.size(); ++number)
    if (load.blocks[number].lost) lost.push_back(number);
  return lost;
}

void BlockCache::Impl::drop_waiting(Load& load) {
  for (const PieceRef& piece : load.waiting) {
    Block& block = load.blocks[piece.block];
    block.lost = true;
    if (--block.pieces_left == 0) block.lease.release();
  }
  load.waiting.clear();
}

Status BlockCache::Impl::cancel(std::uint64_t id, StreamId stream) {
  if (Status status = check_stream(stream); !status) return status;
  MutexLock lock(mutex_);
  settle_flights();
  Load& load = find(id);
  drop_waiting(load);
  load.let_go = true;
  lanes_.order(stream, flights_of(load, load.groups.size()));
  return {};
}

void BlockCache::Impl::forget(std::uint64_t id) {
  {
    MutexLock lock(mutex_);
    drop_waiting(find(id));
  }
  wait_for_flights(id);
  MutexLock lock(mutex_);
  Load& load = find(id);
  for (const Block& block : load.blocks)
    ++(block.lost || block.failed ? stats_.recompute : stats_.loaded[static_cast<std::size_t>(block.tier)]);
  backend_.release_event(load.begin);
  std::erase_if(loads_, [&](const Load& other) { return other.id == id; });
  give_all_ahead();
}

std::array<std::uint64_t, kTiers> BlockCache::Impl::bytes_of(std::uint64_t id) {
  MutexLock lock(mutex_);
  return find(id).bytes;
}

}  // namespace harvest::kv
