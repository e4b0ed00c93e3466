// SPDX-License-Identifier: Apache-2.0
#include "core/cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/assert.hpp"
#include "base/log.hpp"
#include "core/check_config.hpp"

/// Beginning and end of a cache, and small things that all parts use.
namespace harvest::core {
namespace {

constexpr std::uint64_t kSegmentsInSmallPool = 8;
constexpr TimeNs kLastPatienceNs = 1'000'000'000;
constexpr TimeNs kLastPauseNs = 100'000;

/// Segment sizes for a pool: what the configuration says, but a small budget is cut into several.
memory::PoolConfig pool_config(DeviceId device, std::uint64_t budget_bytes, std::uint64_t min_bytes,
                               std::uint64_t max_bytes, std::uint64_t granularity_bytes) {
  const std::uint64_t share = std::max(
      granularity_bytes, budget_bytes / kSegmentsInSmallPool / granularity_bytes * granularity_bytes);
  memory::PoolConfig config;
  config.device = device;
  config.budget_bytes = budget_bytes;
  config.segment_max_bytes = std::min(max_bytes, share);
  config.segment_min_bytes = std::min(min_bytes, config.segment_max_bytes);
  return config;
}

}  // namespace

Cache::Cache(Backend& backend, PeerCacheConfig config, Topology topology)
    : backend_(backend),
      config_(std::move(config)),
      topology_(std::move(topology)),
      table_(config_.max_objects) {
  trouble_ = std::make_unique<std::atomic<std::uint32_t>[]>(topology_.devices().size());
  for (Reader& reader : readers_) {
    MutexLock lock(reader.mutex);
    reader.items.reserve(Reader::kBatch);
    reader.copies.reserve(Reader::kBatch);
    reader.watches.reserve(Reader::kWatches);
  }
}

Status Cache::start() {
  MutexLock lock(control_);
  const auto stream = backend_.create_stream(config_.consumer);
  if (!stream) return tl::unexpected(stream.error());
  consumer_background_ = *stream;

  const auto granularity = [&](DeviceId id) {
    return std::max<std::uint64_t>(1, topology_.device(id)->segment_granularity_bytes);
  };
  if (config_.local_budget_bytes != 0) {
    local_ = make_pool(pool_config(config_.consumer, config_.local_budget_bytes, config_.segment_min_bytes,
                                   config_.segment_max_bytes, granularity(config_.consumer)));
    has_tier_[static_cast<std::size_t>(Tier::local)] = true;
  }
  if (config_.host_budget_bytes != 0) {
    host_ = make_pool(pool_config(kHost, config_.host_budget_bytes, config_.host_chunk_bytes,
                                  config_.host_chunk_bytes, granularity(kHost)));
    has_tier_[static_cast<std::size_t>(Tier::host)] = true;
  }
  if (Status status = make_peers(); !status) return status;
  measure_paths();
  if (Status status = make_policies(); !status) return status;
  sample_peers();
  return {};
}

std::unique_ptr<memory::Pool> Cache::make_pool(memory::PoolConfig config) {
  config.wipe = [this, device = config.device](const memory::Slot& slot, std::vector<EventId>& events)
                    HARVEST_REQUIRES(control_) { return wipe(slot, device, events); };
  return std::make_unique<memory::Pool>(backend_, std::move(config));
}

Status Cache::make_peers() {
  std::vector<DeviceId> ids = config_.peers;
  if (ids.empty()) {
    const std::uint64_t bytes = config_.segment_max_bytes;
    const double from_host = topology_.expected_copy_ns(kHost, config_.consumer, bytes);
    for (const PeerRank& rank : topology_.rank_peers(config_.consumer, bytes))
      if (rank.fetch_ns < from_host && leaves_room(config_.pressure, *topology_.device(rank.device)))
        ids.push_back(rank.device);
  }
  for (const DeviceId id : ids) {
    const DeviceInfo* device = topology_.device(id);
    const auto stream = backend_.create_stream(id);
    if (!stream) return tl::unexpected(stream.error());
    memory::PoolConfig pool =
        pool_config(id, std::min(config_.peer_budget_bytes, device->total_bytes), config_.segment_min_bytes,
                    config_.segment_max_bytes, std::max<std::uint64_t>(1, device->segment_granularity_bytes));
    pool.readers = {config_.consumer};  // and the peers that its bytes may move to
    for (const DeviceId other : ids)
      if (topology_.usable_as_peer(id, other)) pool.readers.push_back(other);
    Peer peer;
    peer.device = id;
    peer.background = *stream;
    peer.pool = make_pool(std::move(pool));
    peers_.push_back(std::move(peer));
  }
  has_tier_[static_cast<std::size_t>(Tier::peer)] = !peers_.empty() && config_.peer_budget_bytes != 0;
  return {};
}

/// What the read path needs of the topology, by device id + 1 (the host first).
void Cache::measure_paths() {
  for (DeviceId device = kHost; topology_.device(device) != nullptr; ++device) {
    const Path* path = topology_.path(device, config_.consumer);
    const bool known = path != nullptr && path->link.bandwidth_bytes_per_s > 0;
    ways_in_.push_back(
        {known ? 1e9 / path->link.bandwidth_bytes_per_s : std::numeric_limits<double>::infinity(),
         known && path->link.kind != LinkKind::pcie});
  }
}

Status Cache::make_policies() {
  const auto name_or = [](const std::string& name, std::string_view otherwise) {
    return name.empty() ? otherwise : std::string_view(name);
  };
  const std::array<const TierPolicy*, kTiers> chosen{&config_.local_policy, &config_.peer_policy,
                                                     &config_.host_policy};
  // Where room is scarce, only what is read again is worth a write. Behind that filter everything was read
  // twice, and LRU-2 tells such objects apart best; docs/benchmarks/replay.md compares.
  constexpr std::array<std::string_view, kTiers> kAdmission{"second_hit", "second_hit", "always"};
  const std::array<std::string_view, kTiers> eviction_default{eviction_policy_names().front(), "lru_2",
                                                              eviction_policy_names().front()};
  const std::array<std::uint64_t, kTiers> capacity{std::max<std::uint64_t>(1, config_.local_budget_bytes), 1,
                                                   std::max<std::uint64_t>(1, config_.host_budget_bytes)};
  for (std::size_t t = 0; t < kTiers; ++t) {
    auto eviction = make_eviction_policy(name_or(chosen[t]->eviction, eviction_default[t]), capacity[t]);
    if (!eviction) return tl::unexpected(eviction.error());
    auto admission = make_admission_policy(name_or(chosen[t]->admission, kAdmission[t]), capacity[t]);
    if (!admission) return tl::unexpected(admission.error());
    eviction_[t] = std::move(*eviction);
    admission_[t] = std::move(*admission);
  }
  for (const Tier tier : {Tier::peer, Tier::host})
    if (has_tier(tier)) shadow(tier).emplace(capacity[static_cast<std::size_t>(tier)]);
  auto placement = make_placement_policy(name_or(config_.placement, placement_policy_names().front()),
                                         config_.placement_weights);
  if (!placement) return tl::unexpected(placement.error());
  placement_ = std::move(*placement);
  return {};
}

Cache::~Cache() {
  MutexLock lock(control_);
  drain_everything();
  for (Reader& reader : readers_) {
    MutexLock reader_lock(reader.mutex);
    for (const Reader::Watch& watch : reader.watches) {
      backend_.wait_event(watch.event, kNever);
      backend_.release_event(watch.event);
    }
    if (reader.side != StreamId::none) static_cast<void>(backend_.destroy_stream(reader.side));
  }
  for (Peer& peer : peers_) static_cast<void>(backend_.destroy_stream(peer.background));
  if (consumer_background_ != StreamId::none)
    static_cast<void>(backend_.destroy_stream(consumer_background_));
}

void Cache::drain_everything() {
  const auto first_leased = [&]() HARVEST_REQUIRES(control_) {
    return std::find_if(leaving_.begin(), leaving_.end(),
                        [](const CopyRef& ref) { return pins(*ref.object, ref.tier) != 0; });
  };
  wishes_.clear();
  while (!fills_.empty()) {
    backend_.wait_event(fills_.front().done, kNever);
    finish_fills();
  }
  table_.for_each([&](Object& object) HARVEST_REQUIRES(control_) {
    if (object.linked) retire(object, DropReason::erased);
  });
  finish_all_leaving();
  // A stream that read from here may have no event to give yet.
  const TimeNs give_up_ns = backend_.now_ns() + kLastPatienceNs;
  while (!leaving_.empty() && first_leased() == leaving_.end() && backend_.now_ns() < give_up_ns) {
    backend_.sleep_until(backend_.now_ns() + kLastPauseNs);
    finish_all_leaving();
  }
  const auto held = first_leased();
  HARVEST_ASSERT(held == leaving_.end(),
                 fmt::format("a cache may only end when no lease is held, and key {:016x}:{:016x} is leased",
                             held->object->key.high, held->object->key.low));
  for (const CopyRef& ref : leaving_) {
    for (const StreamId stream : users_of(*ref.object))
      HARVEST_ASSERT(!backend_.is_capturing(stream),
                     "a cache may only end when no stream that read from it is being captured");
    log().error("key {:016x}:{:016x} stays in memory: the work that reads it cannot be waited for",
                ref.object->key.high, ref.object->key.low);
  }
  if (local_) drain(*local_);
  for (Peer& peer : peers_) drain(*peer.pool);
  if (host_) drain(*host_);
  for (const Settling& settling : settling_)
    for (const EventId event : settling.events) {
      backend_.wait_event(event, kNever);
      backend_.release_event(event);
    }
}

void Cache::drain(memory::Pool& pool) {
  TimeNs patience_ns = kLastPatienceNs;
  while (pool.draining_bytes() != 0) {
    if (const EventId event = pool.oldest_event(); event != EventId::none) {
      backend_.wait_event(event, kNever);
    } else if (patience_ns > 0) {  // only wipes are missing, which the driver refuses
      patience_ns -= kLastPauseNs;
      backend_.sleep_until(backend_.now_ns() + kLastPauseNs);
    } else {
      log().error("{} bytes of device {} that tenants used go back and could not be wiped",
                  pool.draining_bytes(), pool.config().device);
      return;
    }
    pool.collect();
  }
}

memory::Pool* Cache::pool_of(Tier tier, DeviceId device) const {
  if (tier == Tier::local) return local_.get();
  if (tier == Tier::host) return host_.get();
  for (const Peer& peer : peers_)
    if (peer.device == device) return peer.pool.get();
  return nullptr;
}

Peer* Cache::find_peer(DeviceId device) {
  for (Peer& peer : peers_)
    if (peer.device == device) return &peer;
  return nullptr;
}

StreamId Cache::stream_of(DeviceId device) {
  const Peer* peer = find_peer(device);
  return peer == nullptr ? consumer_background_ : peer->background;
}

/// Copies to or from a peer run on the peer's stream, so that peers do not wait for each other.
StreamId Cache::background_stream(Tier from, Tier to, DeviceId from_device, DeviceId to_device) {
  if (to == Tier::peer) return stream_of(to_device);
  if (from == Tier::peer) return stream_of(from_device);
  return consumer_background_;
}

bool Cache::in_fenced_segment(const Copy& copy, Tier tier) const {
  return copy.has_slot && pool_of(tier, copy.device)->segments()[copy.slot.segment].fenced();
}

ObjectFacts Cache::facts_of(const Object& object, Tier tier) const {
  const std::uint64_t bytes = object.bytes.load(std::memory_order_relaxed);
  // What a miss in this tier costs: the way from the next one, or computing it again.
  const double from_host = topology_.expected_copy_ns(kHost, config_.consumer, bytes);
  const double cost = tier == Tier::host ? std::max(object.recompute_cost_ns, from_host) : from_host;
  return {bytes, cost, object.parent};
}

}  // namespace harvest::core
