// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kv/impl.hpp"

/// How blocks are kept. A block is gathered from its pages into a buffer, beside the engine's work; from then
/// on the pages are free. When it is there the PeerCache gets it, and when that has written it well, loads
/// find it: so nobody reads what failed on this way.
namespace harvest::kv {
namespace {

constexpr TimeNs kPollNs = 20'000;

}  // namespace

BlockCache::Impl::Item* BlockCache::Impl::find_item(const Key& key) {
  const auto found = std::ranges::find(items_, key, &Item::key);
  return found == items_.end() ? nullptr : &*found;
}

bool BlockCache::Impl::is_stored_or_coming(const Key& key) {
  if (find_item(key) != nullptr) return true;
  return stored_.contains(key) && cache_.locate(key) != Tier::none;
}

Result<std::size_t> BlockCache::Impl::store(std::span<const Key> keys, std::span<const std::uint32_t> pages,
                                            StreamId stream, const std::optional<Key>& parent) {
  if (Status status = check(keys, pages, stream); !status) return tl::unexpected(status.error());
  MutexLock lock(mutex_);
  const SharedEvent begin = lanes_.record_shared(stream);
  if (!begin) return fail(ErrorCode::unavailable, "the consumer is lost");
  std::size_t coming = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    ++stats_.stores_asked;
    if (is_stored_or_coming(object_key(keys[i]))) {
      ++stats_.stores_known;
      continue;
    }
    if (stored_.erase(object_key(keys[i])) != 0)  // lost, and nobody has said so yet
      happened(BlockEvent::Kind::removed, object_key(keys[i]), Tier::none);
    Item& item = items_.emplace_back();
    item.key = object_key(keys[i]);
    item.parent = i == 0 ? parent : std::optional(keys[i - 1]);
    const auto mine = pages.subspan(i * shape_.pages(), shape_.pages());
    item.pages.assign(mine.begin(), mine.end());
    item.begin = begin;
    ++coming;
  }
  begin_gathers();
  return coming;
}

std::optional<std::uint32_t> BlockCache::Impl::free_buffer() const {
  const auto free = std::ranges::find(buffer_used_, false);
  if (free == buffer_used_.end()) return std::nullopt;
  return static_cast<std::uint32_t>(free - buffer_used_.begin());
}

void BlockCache::Impl::begin_gathers() {
  if (buffers_wanted_ != 0) return;
  std::erase_if(items_, [&](Item& item) HARVEST_REQUIRES(mutex_) {
    if (item.state != Item::State::queued) return false;
    const auto buffer = free_buffer();
    if (!buffer || gather(item, *buffer)) return false;
    ++stats_.stores_refused;
    return true;
  });
}

/// What lay in the buffer before is read by work of the same stream.
Status BlockCache::Impl::gather(Item& item, std::uint32_t buffer) {
  const StreamId stream = store_streams_[buffer];
  lanes_.order(stream, *item.begin);
  copies_.clear();
  shape_.append_gather(item.pages, store_buffer(buffer), copies_);
  const DeviceId consumer = cache_.config().consumer;
  if (Status given = backend_.copy(stream, {consumer, consumer}, copies_); !given) return given;
  const auto event = lanes_.record(stream);
  if (!event) return fail(ErrorCode::unavailable, "the consumer is lost");
  item.event = *event;
  item.buffer = buffer;
  item.state = Item::State::gathering;
  buffer_used_[buffer] = true;
  return {};
}

void BlockCache::Impl::leave_buffer(Item& item) {
  if (item.event != EventId::none) backend_.release_event(std::exchange(item.event, EventId::none));
  buffer_used_[item.buffer] = false;
}

/// Which gathers and writes have ended?
void BlockCache::Impl::settle_items() {
  std::erase_if(items_, [&](Item& item) HARVEST_REQUIRES(mutex_) {
    if (item.state != Item::State::gathering && item.state != Item::State::writing) return false;
    const EventState state = backend_.query_event(item.event);
    if (state == EventState::pending) return false;
    if (item.state == Item::State::writing) {
      leave_buffer(item);
      item.state = Item::State::written;
      return false;
    }
    // Nor is there anything to keep if the work failed that was to fill the pages.
    if (state == EventState::failed || backend_.query_event(*item.begin) == EventState::failed) {
      leave_buffer(item);
      ++stats_.stores_refused;
      return true;
    }
    backend_.release_event(std::exchange(item.event, EventId::none));
    item.state = Item::State::gathered;
    return false;
  });
}

