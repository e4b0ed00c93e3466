// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/kv_fetch_world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "cli/bench/scatter.hpp"

namespace harvest::cli::bench {
namespace {

constexpr TimeNs kSettleNs = 600'000'000'000;

PeerCacheConfig peers_for(const ReloadCase& what, DeviceId consumer, DeviceId peer, std::uint64_t bytes) {
  PeerCacheConfig config;
  config.consumer = consumer;
  config.peers = {peer};
  config.verify_paths = false;  // what arrives is compared anyway
  // Slots waste up to a sixteenth, and segments and chunks what a whole slot does not fill.
  const std::uint64_t room = bytes / 2 * 3 + (1ULL << 30);
  config.peer_budget_bytes = what.tier == Tier::peer ? room : 0;
  config.host_budget_bytes = what.tier == Tier::host ? room : 0;
  config.pressure.growth_bytes_per_s = 1ULL << 42;
  config.pressure.reserve_bytes = 256ULL << 20;
  config.pressure.hysteresis_bytes = 64ULL << 20;
  return config;
}

}  // namespace

Result<std::unique_ptr<ReloadWorld>> ReloadWorld::create(const MeasuredMachine& machine, DeviceId consumer,
                                                         DeviceId peer, const ReloadCase& what) {
  auto stream = Stream::create(machine.backend(), consumer);
  if (!stream) return tl::unexpected(stream.error());
  std::unique_ptr<ReloadWorld> world(new ReloadWorld(machine, consumer, what, std::move(*stream)));
  if (Status mapped = world->map(); !mapped) return tl::unexpected(mapped.error());
  if (Status stored = world->store(peer); !stored) return tl::unexpected(stored.error());
  return world;
}

Status ReloadWorld::map() {
  const std::vector<kv::KvLayer> layers(case_.model.layers, case_.model.layer);
  const std::uint64_t block_tokens =
      case_.block_tokens != 0 ? case_.block_tokens : kv::default_block_tokens(layers, case_.page_tokens);
  block_pages_ = static_cast<std::uint32_t>(block_tokens / case_.page_tokens);
  const std::uint64_t blocks = std::max<std::uint64_t>(1, case_.tokens / block_tokens);
  const auto pages = static_cast<std::uint32_t>(blocks * block_pages_);
  const auto sizes = kv::KvLayout::tensor_bytes(case_.arrangement, layers, case_.page_tokens, pages);
  if (!sizes) return tl::unexpected(sizes.error());
  for (const std::uint64_t bytes : *sizes) {
    auto segment = Segment::map(backend_, consumer_, bytes);
    if (!segment) return tl::unexpected(segment.error());
    tensors_.push_back({segment->data(), bytes});
    memory_.push_back(std::move(*segment));
  }
  auto layout = kv::KvLayout::describe(case_.arrangement, layers, case_.page_tokens, pages, tensors_);
  if (!layout) return tl::unexpected(layout.error());
  layout_ = std::move(*layout);
  from_.resize(pages);
  std::iota(from_.begin(), from_.end(), 0);
  for (const std::uint64_t page : scattered_order(pages)) to_.push_back(static_cast<std::uint32_t>(page));
  for (std::uint64_t block = 0; block < blocks; ++block) keys_.emplace_back(block + 1);
  return {};
}

/// Each tensor's bytes tell their places.
Status ReloadWorld::write_contents() {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const auto& [address, bytes] = tensors_[i];
    if (SimulatedBackend* const simulated = machine_.simulated();
        simulated != nullptr && !backend_.info().holds_bytes) {
      simulated->stamp(address, bytes, i + 1);
      continue;
    }
    if (!pattern_) {
      auto carrier = PatternCarrier::create(backend_, consumer_, bytes);
      if (!carrier) return tl::unexpected(carrier.error());
      pattern_ = std::move(*carrier);
    }
    if (Status written = pattern_->write(stream_, consumer_, address, bytes, i + 1); !written) return written;
  }
  return {};
}

Status ReloadWorld::store(DeviceId peer) {
  if (Status written = write_contents(); !written) return written;
  const std::uint64_t bytes = from_.size() * layout_.page_bytes();
  auto cache = PeerCache::create(backend_, peers_for(case_, consumer_, peer, bytes));
  if (!cache) return tl::unexpected(cache.error());
  cache_ = std::move(*cache);
  kv::BlockCacheConfig config;
  config.layout = layout_;
  config.block_pages = block_pages_;
  config.backing = case_.tier == Tier::peer ? Backing::lossy : Backing::managed_host;
  auto blocks = kv::BlockCache::create(*cache_, config);
  if (!blocks) return tl::unexpected(blocks.error());
  blocks_ = std::move(*blocks);
  if (const auto stored = blocks_->store(keys_, from_, stream_.id()); !stored)
    return tl::unexpected(stored.error());
  if (Status settled = blocks_->settle(backend_.now_ns() + kSettleNs); !settled) return settled;
  const kv::PrefixMatch match = blocks_->lookup(keys_);
  const auto there = std::ranges::count(match.tiers, case_.tier);
  if (there == static_cast<std::ptrdiff_t>(keys_.size())) return {};
  return fail(ErrorCode::out_of_memory,
              fmt::format("{} of {} blocks of {} bytes fit in tier {}", there, keys_.size(),
                          blocks_->block_bytes(), to_string(case_.tier)));
}

