// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>
#include <harvest/moe/expert_cache.hpp>

#include <map>
#include <string>

#include "bench_world.hpp"

/// What a layer step of experts that are here costs the host: 8 of 128, in a model of a few layers that fits.
/// Nothing is copied, so what is timed is the cache's own work, and that of the simulated machine where it is
/// asked for an event or the time: `record_event_alone` and `now_alone` are those.
namespace harvest::bench {
namespace {

constexpr std::uint32_t kExperts = 128;
constexpr std::uint32_t kNeeded = 8;
constexpr std::uint64_t kExpertBytes = 64 << 10;
constexpr std::size_t kOrder = 1 << 10;

std::uint32_t layers() {
  return smoke() ? 2 : 16;
}

struct ExpertWorld {
  explicit ExpertWorld(const std::string& predictor) : world(16, kExpertBytes) {
    moe::ExpertCacheConfig config;
    config.model.name = "benchmark";
    config.model.layers = layers();
    config.model.experts = kExperts;
    config.model.top_k = kNeeded;
    config.model.tensors = {{"all", kExpertBytes}};
    config.local_budget_bytes = std::uint64_t{layers()} * kExperts * kExpertBytes;
    config.piece_bytes = kExpertBytes;
    config.predictor = predictor;
    const std::uint64_t count = std::uint64_t{layers()} * kExperts;
    PeerCacheConfig peers;
    peers.verify_paths = false;
    peers.host_budget_bytes = 0;
    peers.max_objects = static_cast<std::uint32_t>(count + 16);
    cache = value_of(PeerCache::create(*world.backend, std::move(peers)));
    experts = value_of(moe::ExpertCache::create(*cache, std::move(config)));
    const std::byte* const weights = value_of(world.backend->reserve_host_range(count * kExpertBytes));
    for (std::uint32_t layer = 0; layer < layers(); ++layer)
      for (std::uint32_t expert = 0; expert < kExperts; ++expert)
        check(experts->add_expert(layer, expert, weights + (layer * kExperts + expert) * kExpertBytes));
    bring_all();
    // A router has favourites: each layer's experts are drawn from a window that moves with the layer.
    needed.resize(kOrder);
    const auto order = random_order(kExperts / 4, kOrder * kNeeded, 11);
    for (std::size_t i = 0; i < kOrder; ++i)
      for (std::uint32_t j = 0; j < kNeeded; ++j)
        needed[i].push_back((order[i * kNeeded + j] * kNeeded + j + static_cast<std::uint32_t>(i)) %
                            kExperts);
  }

  void bring_all() {
    for (std::uint32_t layer = 0; layer < layers(); ++layer) {
      std::vector<std::uint32_t> all;
      for (std::uint32_t expert = 0; expert < kExperts; ++expert) all.push_back(expert);
      auto step = value_of(experts->begin_layer(layer, all, world.stream));
      while (step.next() != nullptr) {
      }
      check(experts->end_layer(std::move(step)));
    }
    check(experts->confirm());
  }

  /// The next step's layer and experts.
  std::pair<std::uint32_t, const std::vector<std::uint32_t>&> next() {
    const std::size_t number = round++;
    return {static_cast<std::uint32_t>(number % layers()), needed[number % kOrder]};
  }

  World world;
  std::unique_ptr<PeerCache> cache;
  std::unique_ptr<moe::ExpertCache> experts;
  std::vector<std::vector<std::uint32_t>> needed;
  std::size_t round = 0;
};

ExpertWorld& expert_world(const std::string& predictor) {
  static std::map<std::string, std::unique_ptr<ExpertWorld>> worlds;
  auto& world = worlds[predictor];
  if (!world) world = std::make_unique<ExpertWorld>(predictor);
  return *world;
}

/// `begin_layer` alone. Several steps are begun before the clock is stopped to end them, since stopping it
/// costs nearly as much as a step.
void begin_layer(benchmark::State& state, const std::string& predictor) {
  constexpr std::size_t kOpen = 8;
  ExpertWorld& setup = expert_world(predictor);
  std::vector<moe::LayerStep> open;
  open.reserve(kOpen);
  while (state.KeepRunningBatch(kOpen)) {
    for (std::size_t i = 0; i < kOpen; ++i) {
      const auto [layer, needed] = setup.next();
      auto step = setup.experts->begin_layer(layer, needed, setup.world.stream);
      open.push_back(std::move(*step));
    }
    state.PauseTiming();
    open.clear();
    state.ResumeTiming();
  }
}

/// And ended, without that an expert is taken: the machine is asked for nothing.
void begin_and_end(benchmark::State& state, const std::string& predictor) {
  ExpertWorld& setup = expert_world(predictor);
  for (auto _ : state) {
    const auto [layer, needed] = setup.next();
    auto step = setup.experts->begin_layer(layer, needed, setup.world.stream);
    check(setup.experts->end_layer(std::move(*step)));
  }
}

/// A whole step: all experts are taken, and its end is an event of the stream.
void whole_step(benchmark::State& state, const std::string& predictor) {
  ExpertWorld& setup = expert_world(predictor);
  for (auto _ : state) {
    const auto [layer, needed] = setup.next();
    auto step = setup.experts->begin_layer(layer, needed, setup.world.stream);
    while (step->next() != nullptr) {
    }
    check(setup.experts->end_layer(std::move(*step)));
  }
}

void record_event_alone(benchmark::State& state) {
  World& world = expert_world("none").world;
  for (auto _ : state) world.backend->release_event(value_of(world.backend->record_event(world.stream)));
}

void now_alone(benchmark::State& state) {
  World& world = expert_world("none").world;
  for (auto _ : state) benchmark::DoNotOptimize(world.backend->now_ns());
}

BENCHMARK_CAPTURE(begin_layer, none, "none");
BENCHMARK_CAPTURE(begin_layer, next_layer, "next_layer");
BENCHMARK_CAPTURE(begin_and_end, none, "none");
BENCHMARK_CAPTURE(begin_and_end, next_layer, "next_layer");
BENCHMARK_CAPTURE(whole_step, none, "none");
BENCHMARK_CAPTURE(whole_step, next_layer, "next_layer");
BENCHMARK(record_event_alone);
BENCHMARK(now_alone);

}  // namespace
}  // namespace harvest::bench

BENCHMARK_MAIN();
