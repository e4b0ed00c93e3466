// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/fetch_world.hpp"

#include <fmt/format.h>

#include <numeric>

#include "cli/bench/pattern.hpp"
#include "cli/bench/scatter.hpp"
#include "cli/output.hpp"

namespace harvest::cli::bench {
namespace {

PeerCacheConfig config_of(const FetchCase& what, DeviceId consumer, std::optional<DeviceId> peer) {
  PeerCacheConfig config;
  config.consumer = consumer;
  if (peer) config.peers = {*peer};
  config.verify_paths = false;  // all bytes are compared anyway
  config.host_budget_bytes = 0;
  config.max_objects = static_cast<std::uint32_t>(what.objects) + 16;
  config.balance_paths = false;
  // Slots waste up to a sixteenth, and the last segment is not full.
  config.peer_budget_bytes = what.tier == Tier::peer ? what.bytes() / 8 * 9 + (256ULL << 20) : 0;
  config.pressure.growth_bytes_per_s = 1ULL << 42;
  config.pressure.reserve_bytes = 256ULL << 20;
  config.pressure.hysteresis_bytes = 64ULL << 20;
  return config;
}

}  // namespace

Result<std::unique_ptr<FetchWorld>> FetchWorld::create(Backend& backend, DeviceId consumer,
                                                       std::optional<DeviceId> peer, const FetchCase& what) {
  auto gate = Gate::create(backend, consumer);
  if (!gate) return tl::unexpected(gate.error());
  auto stream = Stream::create(backend, consumer);
  if (!stream) return tl::unexpected(stream.error());
  std::unique_ptr<FetchWorld> world(
      new FetchWorld(backend, consumer, what, std::move(*gate), std::move(*stream)));
  if (Status mapped = world->map(); !mapped) return tl::unexpected(mapped.error());
  if (Status stored = world->store(peer); !stored) return tl::unexpected(stored.error());
  return world;
}

Status FetchWorld::map() {
  for (Segment* on_host : {&pool_, &back_}) {
    auto segment = Segment::map(backend_, kHost, case_.bytes(), {&consumer_, 1});
    if (!segment) return tl::unexpected(segment.error());
    *on_host = std::move(*segment);
  }
  auto destination = Segment::map(backend_, consumer_, case_.bytes());
  if (!destination) return tl::unexpected(destination.error());
  destination_ = std::move(*destination);

  order_.resize(case_.objects);
  std::iota(order_.begin(), order_.end(), 0);
  if (case_.scattered) order_ = scattered_order(case_.objects);
  items_.resize(case_.objects);
  for (std::uint64_t i = 0; i < case_.objects; ++i) {
    items_[i].key = order_[i];
    items_[i].destination = destination_.data() + i * case_.object_bytes;
    items_[i].capacity_bytes = case_.object_bytes;
  }
  return {};
}

Status FetchWorld::store(std::optional<DeviceId> peer) {
  auto cache = PeerCache::create(backend_, config_of(case_, consumer_, peer));
  if (!cache) return tl::unexpected(cache.error());
  cache_ = std::move(*cache);
  PutOptions options;
  // The two kinds that are in one tier alone, where nothing moves them.
  options.backing = case_.tier == Tier::peer ? Backing::lossy : Backing::external_host;
  for (std::uint64_t object = 0; object < case_.objects; ++object) {
    std::byte* bytes = pool_.data() + object * case_.object_bytes;
    write_pattern(bytes, case_.object_bytes, object + 1);
    if (const auto put = cache_->put(object, bytes, case_.object_bytes, options); !put)
      return tl::unexpected(put.error());
  }
  return {};
}

Status FetchWorld::spoil() {
  return PatternCarrier::spoil(stream_, consumer_, destination_.data(), case_.bytes());
}

Status FetchWorld::compare() {
  if (Status given = stream_.copy({consumer_, kHost}, back_.data(), destination_.data(), case_.bytes());
      !given)
    return given;
  if (Status there = stream_.wait(); !there) return there;
  for (std::uint64_t i = 0; i < case_.objects; ++i)
    wrong_bytes_ += count_wrong(back_.data() + i * case_.object_bytes, case_.object_bytes, order_[i] + 1);
  return {};
}

Status FetchWorld::fetch() {
  if (Status given = cache_->fetch(items_, stream_.id()); !given) return given;
  for (const FetchItem& item : items_) {
    if (item.served == case_.tier) continue;
    return fail(ErrorCode::unavailable,
                fmt::format("an object that is in tier {} was served from tier {} ({})",
                            to_string(case_.tier), to_string(item.served), to_string(item.outcome)));
  }
  return {};
}

Result<GatedRun> FetchWorld::fetch_gated(std::uint64_t repeats) {
  if (Status spoilt = spoil(); !spoilt) return tl::unexpected(spoilt.error());
  const auto run = gate_.time(stream_, [&]() -> Status {
    for (std::uint64_t i = 0; i < repeats; ++i)
      if (Status given = fetch(); !given) return given;
    return {};
  });
  if (!run) return run;
  if (Status compared = compare(); !compared) return tl::unexpected(compared.error());
  return run;
}

Result<TimeNs> FetchWorld::fetch_from_call() {
  if (Status spoilt = spoil(); !spoilt) return tl::unexpected(spoilt.error());
  const TimeNs begin = backend_.now_ns();
  if (Status given = fetch(); !given) return tl::unexpected(given.error());
  if (Status there = stream_.wait(); !there) return tl::unexpected(there.error());
  const TimeNs duration = backend_.now_ns() - begin;
  if (Status compared = compare(); !compared) return tl::unexpected(compared.error());
  return duration;
}

Result<TimeNs> FetchWorld::naive(bool waits_for_each) {
  if (Status spoilt = spoil(); !spoilt) return tl::unexpected(spoilt.error());
  std::vector<Lease> leases;
  leases.reserve(case_.objects);
  for (const std::uint64_t object : order_) {
    leases.push_back(cache_->acquire(object, stream_.id()));
    if (!leases.back())
      return fail(leases.back().outcome(), fmt::format("object {} cannot be leased", object));
  }
  const TimeNs begin = backend_.now_ns();
  for (std::uint64_t i = 0; i < case_.objects; ++i) {
    if (Status given =
            stream_.copy({leases[i].device(), consumer_}, destination_.data() + i * case_.object_bytes,
                         leases[i].data(), case_.object_bytes);
        !given)
      return tl::unexpected(given.error());
    if (!waits_for_each) continue;
    if (Status there = stream_.wait(); !there) return tl::unexpected(there.error());
  }
  if (Status there = stream_.wait(); !there) return tl::unexpected(there.error());
  const TimeNs duration = backend_.now_ns() - begin;
  if (Status compared = compare(); !compared) return tl::unexpected(compared.error());
  return duration;
}

}  // namespace harvest::cli::bench
