// SPDX-License-Identifier: Apache-2.0
#include "cli/workload.hpp"

#include <algorithm>
#include <numeric>
#include <unordered_set>

namespace harvest::cli {
namespace {

/// Time between two polls while requests are awaited; a live engine's thread would poll more often.
constexpr TimeNs kPollNs = 2'000'000;

PeerCacheConfig cache_config(const Workload& workload, bool with_peers) {
  PeerCacheConfig config;
  config.verify_paths = false;  // phantom bytes carry no pattern
  config.local_budget_bytes = workload.local_bytes;
  config.peer_budget_bytes = with_peers ? workload.peer_bytes : 0;
  config.host_budget_bytes = workload.host_bytes;
  config.max_objects =
      std::max(config.max_objects, static_cast<std::uint32_t>(workload.unique_blocks() + 1024));
  for (TierPolicy* tier : {&config.local_policy, &config.peer_policy, &config.host_policy})
    tier->eviction = workload.policy;
  return config;
}

/// Lets time pass until `until_ns`; the cache works in the background and owners do what they do.
void pass_time(SimulatedBackend& backend, PeerCache& cache, Owners& owners, TimeNs until_ns) {
  while (backend.now_ns() < until_ns) {
    const TimeNs due = cache.poll();
    const TimeNs now = backend.now_ns();
    backend.sleep_until(std::min({until_ns, std::max(due, now + kPollNs), std::max(owners.next_ns(), now)}));
    owners.act(&cache);
  }
  cache.poll();
}

}  // namespace

std::uint64_t Workload::most_blocks() const {
  std::size_t most = 1;
  for (const TraceRequest& request : trace.requests) most = std::max(most, request.block_ids.size());
  return most;
}

std::uint64_t Workload::unique_blocks() const {
  std::unordered_set<std::uint64_t> blocks;
  for (const TraceRequest& request : trace.requests)
    blocks.insert(request.block_ids.begin(), request.block_ids.end());
  return blocks.size();
}

Result<RunFigures> run_workload(const Workload& workload, bool with_peers, Progress& progress) {
  SimulationOptions options;
  options.bytes = SimulatedBytes::phantom;
  options.seed = workload.seed;
  auto backend = make_simulated_backend(workload.machine, options);
  if (!backend) return tl::unexpected(backend.error());
  PeerCacheConfig config = cache_config(workload, with_peers);
  auto engine = Engine::create(**backend, config.consumer, workload.block_bytes, workload.most_blocks());
  if (!engine) return tl::unexpected(engine.error());
  config.on_event = [&hearer = **engine](const CacheEvent& event) { hearer.hear(event); };

  std::vector<DeviceId> gpus;
  for (const MachineDevice& device : workload.machine.devices)
    if (device.info.id != kHost && device.info.id != config.consumer) gpus.push_back(device.info.id);
  Owners owners(**backend, gpus, workload.activity, workload.seed);
  auto cache = PeerCache::create(**backend, std::move(config));
  if (!cache) return tl::unexpected(cache.error());

  const TimeNs begin = (*backend)->now_ns();
  for (std::size_t i = 0; i < workload.trace.requests.size(); ++i) {
    progress.at(i);
    const TraceRequest& request = workload.trace.requests[i];
    pass_time(**backend, **cache, owners, begin + request.arrival_ns);
    if (Status served = (*engine)->serve(**cache, request); !served) return tl::unexpected(served.error());
  }
  (*engine)->finish(**cache);

  RunFigures figures;
  figures.with_peers = with_peers;
  figures.engine = (*engine)->figures();
  figures.owners = owners.figures();
  figures.cache = (*cache)->stats();
  for (const PoolStats& pool : figures.cache.pools)
    if (with_peers && pool.tier == Tier::peer) figures.peers.push_back(pool.device);
  figures.duration_ns = (*backend)->now_ns() - begin;
  figures.uses = (*engine)->uses();
  cache->reset();  // before the engine, which hears of events, and the machine
  return figures;
}

TimeSummary summarize(std::span<const TimeNs> times_ns) {
  if (times_ns.empty()) return {};
  std::vector<TimeNs> sorted(times_ns.begin(), times_ns.end());
  std::sort(sorted.begin(), sorted.end());
  const auto rank = [&](std::size_t percent) { return sorted[(sorted.size() * percent + 99) / 100 - 1]; };
  return {rank(50), rank(99), std::accumulate(sorted.begin(), sorted.end(), TimeNs{0})};
}

}  // namespace harvest::cli