/// A `put` may map memory, and tells the user's callbacks: no lock is held. One that is refused may have
/// given copies that still read the buffer, so it is judged like the others: by what is there in the end.
void BlockCache::Impl::put(const Key& key, const std::optional<Key>& parent, std::uint32_t buffer) {
  PutOptions options;
  options.backing = config_.backing;
  options.source_device = cache_.config().consumer;
  options.stream = store_streams_[buffer];
  options.evictable = true;
  options.tenant = config_.tenant;
  if (parent) options.parent = object_key(*parent);
  options.recompute_cost_ns = config_.recompute_ns_per_token * static_cast<double>(block_tokens_);
  static_cast<void>(cache_.put(key, store_buffer(buffer), shape_.bytes(), options));
}

void BlockCache::Impl::put_gathered() {
  for (;;) {
    Key key;
    std::optional<Key> parent;
    std::uint32_t buffer = 0;
    {
      MutexLock lock(mutex_);
      const auto item = std::ranges::find(items_, Item::State::gathered, &Item::state);
      if (item == items_.end()) return;
      item->state = Item::State::putting;
      key = item->key;
      parent = item->parent;
      buffer = item->buffer;
    }
    put(key, parent, buffer);
    MutexLock lock(mutex_);
    const auto item = std::ranges::find(items_, key, &Item::key);
    if (const auto event = lanes_.record(store_streams_[buffer])) {
      item->event = *event;
      item->state = Item::State::writing;
    } else {
      leave_buffer(*item);
      items_.erase(item);
      ++stats_.stores_refused;
    }
  }
}

/// The PeerCache has heard how its writes ended after it was polled, and dropped what failed. Of those that
/// end while it is polled, in another thread or while it tells of others, it may not have heard.
void BlockCache::Impl::show_written() {
  {
    MutexLock lock(mutex_);
    bool any = false;
    for (Item& item : items_) {
      if (item.state != Item::State::written) continue;
      item.state = Item::State::judged;
      any = true;
    }
    if (!any) return;
  }
  cache_.poll();
  std::vector<Key> unwanted;
  {
    MutexLock lock(mutex_);
    std::erase_if(items_, [&](const Item& item) HARVEST_REQUIRES(mutex_) {
      if (item.state != Item::State::judged) return false;
      const Tier tier = cache_.locate(item.key);
      if (item.unwanted) {
        unwanted.push_back(item.key);
        ++stats_.stores_given_up;
        return true;
      }
      if (tier == Tier::none) {
        ++stats_.stores_refused;
        return true;
      }
      ++stats_.stored;
      stats_.stored_bytes += shape_.bytes();
      stored_[item.key] = tier;
      happened(BlockEvent::Kind::stored, item.key, tier);
      return true;
    });
  }
  for (const Key& key : unwanted) static_cast<void>(cache_.erase(key));
}

std::size_t BlockCache::Impl::storing(std::span<const Key> keys) {
  MutexLock lock(mutex_);
  if (items_.empty()) return 0;
  return static_cast<std::size_t>(std::ranges::count_if(
      keys, [&](const Key& key) HARVEST_REQUIRES(mutex_) { return find_item(object_key(key)) != nullptr; }));
}

Status BlockCache::Impl::order_behind_stores(std::span<const std::uint32_t> pages, StreamId stream) {
  if (Status status = check_stream(stream); !status) return status;
  std::vector<std::uint32_t> wanted(pages.begin(), pages.end());
  std::ranges::sort(wanted);
  MutexLock lock(mutex_);
  settle_items();
  std::erase_if(items_, [&](Item& item) HARVEST_REQUIRES(mutex_) {
    const bool reads = item.state == Item::State::queued || item.state == Item::State::gathering;
    if (!reads || std::ranges::none_of(item.pages, [&](std::uint32_t page) {
          return std::ranges::binary_search(wanted, page);
        }))
      return false;
    if (item.state == Item::State::gathering) {
      lanes_.order(stream, item.event);
      return false;
    }
    ++stats_.stores_given_up;
    return true;
  });
  return {};
}

void BlockCache::Impl::poll() {
  {
    MutexLock lock(mutex_);
    settle_flights();
    give_all_ahead();
    settle_items();
    begin_gathers();
    if (putting_) return;
    putting_ = true;
  }
  put_gathered();
  show_written();
  {
    MutexLock lock(mutex_);
    putting_ = false;
    begin_gathers();
  }
  tell();
}

Status BlockCache::Impl::settle(TimeNs deadline_ns) {
  for (;;) {
    poll();
    {
      MutexLock lock(mutex_);
      if (items_.empty()) return {};
      if (backend_.now_ns() >= deadline_ns)
        return fail(ErrorCode::timed_out,
                    fmt::format("{} blocks are not stored yet at the deadline", items_.size()));
    }
    backend_.sleep_until(std::min(deadline_ns, backend_.now_ns() + kPollNs));
  }
}

}  // namespace harvest::kv
