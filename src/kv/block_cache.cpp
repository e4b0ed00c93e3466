// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/assert.hpp"
#include "kv/impl.hpp"

/// How a cache of blocks begins and ends, what it is told, and its face.
namespace harvest::kv {
namespace {

constexpr std::uint64_t kMostPieceBytes = 16ULL << 20;
constexpr std::uint64_t kLayerOfBlockBytes = 1ULL << 20;
constexpr std::uint32_t kMostBlockTokens = 512;  // of the default
constexpr std::uint32_t kMostStoreBuffers = 64;
constexpr std::uint64_t kMostBlockBytes = 16ULL << 30;
constexpr std::uint64_t kBufferAlignment = 256;

constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

Status outside(std::string_view field, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is {}, the limits are {} and {}", field, value, least, most));
}

Status check_config(const PeerCache& cache, const BlockCacheConfig& config) {
  if (Status status = config.layout.validate(); !status) return status;
  const std::uint64_t most_pages = std::min(kMostBlockBytes / config.layout.page_bytes(),
                                            std::uint64_t{UINT32_MAX / config.layout.page_tokens});
  if (config.block_pages > most_pages) return outside("block_pages", config.block_pages, 0, most_pages);
  if (config.backing == Backing::external_host || config.backing > Backing::lossy)
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("backing is {}; blocks are managed_host, spill or lossy", to_string(config.backing)));
  if (!(config.recompute_ns_per_token >= 0 && config.recompute_ns_per_token <= 1e15))
    return fail(ErrorCode::invalid_argument,
                fmt::format("recompute_ns_per_token is {}, the limits are 0 and 1e15",
                            config.recompute_ns_per_token));
  if (config.group_layers > config.layout.layers.size())
    return outside("group_layers", config.group_layers, 0, config.layout.layers.size());
  if (config.ahead_ns < 0)
    return fail(ErrorCode::invalid_argument, fmt::format("ahead_ns is {}, at least 0", config.ahead_ns));
  if (config.store_buffers < 1 || config.store_buffers > kMostStoreBuffers)
    return outside("store_buffers", config.store_buffers, 1, kMostStoreBuffers);
  if (cache.config().local_budget_bytes != 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("the PeerCache has a local budget of {} bytes, which would hold second copies of "
                            "what the engine's pages hold; it must be 0",
                            cache.config().local_budget_bytes));
  return {};
}

/// The fastest way to the consumer that there is.
const LinkInfo* fastest_link(const PeerCache& cache) {
  const LinkInfo* fastest = nullptr;
  for (const PoolStats& pool : cache.stats().pools) {
    const Path* const path = cache.topology().path(pool.device, cache.config().consumer);
    if (path != nullptr && pool.device != cache.config().consumer &&
        (fastest == nullptr || path->link.bandwidth_bytes_per_s > fastest->bandwidth_bytes_per_s))
      fastest = &path->link;
  }
  return fastest;
}

/// A piece should take at least as long on the wire as it takes to get it under way.
std::uint32_t default_group_layers(const PeerCache& cache, const KvLayout& layout,
                                   std::uint32_t block_pages) {
  const LinkInfo* const link = fastest_link(cache);
  const auto layers = static_cast<std::uint32_t>(layout.layers.size());
  if (link == nullptr) return layers;
  const double least =
      static_cast<double>(link->issue_ns + link->latency_ns) * link->bandwidth_bytes_per_s / 1e9;
  const double layer = static_cast<double>(block_pages * layout.page_bytes()) / layers;
  return static_cast<std::uint32_t>(std::clamp(least / layer + 1, 1.0, static_cast<double>(layers)));
}

}  // namespace

std::uint32_t default_block_tokens(std::span<const KvLayer> layers, std::uint32_t page_tokens) {
  HARVEST_ASSERT(page_tokens > 0, "a page has at least one token");
  std::uint64_t most = 1;
  for (const KvLayer& layer : layers) most = std::max(most, layer.bytes_per_token());
  const auto wanted =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(kLayerOfBlockBytes / most, kMostBlockTokens));
  return std::max(wanted / page_tokens, 1U) * page_tokens;
}

