// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kv/impl.hpp"

/// What failed on its way. The PeerCache fetches such a block anew, whole and into a store's buffer: it goes
/// on to the next tier where a path fails again, and takes that path out of service.
namespace harvest::kv {
namespace {

constexpr TimeNs kPauseNs = 100'000;

}  // namespace

std::uint32_t BlockCache::Impl::take_buffer() {
  {
    MutexLock lock(mutex_);
    ++buffers_wanted_;
  }
  for (;;) {
    {
      MutexLock lock(mutex_);
      if (const auto buffer = free_buffer()) {
        --buffers_wanted_;
        buffer_used_[*buffer] = true;
        return *buffer;
      }
    }
    backend_.sleep_until(backend_.now_ns() + kPauseNs);
    poll();
  }
}

/// Where nobody could say how a fetch ended, it may still write the buffer.
void BlockCache::Impl::wait_for_fetches() {
  SharedEvent end;
  {
    MutexLock lock(mutex_);
    end = lanes_.record_shared(fetch_stream_);
  }
  if (end) backend_.wait_event(*end, kNever);
}

/// From the buffer into pages. Behind all that may still use them, as the first attempt was.
bool BlockCache::Impl::scatter_anew(std::uint64_t id, std::uint32_t number, std::uint32_t buffer) {
  std::optional<EventId> event;
  {
    MutexLock lock(mutex_);
    const Load& load = find(id);
    const StreamId stream = store_streams_[buffer];
    lanes_.order(stream, load.begin);
    copies_.clear();
    const BlockShape::LayerRange all{0, static_cast<std::uint32_t>(config_.layout.layers.size())};
    shape_.append_scatter(all, pages_of(load, number), store_buffer(buffer), copies_);
    const DeviceId consumer = cache_.config().consumer;
    if (!backend_.copy(stream, {consumer, consumer}, copies_)) return false;
    event = lanes_.record(stream);
  }
  if (!event) return false;
  const bool arrived = backend_.wait_event(*event, kNever) == EventState::complete;
  backend_.release_event(*event);
  return arrived;
}

bool BlockCache::Impl::fetch_anew(std::uint64_t id, std::uint32_t number) {
  FetchItem item;
  bool let_go = false;
  {
    MutexLock lock(mutex_);
    const Load& load = find(id);
    item.key = load.blocks[number].key;
    let_go = load.let_go;
  }
  const std::uint32_t buffer = take_buffer();
  item.destination = store_buffer(buffer);
  item.capacity_bytes = shape_.bytes();
  const Status fetched = cache_.fetch_and_wait({&item, 1}, fetch_stream_);
  bool arrived = fetched && item.outcome == ErrorCode::ok && item.bytes == shape_.bytes();
  // What was given to other streams may have read the pages already, or filled them anew: too late for them.
  if (arrived)
    arrived = !let_go && scatter_anew(id, number, buffer);
  else
    wait_for_fetches();
  MutexLock lock(mutex_);
  buffer_used_[buffer] = false;
  ++stats_.retried;
  if (arrived) {
    const auto tier = static_cast<std::size_t>(item.served);
    Load& load = find(id);
    load.blocks[number].tier = item.served;
    load.bytes[tier] += item.bytes;
    stats_.loaded_bytes[tier] += item.bytes;
  }
  return arrived;
}

void BlockCache::Impl::retry_failed(std::uint64_t id) {
  for (;;) {
    std::uint32_t number = 0;
    {
      MutexLock lock(mutex_);
      const auto& blocks = find(id).blocks;
      const auto failed =
          std::ranges::find_if(blocks, [](const Block& block) { return block.failed && !block.lost; });
      if (failed == blocks.end()) return;
      number = static_cast<std::uint32_t>(failed - blocks.begin());
    }
    const bool arrived = fetch_anew(id, number);
    MutexLock lock(mutex_);
    Block& block = find(id).blocks[number];
    block.failed = false;
    block.lost = !arrived;
  }
}

}  // namespace harvest::kv
