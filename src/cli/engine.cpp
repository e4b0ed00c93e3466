// SPDX-License-Identifier: Apache-2.0
#include "cli/engine.hpp"

#include <algorithm>

namespace harvest::cli {
namespace {

/// What the bytes of a block are known by: never 0, never that of a fill.
std::uint64_t tag_of(std::uint64_t block) {
  return (block * 0x9E3779B97F4A7C15ULL) >> 16 | 1ULL << 48;
}

}  // namespace

Engine::Engine(SimulatedBackend& backend, std::uint64_t block_bytes)
    : backend_(backend), block_bytes_(block_bytes) {}

Result<std::unique_ptr<Engine>> Engine::create(SimulatedBackend& backend, DeviceId device,
                                               std::uint64_t block_bytes, std::uint64_t most_blocks) {
  std::unique_ptr<Engine> engine(new Engine(backend, block_bytes));
  const std::uint64_t unit = backend.devices()[static_cast<std::size_t>(device)].segment_granularity_bytes;
  const std::uint64_t bytes = (block_bytes * most_blocks + unit - 1) / unit * unit;
  const auto buffer = backend.map_segment(device, bytes, {});
  if (!buffer) return tl::unexpected(buffer.error());
  engine->buffer_ = *buffer;
  for (StreamId* stream : {&engine->compute_, &engine->copies_}) {
    const auto created = backend.create_stream(device);
    if (!created) return tl::unexpected(created.error());
    *stream = *created;
  }
  return engine;
}

Engine::~Engine() {
  for (const StreamId stream : {compute_, copies_}) {
    if (stream == StreamId::none) continue;
    static_cast<void>(wait_for(stream));
    static_cast<void>(backend_.destroy_stream(stream));
  }
  if (buffer_ != nullptr) static_cast<void>(backend_.unmap_segment(buffer_));
}

void Engine::hear(const CacheEvent& event) {
  if (event.kind == CacheEvent::Kind::evicted) stored_.erase(event.key.low);
  if (event.kind == CacheEvent::Kind::lost && stored_.erase(event.key.low) != 0) ++figures_.lost;
}

/// A copy that failed is the cache's to notice: it says so by an event, or reads miss.
Status Engine::wait_for(StreamId stream) {
  const auto event = backend_.record_event(stream);
  if (!event) return tl::unexpected(event.error());
  backend_.wait_event(*event, kNever);
  backend_.release_event(*event);
  return {};
}

Status Engine::serve(PeerCache& cache, const TraceRequest& request) {
  // The buffer is used again: what the request before stored from it must have been read.
  if (Status status = wait_for(copies_); !status) return status;
  const auto known = bring_back(cache, request, known_prefix(cache, request));
  if (!known) return tl::unexpected(known.error());
  figures_.accesses += request.block_ids.size();
  figures_.misses += request.block_ids.size() - *known;
  cache.poll();  // so that the policies know what was just read before something has to go
  const Status stored = store(cache, request, *known);
  leased_.clear();
  ++request_;
  return stored;
}

/// How many blocks from the first on the cache has.
std::size_t Engine::known_prefix(const PeerCache& cache, const TraceRequest& request) {
  std::size_t blocks = 0;
  while (blocks < request.block_ids.size() && cache.locate(request.block_ids[blocks]) != Tier::none) ++blocks;
  if (blocks < request.block_ids.size() && stored_.erase(request.block_ids[blocks]) != 0) ++figures_.lost;
  return blocks;
}

/// Leases the local blocks of the prefix and fetches the others; answers how many blocks are there. From the
/// last block to the first: a policy that goes by age then gives up the end of a prefix before its
/// beginning, without which the rest is worth nothing.
Result<std::size_t> Engine::bring_back(PeerCache& cache, const TraceRequest& request, std::size_t prefix) {
  items_.clear();
  fetched_.clear();
  for (std::size_t i = prefix; i-- > 0;) {
    const std::uint64_t block = request.block_ids[i];
    if (cache.locate(block) == Tier::local) {
      Lease lease = cache.acquire(block, compute_);
      if (lease && lease.tier() == Tier::local) {
        leased_.push_back({i, std::move(lease)});
        continue;
      }
    }
    FetchItem item;
    item.key = block;
    item.destination = buffer(i);
    item.capacity_bytes = block_bytes_;
    items_.push_back(item);
    fetched_.push_back(i);
  }
  if (!items_.empty()) {
    const TimeNs begin = backend_.now_ns();
    if (Status status = cache.fetch_and_wait(items_, compute_); !status)
      return tl::unexpected(status.error());
    figures_.reload_ns.push_back(backend_.now_ns() - begin);
  }
  if (Status status = wait_for(compute_); !status) return tl::unexpected(status.error());

  std::size_t known = prefix;
  for (std::size_t n = 0; n < items_.size(); ++n)
    if (items_[n].served == Tier::none) known = std::min(known, fetched_[n]);
  for (const auto& [block, lease] : leased_)
    if (block < known) count_hit(request.block_ids[block], Tier::local, lease.data());
  for (std::size_t n = 0; n < items_.size(); ++n) {
    if (fetched_[n] >= known) continue;
    count_hit(request.block_ids[fetched_[n]], items_[n].served, buffer(fetched_[n]));
    uses_.push_back({items_[n].key, request_, true});
  }
  return known;
}

void Engine::count_hit(std::uint64_t block, Tier tier, const std::byte* address) {
  ++figures_.hits[static_cast<std::size_t>(tier)];
  figures_.bytes_from[static_cast<std::size_t>(tier)] += block_bytes_;
  if (backend_.stamp_of(address, block_bytes_) != tag_of(block)) figures_.wrong_bytes += block_bytes_;
}

/// Computes and stores the blocks from `begin` on, the last one first for the same reason.
Status Engine::store(PeerCache& cache, const TraceRequest& request, std::size_t begin) {
  PutOptions options;
  options.backing = Backing::managed_host;
  options.source_device = cache.config().consumer;
  options.stream = copies_;
  options.evictable = true;
  for (std::size_t i = request.block_ids.size(); i-- > begin;) {
    const std::uint64_t block = request.block_ids[i];
    if (cache.locate(block) != Tier::none) continue;  // behind a gap: worthless now, and still right
    backend_.stamp(buffer(i), block_bytes_, tag_of(block));
    const auto put = cache.put(block, buffer(i), block_bytes_, options);
    if (!put && put.error().code != ErrorCode::out_of_memory) return tl::unexpected(put.error());
    if (!put) {
      ++figures_.puts_refused;
      continue;
    }
    stored_.insert(block);
    uses_.push_back({block, request_, false});
  }
  return {};
}

void Engine::finish(const PeerCache& cache) {
  for (const std::uint64_t block : stored_)
    if (cache.locate(block) == Tier::none) ++figures_.lost;
}

}  // namespace harvest::cli