Status ReloadWorld::spoil() {
  for (const auto& [address, bytes] : tensors_)
    if (Status spoilt = PatternCarrier::spoil(stream_, consumer_, address, bytes); !spoilt) return spoilt;
  return {};
}

/// Calls `visit(part, from, to)` for each run of the prefix: where it left from, and where it comes to.
template <typename Visit>
Status ReloadWorld::visit_runs(Visit visit) const {
  for (std::size_t page = 0; page < from_.size(); ++page)
    for (const kv::KvPart& part : layout_.parts)
      for (std::uint32_t run = 0; run < part.runs; ++run) {
        std::byte* const base = part.base + run * part.run_stride_bytes;
        if (Status status = visit(part, base + from_[page] * part.page_stride_bytes,
                                  base + to_[page] * part.page_stride_bytes);
            !status)
          return status;
      }
  return {};
}

Result<bool> ReloadWorld::holds(const std::byte* run, std::uint64_t bytes, std::size_t tensor,
                                std::uint64_t offset) {
  if (!pattern_) return machine_.simulated()->content_of(run, bytes) == Content{tensor + 1, offset};
  const auto wrong = pattern_->count_wrong_at(stream_, consumer_, run, bytes, tensor + 1, offset);
  if (!wrong) return tl::unexpected(wrong.error());
  return *wrong == 0;
}

Status ReloadWorld::compare() {
  return visit_runs([&](const kv::KvPart& part, const std::byte* from, const std::byte* to) -> Status {
    const auto tensor = std::ranges::find_if(tensors_, [&](const kv::KvTensor& candidate) {
      return from >= candidate.address && from < candidate.address + candidate.bytes;
    });
    const auto right = holds(to, part.run_bytes, static_cast<std::size_t>(tensor - tensors_.begin()),
                             static_cast<std::uint64_t>(from - tensor->address));
    if (!right) return tl::unexpected(right.error());
    wrong_runs_ += *right ? 0 : 1;
    return {};
  });
}

Result<ReloadTimes> ReloadWorld::load() {
  if (Status spoilt = spoil(); !spoilt) return tl::unexpected(spoilt.error());
  auto compute = Stream::create(backend_, consumer_);
  if (!compute) return tl::unexpected(compute.error());
  ReloadTimes times;
  const TimeNs begin = backend_.now_ns();
  auto load = blocks_->load(keys_, to_, stream_.id());
  if (!load) return tl::unexpected(load.error());
  if (Status ordered = load->order_behind(0, compute->id()); !ordered) return tl::unexpected(ordered.error());
  if (Status there = compute->wait(); !there) return tl::unexpected(there.error());
  times.first_layers_ns = backend_.now_ns() - begin;
  if (!load->finish().empty()) return fail(ErrorCode::copy_failed, "blocks were lost on their way");
  times.all_ns = backend_.now_ns() - begin;
  if (Status compared = compare(); !compared) return tl::unexpected(compared.error());
  return times;
}

Result<ReloadTimes> ReloadWorld::naive() {
  if (Status spoilt = spoil(); !spoilt) return tl::unexpected(spoilt.error());
  std::vector<Lease> leases;
  for (const Key& key : keys_) {
    leases.push_back(cache_->acquire(blocks_->object_key(key), stream_.id()));
    if (!leases.back()) return fail(leases.back().outcome(), "a block cannot be leased");
  }
  const TimeNs begin = backend_.now_ns();
  for (std::size_t block = 0; block < keys_.size(); ++block) {
    const Lease& lease = leases[block];
    std::uint64_t offset = 0;
    for (const kv::KvPart& part : layout_.parts)
      for (std::uint32_t page = 0; page < block_pages_; ++page)
        for (std::uint32_t run = 0; run < part.runs; ++run) {
          std::byte* const to = part.base + to_[block * block_pages_ + page] * part.page_stride_bytes +
                                run * part.run_stride_bytes;
          if (Status given =
                  stream_.copy({lease.device(), consumer_}, to, lease.data() + offset, part.run_bytes);
              !given)
            return tl::unexpected(given.error());
          offset += part.run_bytes;
        }
  }
  if (Status there = stream_.wait(); !there) return tl::unexpected(there.error());
  const TimeNs all = backend_.now_ns() - begin;
  if (Status compared = compare(); !compared) return tl::unexpected(compared.error());
  return ReloadTimes{all, all};
}

}  // namespace harvest::cli::bench