std::string_view to_string(BlockEvent::Kind kind) {
  switch (kind) {
    case BlockEvent::Kind::stored: return "stored";
    case BlockEvent::Kind::moved: return "moved";
    case BlockEvent::Kind::removed: return "removed";
  }
  return "?";
}

BlockCache::Impl::Impl(PeerCache& cache, BlockCacheConfig config, BlockShape shape)
    : cache_(cache),
      backend_(cache.backend()),
      config_(std::move(config)),
      shape_(std::move(shape)),
      block_tokens_(static_cast<std::uint64_t>(config_.block_pages) * config_.layout.page_tokens),
      windows_(std::ranges::any_of(config_.layout.layers,
                                   [](const KvLayer& layer) { return layer.window_tokens != 0; })),
      buffer_bytes_(round_up(shape_.bytes(), kBufferAlignment)),
      lanes_(backend_) {}

Result<std::unique_ptr<BlockCache::Impl>> BlockCache::Impl::create(PeerCache& cache,
                                                                   BlockCacheConfig config) {
  if (Status status = check_config(cache, config); !status) return tl::unexpected(status.error());
  if (config.block_pages == 0)
    config.block_pages =
        default_block_tokens(config.layout.layers, config.layout.page_tokens) / config.layout.page_tokens;
  if (config.group_layers == 0)
    config.group_layers = default_group_layers(cache, config.layout, config.block_pages);
  BlockShape shape(config.layout, config.block_pages, config.group_layers, kMostPieceBytes);
  std::unique_ptr<Impl> impl(new Impl(cache, std::move(config), std::move(shape)));
  if (Status status = impl->begin_life(); !status) return tl::unexpected(status.error());
  return impl;
}

Status BlockCache::Impl::begin_life() {
  know_wires();
  direct_ = copies_directly();
  const DeviceId consumer = cache_.config().consumer;
  MutexLock lock(mutex_);
  if (Status status = lanes_.open(consumer, direct_ ? 0 : shape_.largest_piece_bytes()); !status)
    return status;
  buffer_used_.assign(config_.store_buffers, false);
  for (std::uint32_t i = 0; i < config_.store_buffers; ++i) {
    const auto stream = backend_.create_stream(consumer);
    if (!stream) return tl::unexpected(stream.error());
    store_streams_.push_back(*stream);
  }
  const auto fetch_stream = backend_.create_stream(consumer);
  if (!fetch_stream) return tl::unexpected(fetch_stream.error());
  fetch_stream_ = *fetch_stream;
  const std::uint64_t granularity = cache_.topology().device(consumer)->segment_granularity_bytes;
  const auto mapped =
      backend_.map_segment(consumer, round_up(config_.store_buffers * buffer_bytes_, granularity), {});
  if (!mapped) return tl::unexpected(mapped.error());
  store_memory_ = *mapped;
  return {};
}

/// Of several peers the slowest counts.
void BlockCache::Impl::know_wires() {
  const Topology& topology = cache_.topology();
  const DeviceId consumer = cache_.config().consumer;
  const auto know = [&](Wire wire, const LinkInfo& link) {
    WireFigures& figures = wires_[static_cast<std::size_t>(wire)];
    figures.ns_per_byte = std::max(figures.ns_per_byte, 1e9 / link.bandwidth_bytes_per_s);
    figures.start_ns = std::max(figures.start_ns, link.issue_ns + link.latency_ns);
  };
  const Path* const from_host = topology.path(kHost, consumer);
  if (from_host != nullptr) know(Wire::host, from_host->link);
  for (const PoolStats& pool : cache_.stats().pools) {
    const Path* const path = pool.tier == Tier::peer ? topology.path(pool.device, consumer) : nullptr;
    if (path == nullptr) continue;
    know(Wire::peers, path->link);
    if (path->link.kind == LinkKind::pcie && from_host != nullptr && from_host->link.kind == LinkKind::pcie)
      wires_apart_ = false;
  }
}

