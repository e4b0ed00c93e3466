// SPDX-License-Identifier: Apache-2.0
#include "cli/demo_world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace harvest::cli {
namespace {

constexpr std::uint64_t kWords = DemoWorld::kExpertBytes / sizeof(std::uint64_t);

/// Tells every word of every expert apart.
std::uint64_t word(std::uint64_t expert, std::uint64_t position) {
  return (expert * kWords + position + 1) * 0x9E3779B97F4A7C15ULL;
}

PeerCacheConfig cache_config(DeviceId peer) {
  PeerCacheConfig config;
  config.peers = {peer};
  config.local_budget_bytes = DemoWorld::kLocalBytes;
  config.peer_budget_bytes = DemoWorld::kPeerBytes;
  config.host_budget_bytes = 64ULL << 20;  // nothing is copied there: the pool is used in place
  config.segment_min_bytes = 8ULL << 20;   // small, as all sizes here
  config.segment_max_bytes = 16ULL << 20;
  config.pressure.reserve_bytes = 256ULL << 20;
  config.pressure.hysteresis_bytes = 64ULL << 20;
  return config;
}

}  // namespace

Result<std::unique_ptr<DemoWorld>> DemoWorld::create(const std::string& system) {
  auto machine = load_machine(system);
  if (!machine) return tl::unexpected(machine.error());
  auto backend = make_simulated_backend(std::move(*machine));
  if (!backend) return tl::unexpected(backend.error());

  std::unique_ptr<DemoWorld> world(new DemoWorld());
  world->backend_ = std::move(*backend);
  const auto topology = Topology::probe(*world->backend_, false);
  if (!topology) return tl::unexpected(topology.error());
  const auto ranks = topology->rank_peers(0, kExpertBytes);
  if (ranks.empty())
    return fail(ErrorCode::invalid_argument,
                fmt::format("GPU 0 of {} has no peer that it can reach", topology->backend().system));
  world->peer_ = ranks.front().device;

  const std::uint64_t total = topology->device(world->peer_)->total_bytes;
  const std::uint64_t held = world->backend_->tenant_bytes(world->peer_);
  const std::uint64_t leaves = kOwnerLeavesBytes + held;
  if (total > leaves)
    if (Status owned = world->backend_->tenant_allocate(world->peer_, total - leaves); !owned)
      return tl::unexpected(owned.error());
  auto cache = PeerCache::create(*world->backend_, cache_config(world->peer_));
  if (!cache) return tl::unexpected(cache.error());
  world->cache_ = std::move(*cache);
  const auto stream = world->backend_->create_stream(0);
  if (!stream) return tl::unexpected(stream.error());
  world->stream_ = *stream;
  const auto buffer = world->backend_->map_segment(0, kExperts * kExpertBytes, {});
  if (!buffer) return tl::unexpected(buffer.error());
  world->buffer_ = *buffer;
  return world;
}

DemoWorld::~DemoWorld() {
  cache_.reset();
  if (stream_ != StreamId::none) static_cast<void>(backend_->destroy_stream(stream_));
  if (buffer_ != nullptr) static_cast<void>(backend_->unmap_segment(buffer_));
}

Status DemoWorld::store_experts() {
  pool_.resize(kExperts * kExpertBytes);
  received_.resize(kExpertBytes);
  for (std::uint64_t expert = 0; expert < kExperts; ++expert) {
    std::byte* at = pool_.data() + expert * kExpertBytes;
    for (std::uint64_t i = 0; i < kWords; ++i) {
      const std::uint64_t value = word(expert, i);
      std::memcpy(at + i * sizeof value, &value, sizeof value);
    }
    PutOptions options;
    options.backing = Backing::external_host;
    if (const auto put = cache_->put(expert, at, kExpertBytes, options); !put)
      return tl::unexpected(put.error());
  }
  return {};
}

std::uint64_t DemoWorld::changed_pool_bytes() const {
  std::uint64_t changed = 0;
  for (std::uint64_t expert = 0; expert < kExperts; ++expert) {
    for (std::uint64_t i = 0; i < kWords; ++i) {
      const std::uint64_t value = word(expert, i);
      if (std::memcmp(in_pool(expert) + i * sizeof value, &value, sizeof value) != 0) changed += sizeof value;
    }
  }
  return changed;
}

