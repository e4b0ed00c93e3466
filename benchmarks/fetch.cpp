// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include "bench_world.hpp"

/// What submitting a `fetch` costs per item, without the copies themselves: the simulated machine moves
/// no bytes, and its own bookkeeping is measured beside it by giving it the same copies directly.
namespace harvest::bench {
namespace {

constexpr std::uint64_t kObjectBytes = 32 << 10;
constexpr std::uint32_t kObjects = 4096;

struct FetchWorld {
  FetchWorld() : world(kObjects, kObjectBytes) {
    destination = value_of(world.backend->map_segment(0, 64 * MiB, {}));
    source = value_of(world.backend->map_segment(1, 64 * MiB, {}));
  }
  World world;
  std::byte* destination = nullptr;
  std::byte* source = nullptr;
};

FetchWorld& fetch_world() {
  static FetchWorld world;
  return world;
}

/// Lets the submitted work finish, so that queues stay short.
void finish(World& world) {
  const EventId event = value_of(world.backend->record_event(world.stream));
  world.backend->wait_event(event, kNever);
  world.backend->release_event(event);
  world.cache->poll();
}

void fetch_submission(benchmark::State& state) {
  FetchWorld& setup = fetch_world();
  World& world = setup.world;
  const auto batch = static_cast<std::size_t>(state.range(0));
  const auto order = random_order(kObjects, batch * 16, 3);
  std::vector<FetchItem> items(batch);
  std::size_t round = 0;
  for (auto _ : state) {
    for (std::size_t i = 0; i < batch; ++i) {
      items[i].key = key_of(order[(round * batch + i) % order.size()]);
      items[i].destination = setup.destination + i * kObjectBytes;
      items[i].capacity_bytes = kObjectBytes;
    }
    ++round;
    benchmark::DoNotOptimize(world.cache->fetch(items, world.stream));
    state.PauseTiming();
    finish(world);
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(batch));
}

void backend_copy_alone(benchmark::State& state) {
  FetchWorld& setup = fetch_world();
  World& world = setup.world;
  const auto batch = static_cast<std::size_t>(state.range(0));
  std::vector<Copy> copies(batch);
  for (std::size_t i = 0; i < batch; ++i)
    copies[i] = {setup.destination + i * kObjectBytes, setup.source + i * kObjectBytes, kObjectBytes};
  for (auto _ : state) {
    benchmark::DoNotOptimize(world.backend->copy(world.stream, {1, 0}, copies));
    state.PauseTiming();
    finish(world);
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(batch));
}

BENCHMARK(fetch_submission)->Arg(1)->Arg(64)->Arg(1024);
BENCHMARK(backend_copy_alone)->Arg(1)->Arg(64)->Arg(1024);

}  // namespace
}  // namespace harvest::bench

BENCHMARK_MAIN();