/// Runs of pages that are so large that giving one costs less than carrying it need no way through a buffer.
bool BlockCache::Impl::copies_directly() const {
  const LinkInfo* const link = fastest_link(cache_);
  if (link == nullptr) return false;
  const double least = static_cast<double>(link->issue_batched_ns) * link->bandwidth_bytes_per_s / 1e9;
  return static_cast<double>(shape_.mean_run_bytes()) >= least;
}

BlockCache::Impl::~Impl() {
  std::vector<Key> keys;
  {
    MutexLock lock(mutex_);
    HARVEST_ASSERT(loads_.empty(), "a cache of blocks ends before its loads");
    lanes_.close();
    for (const StreamId stream : store_streams_) lanes_.wait(stream);
    for (Item& item : items_) {
      if (item.event != EventId::none) backend_.release_event(item.event);
      if (item.state >= Item::State::putting) keys.push_back(item.key);
    }
    items_.clear();
    for (const auto& [key, tier] : stored_) keys.push_back(key);
    stored_.clear();
  }
  for (const Key& key : keys) static_cast<void>(cache_.erase(key));
  const auto end = [&](StreamId stream) {
    static_cast<void>(cache_.forget_stream(stream));
    static_cast<void>(backend_.destroy_stream(stream));
  };
  for (const StreamId stream : store_streams_) end(stream);
  if (fetch_stream_ != StreamId::none) end(fetch_stream_);
  {
    MutexLock lock(mutex_);
    for (const Wire wire : {Wire::peers, Wire::host})
      if (lanes_.lease_stream(wire) != StreamId::none)
        static_cast<void>(cache_.forget_stream(lanes_.lease_stream(wire)));
  }
  if (store_memory_ != nullptr) static_cast<void>(backend_.unmap_segment(store_memory_));
}

// --- what is asked for -------------------------------------------------------------------------------------

Status BlockCache::Impl::check_stream(StreamId stream) const {
  const auto device = backend_.stream_device(stream);
  if (!device)
    return fail(ErrorCode::invalid_argument,
                fmt::format("there is no stream {}", static_cast<std::uint32_t>(stream)));
  if (*device != cache_.config().consumer)
    return fail(ErrorCode::invalid_argument,
                fmt::format("stream {} is of device {}, the consumer is {}",
                            static_cast<std::uint32_t>(stream), *device, cache_.config().consumer));
  if (backend_.is_capturing(stream))
    return fail(ErrorCode::not_supported,
                fmt::format("stream {} is being captured into a graph", static_cast<std::uint32_t>(stream)));
  return {};
}

Status BlockCache::Impl::check_pages(std::size_t blocks, std::span<const std::uint32_t> pages) const {
  if (pages.size() != blocks * shape_.pages())
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} pages for {} blocks of {}; it must be {}", pages.size(), blocks,
                            shape_.pages(), blocks * shape_.pages()));
  std::vector<std::uint32_t> sorted(pages.begin(), pages.end());
  std::ranges::sort(sorted);
  if (!sorted.empty() && sorted.back() >= config_.layout.pages)
    return fail(ErrorCode::invalid_argument,
                fmt::format("page {}; there are pages 0 to {}", sorted.back(), config_.layout.pages - 1));
  if (const auto twice = std::ranges::adjacent_find(sorted); twice != sorted.end())
    return fail(ErrorCode::invalid_argument, fmt::format("page {} is named twice", *twice));
  return {};
}

Status BlockCache::Impl::check(std::span<const Key> keys, std::span<const std::uint32_t> pages,
                               StreamId stream) const {
  if (Status status = check_stream(stream); !status) return status;
  return check_pages(keys.size(), pages);
}

// --- the face ----------------------------------------------------------------------------------------------

BlockCache::BlockCache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
BlockCache::~BlockCache() = default;