std::vector<std::uint64_t> DemoWorld::experts_in(Tier tier) const {
  std::vector<std::uint64_t> experts;
  for (std::uint64_t expert = 0; expert < kExperts; ++expert)
    if (cache_->locate(expert) == tier) experts.push_back(expert);
  return experts;
}

std::vector<FetchItem> DemoWorld::items_for(std::span<const std::uint64_t> experts) const {
  std::vector<FetchItem> items(experts.size());
  for (std::size_t i = 0; i < experts.size(); ++i) {
    items[i].key = experts[i];
    items[i].destination = buffer_ + i * kExpertBytes;
    items[i].capacity_bytes = kExpertBytes;
  }
  return items;
}

Status DemoWorld::wait() {
  const auto event = backend_->record_event(stream_);
  if (!event) return tl::unexpected(event.error());
  const EventState state = backend_->wait_event(*event, kNever);
  backend_->release_event(*event);
  if (state != EventState::complete) return fail(ErrorCode::copy_failed, "a copy failed on its way");
  return {};
}

Status DemoWorld::pass(TimeNs ns) {
  const TimeNs until = backend_->now_ns() + ns;
  while (backend_->now_ns() < until) backend_->sleep_until(std::min(until, cache_->poll()));
  return cache_->settle(backend_->now_ns() + 10'000'000'000);
}

Result<std::uint64_t> DemoWorld::wrong_bytes(std::uint64_t expert, const std::byte* on_consumer) {
  const Copy back{received_.data(), on_consumer, kExpertBytes};
  if (Status given = backend_->copy(stream_, {0, kHost}, {&back, 1}); !given)
    return tl::unexpected(given.error());
  if (Status arrived = wait(); !arrived) return tl::unexpected(arrived.error());
  if (std::memcmp(received_.data(), in_pool(expert), kExpertBytes) == 0) return 0;
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 0; i < kExpertBytes; ++i) wrong += received_[i] != in_pool(expert)[i] ? 1 : 0;
  return wrong;
}

Result<ReadFigures> DemoWorld::compare(std::span<const std::uint64_t> experts,
                                       std::span<const FetchItem> items, TimeNs duration_ns) {
  ReadFigures figures;
  figures.duration_ns = duration_ns;
  for (std::size_t i = 0; i < items.size(); ++i) {
    figures.bytes += kExpertBytes;
    if (items[i].served == Tier::none) {
      figures.wrong_bytes += kExpertBytes;
      continue;
    }
    ++figures.served[static_cast<std::size_t>(items[i].served)];
    const auto wrong = wrong_bytes(experts[i], static_cast<const std::byte*>(items[i].destination));
    if (!wrong) return tl::unexpected(wrong.error());
    figures.wrong_bytes += *wrong;
  }
  return figures;
}

Result<ReadFigures> DemoWorld::read(std::span<const std::uint64_t> experts) {
  std::vector<std::uint64_t> leased;
  std::vector<std::uint64_t> fetched;
  std::vector<Lease> leases;
  for (const std::uint64_t expert : experts) {
    Lease lease = cache_->locate(expert) == Tier::local ? cache_->acquire(expert, stream_) : Lease{};
    if (lease && lease.tier() == Tier::local) {
      leased.push_back(expert);
      leases.push_back(std::move(lease));
    } else {
      fetched.push_back(expert);
    }
  }
  const TimeNs begin = backend_->now_ns();
  std::vector<FetchItem> items = items_for(fetched);
  if (!items.empty())
    if (Status done = cache_->fetch_and_wait(items, stream_); !done) return tl::unexpected(done.error());
  auto figures = compare(fetched, items, backend_->now_ns() - begin);
  if (!figures) return figures;
  for (std::size_t i = 0; i < leases.size(); ++i) {
    const auto wrong = wrong_bytes(leased[i], leases[i].data());
    if (!wrong) return tl::unexpected(wrong.error());
    figures->bytes += kExpertBytes;
    figures->wrong_bytes += *wrong;
    ++figures->served[static_cast<std::size_t>(Tier::local)];
  }
  return figures;
}

}  // namespace harvest::cli
