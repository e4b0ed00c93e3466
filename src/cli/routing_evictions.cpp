// SPDX-License-Identifier: Apache-2.0
#include "cli/routing_evictions.hpp"

#include <harvest/machine.hpp>
#include <harvest/moe/expert_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iterator>
#include <limits>
#include <memory>
#include <set>
#include <utility>

#include "cli/output.hpp"

namespace harvest::cli {
namespace {

constexpr std::uint64_t kExpertBytes = 256;  // what is counted does not hang on it

/// A cache of experts and what is below it.
struct Replay {
  std::unique_ptr<SimulatedBackend> backend;
  std::unique_ptr<PeerCache> peers;
  std::unique_ptr<moe::ExpertCache> experts;
  StreamId stream = StreamId::none;
};

Result<Replay> open(std::string_view eviction, const moe::RoutingShape& shape, std::uint64_t slots) {
  auto machine = machine_from_preset("2xh100-nvl");
  if (!machine) return tl::unexpected(machine.error());
  SimulationOptions simulation;
  simulation.bytes = SimulatedBytes::phantom;
  auto backend = make_simulated_backend(*machine, simulation);
  if (!backend) return tl::unexpected(backend.error());
  const std::uint64_t count = std::uint64_t{shape.layers} * shape.experts;
  PeerCacheConfig peer_config;
  peer_config.verify_paths = false;  // phantom bytes carry no pattern
  peer_config.peer_budget_bytes = 0;
  peer_config.max_objects = static_cast<std::uint32_t>(count + 1024);
  auto peers = PeerCache::create(**backend, peer_config);
  if (!peers) return tl::unexpected(peers.error());
  moe::ExpertCacheConfig config;
  config.model = {"routing", shape.layers, shape.experts, shape.top_k, {{"all", kExpertBytes}}};
  config.local_budget_bytes = slots * config.model.slot_bytes();
  config.eviction = eviction;
  auto experts = moe::ExpertCache::create(**peers, config);
  if (!experts) return tl::unexpected(experts.error());
  const auto weights = (*backend)->reserve_host_range(count * kExpertBytes);
  if (!weights) return tl::unexpected(weights.error());
  for (std::uint64_t i = 0; i < count; ++i)
    if (const Status added = (*experts)->add_expert(static_cast<std::uint32_t>(i / shape.experts),
                                                    static_cast<std::uint32_t>(i % shape.experts),
                                                    *weights + i * kExpertBytes);
        !added)
      return tl::unexpected(added.error());
  const auto stream = (*backend)->create_stream(0);
  if (!stream) return tl::unexpected(stream.error());
  return Replay{std::move(*backend), std::move(*peers), std::move(*experts), *stream};
}

Status pass_layer(Replay& replay, std::uint32_t layer, std::span<const std::uint32_t> needed) {
  auto step = replay.experts->begin_layer(layer, needed, replay.stream);
  if (!step) return tl::unexpected(step.error());
  while (step->next() != nullptr) {
  }
  if (Status ended = replay.experts->end_layer(std::move(*step)); !ended) return ended;
  return replay.experts->confirm();  // all have come
}

/// Calls `visit(layer, experts)` for each layer step of decode, with each expert once.
template <typename Visit>
Status for_each_layer_step(const moe::RoutingTrace& trace, Visit visit) {
  std::vector<std::uint32_t> needed;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const moe::RoutingStep step = trace.step(i);
    if (step.phase() != moe::Phase::decode) continue;
    for (std::uint32_t layer = 0; layer < step.layers(); ++layer) {
      step.distinct_experts(layer, needed);
      if (Status visited = visit(layer, needed); !visited) return visited;
    }
  }
  return {};
}

double miss_ratio(std::uint64_t hits, std::uint64_t accesses) {
  return accesses == 0 ? 0 : 1 - static_cast<double>(hits) / static_cast<double>(accesses);
}

}  // namespace

Result<EvictionFigures> replay_eviction(std::string_view name, const moe::RoutingTrace& trace,
                                        std::uint64_t slots) {
  auto replay = open(name, trace.shape(), slots);
  if (!replay) return tl::unexpected(replay.error());
  const Status passed =
      for_each_layer_step(trace, [&](std::uint32_t layer, const std::vector<std::uint32_t>& needed) {
        return pass_layer(*replay, layer, needed);
      });
  if (!passed) return tl::unexpected(passed.error());
  const moe::ExpertCacheStats stats = replay->experts->stats();
  const std::uint64_t hits = stats.experts(moe::Phase::decode, Tier::local);
  const std::uint64_t misses =
      stats.experts(moe::Phase::decode, Tier::peer) + stats.experts(moe::Phase::decode, Tier::host);
  return EvictionFigures{std::string(name), miss_ratio(hits, hits + misses)};
}

EvictionFigures replay_belady(const moe::RoutingTrace& trace, std::uint64_t slots) {
  constexpr std::size_t kNeverAgain = std::numeric_limits<std::size_t>::max();
  // Each layer step's experts, and when each is needed next.
  std::vector<std::vector<std::uint32_t>> steps;
  static_cast<void>(for_each_layer_step(
      trace, [&](std::uint32_t layer, const std::vector<std::uint32_t>& needed) -> Status {
        std::vector<std::uint32_t>& step = steps.emplace_back(needed);
        for (std::uint32_t& expert : step) expert += layer * trace.shape().experts;
        return {};
      }));
  std::vector<std::size_t> next(std::size_t{trace.shape().layers} * trace.shape().experts, kNeverAgain);
  std::vector<std::vector<std::size_t>> next_uses(steps.size());
  for (std::size_t i = steps.size(); i-- > 0;)
    for (const std::uint32_t expert : steps[i]) next_uses[i].push_back(std::exchange(next[expert], i));

  std::uint64_t hits = 0;
  std::uint64_t accesses = 0;
  std::set<std::pair<std::size_t, std::uint32_t>> residents;  // by next use
  for (std::size_t i = 0; i < steps.size(); ++i) {
    for (std::size_t j = 0; j < steps[i].size(); ++j) {
      hits += residents.erase({i, steps[i][j]});
      if (next_uses[i][j] != kNeverAgain) residents.emplace(next_uses[i][j], steps[i][j]);
    }
    accesses += steps[i].size();
    while (residents.size() > slots) residents.erase(std::prev(residents.end()));
  }
  return {"belady", miss_ratio(hits, accesses)};
}

Result<std::vector<EvictionFigures>> replay_evictions(const moe::RoutingTrace& trace, std::uint64_t slots) {
  std::vector<EvictionFigures> figures;
  Progress progress("evictions", moe::expert_eviction_names().size());
  for (const std::string_view name : moe::expert_eviction_names()) {
    auto one = replay_eviction(name, trace, slots);
    if (!one) return tl::unexpected(one.error());
    figures.push_back(std::move(*one));
    progress.at(figures.size());
  }
  figures.push_back(replay_belady(trace, slots));
  return figures;
}

}  // namespace harvest::cli