Result<std::unique_ptr<BlockCache>> BlockCache::create(PeerCache& cache, BlockCacheConfig config) {
  auto impl = Impl::create(cache, std::move(config));
  if (!impl) return tl::unexpected(impl.error());
  return std::unique_ptr<BlockCache>(new BlockCache(std::move(*impl)));
}

std::uint32_t BlockCache::block_tokens() const {
  return impl_->config().block_pages * impl_->config().layout.page_tokens;
}
std::uint64_t BlockCache::block_bytes() const {
  return impl_->shape().bytes();
}
Key BlockCache::object_key(const Key& key) const {
  return impl_->object_key(key);
}
PrefixMatch BlockCache::lookup(std::span<const Key> keys) {
  return impl_->lookup(keys);
}
Result<BlockLoad> BlockCache::load(std::span<const Key> keys, std::span<const std::uint32_t> pages,
                                   StreamId stream) {
  const auto id = impl_->load(keys, pages, stream);
  if (!id) return tl::unexpected(id.error());
  return BlockLoad(this, *id);
}
Result<std::size_t> BlockCache::store(std::span<const Key> keys, std::span<const std::uint32_t> pages,
                                      StreamId stream, const std::optional<Key>& parent) {
  return impl_->store(keys, pages, stream, parent);
}
Status BlockCache::order_behind_stores(std::span<const std::uint32_t> pages, StreamId stream) {
  return impl_->order_behind_stores(pages, stream);
}

std::size_t BlockCache::storing(std::span<const Key> keys) const {
  return impl_->storing(keys);
}

Status BlockCache::erase(const Key& key) {
  return impl_->erase(key);
}
Status BlockCache::note_local(std::span<const Key> keys, std::span<const std::uint32_t> pages) {
  return impl_->note_local(keys, pages);
}
void BlockCache::forget_local(std::span<const Key> keys) {
  impl_->forget_local(keys);
}
std::vector<std::uint32_t> BlockCache::local_pages(const Key& key) const {
  return impl_->local_pages(key);
}
Tier BlockCache::locate(const Key& key) const {
  return impl_->locate(key);
}
void BlockCache::poll() {
  impl_->poll();
}
Status BlockCache::settle(TimeNs deadline_ns) {
  return impl_->settle(deadline_ns);
}
void BlockCache::hear(const CacheEvent& event) {
  impl_->hear(event);
}
const BlockCacheConfig& BlockCache::config() const {
  return impl_->config();
}
BlockCacheStats BlockCache::stats() const {
  return impl_->stats();
}

BlockLoad::BlockLoad(BlockLoad&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)), id_(other.id_), lost_(std::move(other.lost_)) {}
BlockLoad& BlockLoad::operator=(BlockLoad&& other) noexcept {
  if (this == &other) return *this;
  if (cache_ != nullptr) cache_->impl_->forget(id_);
  cache_ = std::exchange(other.cache_, nullptr);
  id_ = other.id_;
  lost_ = std::move(other.lost_);
  return *this;
}
BlockLoad::~BlockLoad() {
  if (cache_ != nullptr) cache_->impl_->forget(id_);
}
Status BlockLoad::order_behind(std::uint32_t layer, StreamId stream) {
  return cache_ == nullptr ? Status() : cache_->impl_->order_behind(id_, layer, stream);
}
bool BlockLoad::done() {
  return cache_ == nullptr || cache_->impl_->done(id_);
}
std::span<const std::uint32_t> BlockLoad::finish() {
  if (cache_ != nullptr) lost_ = cache_->impl_->finish(id_);
  return lost_;
}
Status BlockLoad::cancel(StreamId stream) {
  return cache_ == nullptr ? Status() : cache_->impl_->cancel(id_, stream);
}
std::array<std::uint64_t, kTiers> BlockLoad::bytes() const {
  return cache_ == nullptr ? std::array<std::uint64_t, kTiers>() : cache_->impl_->bytes_of(id_);
}

}  // namespace harvest::kv
