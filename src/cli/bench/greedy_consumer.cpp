// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/greedy_consumer.hpp"

#include <algorithm>
#include <utility>

namespace harvest::cli::bench {
namespace {

constexpr std::size_t kMostAtOnce = 32;
constexpr std::size_t kMostRemembered = 4096;  ///< keys of a device, before those that left are sorted out

bool has_room(const CacheStats& stats, std::uint64_t margin_bytes) {
  return std::any_of(stats.pools.begin(), stats.pools.end(), [&](const PoolStats& pool) {
    return pool.tier == Tier::peer && (pool.free_bytes >= GreedyConsumer::kObjectBytes ||
                                       pool.device_free_bytes >= pool.reserve_bytes + margin_bytes);
  });
}

}  // namespace

Result<std::unique_ptr<GreedyConsumer>> GreedyConsumer::create(SimulatedBackend& backend, Backing backing,
                                                               std::uint64_t seed) {
  std::unique_ptr<GreedyConsumer> consumer(new GreedyConsumer(backend, backing, seed));
  const auto stream = backend.create_stream(kDevice);
  if (!stream) return tl::unexpected(stream.error());
  consumer->stream_ = *stream;
  const auto source = backend.reserve_host_range(kObjectBytes);
  if (!source) return tl::unexpected(source.error());
  consumer->source_ = *source;
  const auto destination = backend.map_segment(kDevice, kReadObjects * kObjectBytes, {});
  if (!destination) return tl::unexpected(destination.error());
  consumer->destination_ = *destination;
  return consumer;
}

GreedyConsumer::~GreedyConsumer() {
  if (read_ != EventId::none) {
    backend_.wait_event(read_, kNever);
    backend_.release_event(read_);
  }
  if (destination_ != nullptr) static_cast<void>(backend_.unmap_segment(destination_));
  if (source_ != nullptr) static_cast<void>(backend_.release_host_range(source_));
  if (stream_ != StreamId::none) static_cast<void>(backend_.destroy_stream(stream_));
}

void GreedyConsumer::hear(const CacheEvent& event) {
  const bool left = event.kind == CacheEvent::Kind::revoked ||
                    (event.kind == CacheEvent::Kind::spilled && event.device == kHost);
  if (left) gone_.push_back(event.key.low);
}

void GreedyConsumer::see_what_came(PeerCache& cache) {
  bool all = true;
  for (const std::uint64_t key : asked_) {
    if (cache.locate(key) != Tier::peer) {
      all = false;
      gone_.push_back(key);
      continue;
    }
    std::vector<std::uint64_t>& there = on_device_[cache.acquire(key, stream_).device()];
    there.push_back(key);
    if (there.size() > kMostRemembered)
      std::erase_if(there, [&](std::uint64_t old) { return cache.locate(old) != Tier::peer; });
  }
  if (!asked_.empty()) batch_ = all ? std::min(batch_ * 2, kMostAtOnce) : 1;
  asked_.clear();
}

Result<bool> GreedyConsumer::put_one(PeerCache& cache, std::uint64_t refused_before) {
  const std::uint64_t key = next_key_++;
  PutOptions options;
  options.backing = backing_;
  if (backing_ == Backing::spill) options.stream = stream_;
  const auto put = cache.put(key, source_, kObjectBytes, options);
  if (!put) {
    if (put.error().code == ErrorCode::out_of_memory) return false;
    return tl::unexpected(put.error());
  }
  const bool let_in = backing_ == Backing::spill ? cache.locate(key) == Tier::peer
                                                 : cache.stats().admissions_refused == refused_before;
  if (let_in)
    asked_.push_back(key);
  else
    static_cast<void>(cache.erase(key));
  return let_in;
}

Status GreedyConsumer::put_batch(PeerCache& cache, std::uint64_t refused_before) {
  for (std::size_t i = 0; i < batch_; ++i) {
    const auto let_in = put_one(cache, refused_before);
    if (!let_in) return tl::unexpected(let_in.error());
    if (!*let_in) break;
  }
  return {};
}

Result<bool> GreedyConsumer::want_more(PeerCache& cache, const CacheStats& stats) {
  if (stats.promotions != stats.promotions_completed + stats.promotions_failed) return true;
  see_what_came(cache);
  for (const std::uint64_t key : std::exchange(gone_, {})) static_cast<void>(cache.erase(key));
  const PressureConfig& pressure = cache.config().pressure;
  if (!has_room(stats, pressure.hysteresis_bytes + kObjectBytes)) return false;
  if (Status put = put_batch(cache, stats.admissions_refused); !put) return tl::unexpected(put.error());
  return !asked_.empty();
}

Status GreedyConsumer::read_from(PeerCache& cache, DeviceId device) {
  if (read_ != EventId::none) {
    if (backend_.query_event(read_) == EventState::pending) return {};
    backend_.release_event(std::exchange(read_, EventId::none));
  }
  std::vector<std::uint64_t>& there = on_device_[device];
  std::vector<FetchItem> items;
  while (items.size() < kReadObjects && items.size() < there.size()) {
    // Those that are taken stand at the front.
    const std::size_t taken = items.size();
    const std::size_t pick = taken + random_() % (there.size() - taken);
    std::swap(there[taken], there[pick]);
    if (cache.locate(there[taken]) != Tier::peer) {
      std::swap(there[taken], there.back());
      there.pop_back();
      continue;
    }
    FetchItem item;
    item.key = there[taken];
    item.destination = destination_ + taken * kObjectBytes;
    item.capacity_bytes = kObjectBytes;
    items.push_back(item);
  }
  if (items.empty()) return {};
  if (Status fetched = cache.fetch(items, stream_); !fetched) return fetched;
  const auto event = backend_.record_event(stream_);
  if (!event) return tl::unexpected(event.error());
  read_ = *event;
  return {};
}

}  // namespace harvest::cli::bench
