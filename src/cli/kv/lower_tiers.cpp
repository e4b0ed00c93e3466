// SPDX-License-Identifier: Apache-2.0
#include "cli/kv/lower_tiers.hpp"

#include <algorithm>

#include "base/key_hash.hpp"

namespace harvest::cli {
namespace {

/// While something is under way: about as often as a server's own thread would.
constexpr TimeNs kPollNs = 5'000'000;
/// Of memory through which blocks leave their pages.
constexpr std::uint64_t kStoreBytes = 256ULL << 20;
/// Of the engines whose fragments naive copies carry: vLLM's pages.
constexpr std::uint64_t kNaivePageTokens = 16;
/// Makes other keys of it than of prefixes.
constexpr std::uint64_t kParkedSpace = 1;

/// What the bytes of a block are known by: never 0, never that of a fill.
std::uint64_t tag_of(const Key& key) {
  return KeyHash{}(key) >> 16 | 1ULL << 48;
}

PeerCacheConfig cache_config(const ServeRun& run, bool with_peers) {
  PeerCacheConfig config;
  config.verify_paths = false;  // phantom bytes carry no pattern
  config.peers = run.peers;
  config.peer_budget_bytes = with_peers ? run.peer_bytes : 0;
  config.host_budget_bytes = run.host_bytes;
  config.background_bytes = std::max(config.background_bytes, 4 * run.block_bytes());
  return config;
}

Result<kv::BlockCacheConfig> block_config(const ServeRun& run, bool with_peers, std::uint32_t pages,
                                          std::byte* memory) {
  const std::uint32_t layers = run.rank.model().layers;
  const std::vector<kv::KvLayer> kept(layers, run.rank.layer());
  const kv::KvTensor tensor{memory, pages * run.block_bytes()};
  auto layout =
      kv::KvLayout::describe(kv::KvArrangement::page_first, kept, run.block_tokens, pages, {&tensor, 1});
  if (!layout) return tl::unexpected(layout.error());
  kv::BlockCacheConfig config;
  config.layout = std::move(*layout);
  config.block_pages = 1;
  config.group_layers = (layers + run.layer_groups - 1) / run.layer_groups;
  config.store_buffers =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kStoreBytes / run.block_bytes(), 4, 64));
  // A block in host memory may have copies on peers, so that these add speed; one that is on peers alone adds
  // to what is kept.
  if (with_peers && run.peer_bytes * run.peers.size() > run.host_bytes) config.backing = Backing::lossy;
  PassWork chunk;
  chunk.add_chunk(run.chunk_tokens, run.chunk_tokens);
  config.recompute_ns_per_token = static_cast<double>(run.rank.pass_ns(chunk)) / run.chunk_tokens;
  return config;
}

}  // namespace

Result<std::unique_ptr<LowerTiers>> LowerTiers::create(SimulatedBackend& backend, const ServeRun& run,
                                                       ServeStrategy strategy, std::uint32_t pages,
                                                       StreamId compute) {
  std::unique_ptr<LowerTiers> tiers(new LowerTiers(backend));
  const bool with_peers = strategy == ServeStrategy::peer_host || strategy == ServeStrategy::harvest;
  tiers->compute_ = compute;
  tiers->block_bytes_ = run.block_bytes();
  tiers->naive_ = strategy == ServeStrategy::peer_host;
  tiers->owners_ =
      std::make_unique<Owners>(backend, run.peers, with_peers ? run.activity : OwnerActivity::none, run.seed);
  const std::uint64_t unit = backend.devices()[0].segment_granularity_bytes;
  const auto memory = backend.map_segment(0, (pages * run.block_bytes() + unit - 1) / unit * unit, {});
  if (!memory) return tl::unexpected(memory.error());
  tiers->pages_ = *memory;
  auto config = cache_config(run, with_peers);
  config.on_event = [hearer = tiers.get()](const CacheEvent& event) {
    if (hearer->blocks_) hearer->blocks_->hear(event);
    if (hearer->parked_) hearer->parked_->hear(event);
  };
  auto cache = PeerCache::create(backend, std::move(config));
  if (!cache) return tl::unexpected(cache.error());
  tiers->cache_ = std::move(*cache);
  auto block = block_config(run, with_peers, pages, *memory);
  if (!block) return tl::unexpected(block.error());
  auto blocks = kv::BlockCache::create(*tiers->cache_, std::move(*block));
  if (!blocks) return tl::unexpected(blocks.error());
  tiers->blocks_ = std::move(*blocks);
  if (run.takes_turns(strategy)) {
    kv::BlockCacheConfig parking = tiers->blocks_->config();
    parking.key_space ^= kParkedSpace;
    parking.backing = Backing::spill;
    auto parked = kv::BlockCache::create(*tiers->cache_, std::move(parking));
    if (!parked) return tl::unexpected(parked.error());
    tiers->parked_ = std::move(*parked);
  }

  tiers->fragment_bytes_ = kNaivePageTokens * run.rank.layer().part_bytes_per_token();
  for (const auto& [tier, device] : {std::pair{Tier::host, kHost}, {Tier::peer, run.peers.front()}}) {
    const MachineLink* const link = run.machine.find_link(device, 0);
    if (link != nullptr)
      tiers->fragment_ns_[static_cast<std::size_t>(tier)] = link->info.issue_ns + link->info.latency_ns;
  }
  return tiers;
}

LowerTiers::~LowerTiers() {
  parked_.reset();
  blocks_.reset();
  cache_.reset();
  if (pages_ != nullptr) static_cast<void>(backend_.unmap_segment(pages_));
}

TimeNs LowerTiers::issue_ns(const kv::PrefixMatch& match) const {
  TimeNs ns = 0;
  if (naive_)
    for (std::size_t tier = 0; tier < kTiers; ++tier)
      ns += static_cast<TimeNs>(match.bytes[tier] / fragment_bytes_) * fragment_ns_[tier];
  return ns;
}

Result<kv::BlockLoad> LowerTiers::load(kv::BlockCache& cache, std::span<const Key> keys,
                                       std::span<const std::uint32_t> pages, const kv::PrefixMatch& match) {
  if (naive_)
    if (Status issued = backend_.submit_kernel(compute_, issue_ns(match)); !issued)
      return tl::unexpected(issued.error());
  return cache.load(keys, pages, compute_);
}

Status LowerTiers::computed(std::span<const Key> keys, std::span<const std::uint32_t> pages,
                            const Key& parent) {
  for (std::size_t i = 0; i < keys.size(); ++i) stamp(pages[i], keys[i]);
  const auto stored = blocks_->store(keys, pages, compute_, parent);
  return stored ? Status{} : tl::unexpected(stored.error());
}

Status LowerTiers::park(std::span<const Key> keys, std::span<const std::uint32_t> pages) {
  const auto stored = parked_->store(keys, pages, compute_);
  return stored ? Status{} : tl::unexpected(stored.error());
}

void LowerTiers::stamp(std::uint32_t page, const Key& content) {
  backend_.stamp(address(page), block_bytes_, tag_of(content));
}

bool LowerTiers::holds(std::uint32_t page, const Key& key) const {
  return backend_.stamp_of(address(page), block_bytes_) == tag_of(key);
}

TimeNs LowerTiers::poll() {
  const TimeNs now = backend_.now_ns();
  if (owners_->next_ns() <= now) owners_->act(cache_.get());
  blocks_->poll();
  if (parked_) parked_->poll();
  const TimeNs due = cache_->poll();
  const TimeNs soon = backend_.now_ns() + kPollNs;
  return std::max(soon, std::min(due, owners_->next_ns()));
}

}  // namespace harvest::cli
