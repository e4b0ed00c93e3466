// SPDX-License-Identifier: Apache-2.0
#include <harvest/peer_cache.hpp>

#include <fmt/format.h>

#include <new>
#include <utility>

#include "base/test_hooks.hpp"
#include "core/cache.hpp"
#include "core/check_config.hpp"

namespace harvest {

std::string_view to_string(CacheEvent::Kind kind) {
  switch (kind) {
    case CacheEvent::Kind::revoked: return "revoked";
    case CacheEvent::Kind::spilled: return "spilled";
    case CacheEvent::Kind::lost: return "lost";
    case CacheEvent::Kind::evicted: return "evicted";
    case CacheEvent::Kind::settled: return "settled";
  }
  return "?";
}

std::string_view to_string(DropReason reason) {
  switch (reason) {
    case DropReason::evicted: return "evicted";
    case DropReason::reclaimed: return "reclaimed";
    case DropReason::pressure: return "pressure";
    case DropReason::replaced: return "replaced";
    case DropReason::erased: return "erased";
    case DropReason::device_lost: return "device_lost";
    case DropReason::copy_failed: return "copy_failed";
  }
  return "?";
}

Lease::Lease(Lease&& other) noexcept
    : address_(std::exchange(other.address_, nullptr)),
      object_(std::exchange(other.object_, nullptr)),
      tier_(std::exchange(other.tier_, Tier::none)),
      outcome_(std::exchange(other.outcome_, ErrorCode::not_found)) {}

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  release();
  address_ = std::exchange(other.address_, nullptr);
  object_ = std::exchange(other.object_, nullptr);
  tier_ = std::exchange(other.tier_, Tier::none);
  outcome_ = std::exchange(other.outcome_, ErrorCode::not_found);
  return *this;
}

void Lease::release() {
  if (object_ == nullptr) return;
  core::unpin(*object_, tier_);
  pause_point(PausePoint::between_unpin_and_end_of_release);
  object_ = nullptr;
  address_ = nullptr;
  tier_ = Tier::none;
  outcome_ = ErrorCode::not_found;
}

std::uint64_t Lease::bytes() const {
  return object_ == nullptr ? 0 : object_->bytes.load(std::memory_order_relaxed);
}

DeviceId Lease::device() const {
  return object_ == nullptr
             ? kHost
             : object_->device[static_cast<std::size_t>(tier_)].load(std::memory_order_relaxed);
}

Generation Lease::generation() const {
  return object_ == nullptr ? 0 : object_->generation.load(std::memory_order_relaxed);
}

Result<std::unique_ptr<PeerCache>> PeerCache::create(Backend& backend, PeerCacheConfig config) {
  const std::uint32_t max_objects = config.max_objects;
  try {
    auto topology = Topology::probe(backend, config.verify_paths, config.path_verdicts);
    if (!topology) return tl::unexpected(topology.error());
    if (Status status = core::check_config(config, *topology); !status) return tl::unexpected(status.error());
    auto cache = std::make_unique<core::Cache>(backend, std::move(config), std::move(*topology));
    if (Status status = cache->start(); !status) return tl::unexpected(status.error());
    return std::unique_ptr<PeerCache>(new PeerCache(std::move(cache)));
  } catch (const std::bad_alloc&) {  // the table is the one large thing that is not the backend's
    return fail(ErrorCode::out_of_memory,
                fmt::format("no memory for a table of {} objects (max_objects)", max_objects));
  }
}

PeerCache::PeerCache(std::unique_ptr<core::Cache> cache) : cache_(std::move(cache)) {}
PeerCache::~PeerCache() = default;

Result<Generation> PeerCache::put(const Key& key, const void* source, std::uint64_t bytes,
                                  const PutOptions& options) {
  return cache_->put(key, source, bytes, options);
}
Status PeerCache::erase(const Key& key) {
  return cache_->erase(key);
}
Status PeerCache::fetch(std::span<FetchItem> items, StreamId stream) {
  return cache_->fetch(items, stream);
}
Status PeerCache::fetch_and_wait(std::span<FetchItem> items, StreamId stream) {
  return cache_->fetch_and_wait(items, stream);
}
Lease PeerCache::acquire(const Key& key, StreamId stream) {
  return cache_->acquire(key, stream);
}
Tier PeerCache::locate(const Key& key) const {
  return cache_->locate(key);
}
std::size_t PeerCache::prefetch(std::span<const Key> keys, Tier tier) {
  return cache_->prefetch(keys, tier);
}
Status PeerCache::forget_stream(StreamId stream) {
  return cache_->forget_stream(stream);
}
Result<ReclaimReport> PeerCache::reclaim(DeviceId device, std::uint64_t bytes, TimeNs deadline_ns) {
  return cache_->reclaim(device, bytes, deadline_ns);
}
Result<ReclaimId> PeerCache::begin_reclaim(DeviceId device, std::uint64_t bytes, TimeNs deadline_ns) {
  return cache_->begin_reclaim(device, bytes, deadline_ns);
}
Result<ReclaimReport> PeerCache::reclaim_status(ReclaimId id) const {
  return cache_->reclaim_status(id);
}
TimeNs PeerCache::poll() {
  return cache_->poll();
}
Status PeerCache::settle(TimeNs deadline_ns) {
  return cache_->settle(deadline_ns);
}
Backend& PeerCache::backend() const {
  return cache_->backend();
}
const Topology& PeerCache::topology() const {
  return cache_->topology();
}
const PeerCacheConfig& PeerCache::config() const {
  return cache_->config();
}
CacheStats PeerCache::stats() const {
  return cache_->stats();
}
Status PeerCache::audit() const {
  return cache_->audit();
}

}  // namespace harvest
