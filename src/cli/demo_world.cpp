// SPDX-License-Identifier: Apache-2.0
#include "cli/demo_world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace harvest::cli {
namespace {

constexpr std::uint64_t kWords = DemoWorld::kExpertBytes / sizeof(std::uint64_t);

/// Tells every word of every expert apart.
std::uint64_t word(std::uint64_t expert, std::uint64_t position) {
  return (expert * kWords + position + 1) * 0x9E3779B97F4A7C15ULL;
}

/// What the peer keeps to itself is the reserve, so that the story is the same on a peer of any size.
PeerCacheConfig cache_config(DeviceId peer, std::uint64_t reserve_bytes) {
  PeerCacheConfig config;
  config.peers = {peer};
  config.local_budget_bytes = DemoWorld::kLocalBytes;
  config.peer_budget_bytes = DemoWorld::kPeerBytes;
  config.host_budget_bytes = 64ULL << 20;  // nothing is copied there: the pool is used in place
  config.segment_min_bytes = 8ULL << 20;   // small, as all sizes here
  config.segment_max_bytes = 16ULL << 20;
  config.pressure.reserve_bytes = reserve_bytes;
  config.pressure.hysteresis_bytes = 64ULL << 20;
  return config;
}

/// What the caller chose, or the best that this machine has.
Result<bench::MeasuredMachine> open_machine(const bench::MachineChoice& choice) {
  constexpr const char* kWithoutGpu = "2xh100-nvl";
  const bool chosen = !choice.system.empty() || choice.loopback;
  auto machine = bench::MeasuredMachine::open(choice);
  if (chosen) return machine;
  if (!machine) {
    fmt::print(stderr, "harvest demo: {}\n", machine.error().message);
    return bench::MeasuredMachine::open({.system = kWithoutGpu});
  }
  if (machine->best_peer(0)) return machine;
  bench::MachineChoice loopback;
  loopback.loopback = true;
  return bench::MeasuredMachine::open(loopback);
}

}  // namespace

Result<std::unique_ptr<DemoWorld>> DemoWorld::create(const bench::MachineChoice& choice) {
  auto machine = open_machine(choice);
  if (!machine) return tl::unexpected(machine.error());
  std::unique_ptr<DemoWorld> world(new DemoWorld(std::move(*machine)));
  if (Status ready = world->prepare(); !ready) return tl::unexpected(ready.error());
  return world;
}

Status DemoWorld::prepare() {
  const auto peer = machine_.best_peer(0);
  if (!peer) return fail(ErrorCode::invalid_argument, peer.error().message);
  peer_ = *peer;
  const auto memory = backend().query_memory(peer_);
  if (!memory) return tl::unexpected(memory.error());
  if (memory->free_bytes < kLentBytes)
    return fail(ErrorCode::out_of_memory,
                fmt::format("{} has {} free, and {} are needed", device_name(peer_),
                            format_bytes(memory->free_bytes), format_bytes(kLentBytes)));
  auto cache =
      PeerCache::create(backend(), cache_config(peer_, memory->free_bytes - kLentBytes + kMarginBytes));
  if (!cache) return tl::unexpected(cache.error());
  cache_ = std::move(*cache);
  const auto stream = backend().create_stream(0);
  if (!stream) return tl::unexpected(stream.error());
  stream_ = *stream;
  const auto buffer = backend().map_segment(0, kExperts * kExpertBytes, {});
  if (!buffer) return tl::unexpected(buffer.error());
  buffer_ = *buffer;
  return {};
}

DemoWorld::~DemoWorld() {
  cache_.reset();
  if (stream_ != StreamId::none) static_cast<void>(backend().destroy_stream(stream_));
  for (std::byte* segment : {buffer_, owners_segment_})
    if (segment != nullptr) static_cast<void>(backend().unmap_segment(segment));
  if (pool_registered_) static_cast<void>(backend().unregister_host(pool_.data()));
}

std::uint64_t DemoWorld::held_bytes() const {
  for (const PoolStats& pool : cache_->stats().pools)
    if (pool.tier == Tier::peer && pool.device == peer_) return pool.mapped_bytes;
  return 0;
}

Status DemoWorld::owner_takes() {
  if (SimulatedBackend* simulated = machine_.simulated(); simulated != nullptr && !machine_.is_loopback())
    return simulated->tenant_allocate(peer_, owner_wants_bytes());
  const auto segment = backend().map_segment(peer_, owner_wants_bytes(), {});
  if (!segment) return tl::unexpected(segment.error());
  owners_segment_ = *segment;
  return {};
}

Result<std::uint64_t> DemoWorld::owner_leaves() {
  Status left;
  if (owners_segment_ == nullptr)
    left = machine_.simulated()->tenant_free(peer_, owner_wants_bytes());
  else
    left = backend().unmap_segment(std::exchange(owners_segment_, nullptr));
  if (!left) return tl::unexpected(left.error());
  return owner_wants_bytes();
}

Status DemoWorld::store_experts() {
  pool_.resize(kExperts * kExpertBytes);
  // Copies from memory that the driver does not know are slow. Where it cannot be pinned they are right too.
  pool_registered_ = backend().register_host(pool_.data(), pool_.size()).has_value();
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
  const auto event = backend().record_event(stream_);
  if (!event) return tl::unexpected(event.error());
  const EventState state = backend().wait_event(*event, kNever);
  backend().release_event(*event);
  if (state != EventState::complete) return fail(ErrorCode::copy_failed, "a copy failed on its way");
  return {};
}

Status DemoWorld::pass(TimeNs ns) {
  const TimeNs until = backend().now_ns() + ns;
  while (backend().now_ns() < until) backend().sleep_until(std::min(until, cache_->poll()));
  return cache_->settle(backend().now_ns() + 10'000'000'000);
}

Result<std::uint64_t> DemoWorld::wrong_bytes(std::uint64_t expert, const std::byte* on_consumer) {
  const Copy back{received_.data(), on_consumer, kExpertBytes};
  if (Status given = backend().copy(stream_, {0, kHost}, {&back, 1}); !given)
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
  const TimeNs begin = backend().now_ns();
  std::vector<FetchItem> items = items_for(fetched);
  if (!items.empty())
    if (Status done = cache_->fetch_and_wait(items, stream_); !done) return tl::unexpected(done.error());
  auto figures = compare(fetched, items, backend().now_ns() - begin);
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
