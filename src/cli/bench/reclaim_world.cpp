// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/reclaim_world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "cli/output.hpp"

namespace harvest::cli::bench {
namespace {

constexpr std::uint64_t kMostFills = 900;  // less than what drivers queue
constexpr TimeNs kPatienceNs = 10'000'000'000;
constexpr TimeNs kFillPatienceNs = 120'000'000'000;

PeerCacheConfig config_of(const ReclaimSetting& setting, std::uint64_t objects) {
  PeerCacheConfig config;
  config.consumer = setting.consumer;
  config.peers = {setting.peer};
  config.verify_paths = false;
  config.host_budget_bytes = 0;
  config.max_objects = static_cast<std::uint32_t>(objects) + 16;
  config.background_bytes = 1ULL << 30;
  config.pressure.growth_bytes_per_s = 1ULL << 42;
  config.pressure.reserve_bytes = 0;
  config.pressure.hysteresis_bytes = 0;
  // Nothing but the request that is measured gives memory back.
  config.pressure.sample_interval_ns = std::numeric_limits<TimeNs>::max() / 4;
  return config;
}

}  // namespace

Result<std::unique_ptr<OwnerLoad>> OwnerLoad::create(Backend& backend, DeviceId device,
                                                     std::uint64_t scratch_bytes) {
  auto scratch = Segment::map(backend, device, scratch_bytes);
  if (!scratch) return tl::unexpected(scratch.error());
  auto gate = Gate::create(backend, device);
  if (!gate) return tl::unexpected(gate.error());
  auto stream = Stream::create(backend, device);
  if (!stream) return tl::unexpected(stream.error());
  return std::unique_ptr<OwnerLoad>(
      new OwnerLoad(device, std::move(*scratch), std::move(*gate), std::move(*stream)));
}

Result<GatedRun> OwnerLoad::run(const Submit& meanwhile) {
  const auto submit = [&]() -> Status {
    for (std::uint64_t i = 0; i < fills_; ++i)
      if (Status given = stream_.backend().fill(stream_.id(), device_, scratch_.data(), scratch_.bytes(),
                                                static_cast<std::uint8_t>(i));
          !given)
        return given;
    return {};
  };
  return gate_.time(stream_, submit, meanwhile);
}

Status OwnerLoad::resize(TimeNs ns) {
  fills_ = 16;
  auto probe = run();
  if (probe) probe = run();  // the first one warms up
  if (!probe) return tl::unexpected(probe.error());
  const TimeNs each = std::max<TimeNs>(1, probe->duration_ns / static_cast<TimeNs>(fills_));
  fills_ = std::clamp<std::uint64_t>(static_cast<std::uint64_t>(ns / each) + 1, 16, kMostFills);
  return {};
}

Result<SharedObject> SharedObject::create(const MeasuredMachine& machine, std::uint64_t bytes) {
  if (SimulatedBackend* simulated = machine.simulated()) {  // which holds no bytes
    const auto data = simulated->reserve_host_range(bytes);
    if (!data) return tl::unexpected(data.error());
    return SharedObject(simulated, *data, {});
  }
  auto segment = Segment::map(machine.backend(), kHost, bytes, gpus_of(machine.backend()));
  if (!segment) return tl::unexpected(segment.error());
  std::byte* data = segment->data();
  return SharedObject(nullptr, data, std::move(*segment));
}

Result<std::unique_ptr<PeerCache>> fill_peer(Backend& backend, const ReclaimSetting& setting,
                                             const SharedObject& object) {
  const std::uint64_t objects = setting.bytes / setting.object_bytes;
  auto cache = PeerCache::create(backend, config_of(setting, objects));
  if (!cache) return cache;
  std::vector<Key> keys;
  for (std::uint64_t key = 0; key < objects; ++key) {
    PutOptions options;
    options.backing = Backing::external_host;
    if (const auto put = (*cache)->put(key, object.data(), setting.object_bytes, options); !put)
      return tl::unexpected(put.error());
    keys.emplace_back(key);
  }
  (*cache)->prefetch(keys, Tier::peer);
  if (Status settled = (*cache)->settle(backend.now_ns() + kFillPatienceNs); !settled)
    return tl::unexpected(settled.error());
  const auto there = std::count_if(keys.begin(), keys.end(),
                                   [&](const Key& key) { return (*cache)->locate(key) == Tier::peer; });
  if (static_cast<std::uint64_t>(there) != objects)
    return fail(ErrorCode::out_of_memory,
                fmt::format("{} of {} objects of {} have room on {}", there, objects,
                            format_bytes(setting.object_bytes), device_name(setting.peer)));
  return cache;
}

Result<ReclaimRun> reclaim_all(Backend& backend, PeerCache& cache, const ReclaimSetting& setting) {
  const auto before = backend.query_memory(setting.peer);
  if (!before) return tl::unexpected(before.error());
  ReclaimRun run;
  const TimeNs begin = backend.now_ns();
  const auto report = cache.reclaim(setting.peer, setting.bytes, begin + kPatienceNs);
  if (!report) return tl::unexpected(report.error());
  run.report = *report;
  run.call_ns = backend.now_ns() - begin;
  do {
    const auto after = backend.query_memory(setting.peer);
    if (!after) return tl::unexpected(after.error());
    run.free_ns = backend.now_ns() - begin;
    run.was_seen = after->free_bytes >= before->free_bytes + setting.bytes;
  } while (!run.was_seen && run.free_ns < kPatienceNs);
  return run;
}

}  // namespace harvest::cli::bench
