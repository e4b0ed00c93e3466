// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include "bench_world.hpp"
#include "memory/pool.hpp"

/// Slots and segments: what `put` and eviction pay for memory. The simulated driver costs no real time, so
/// these are the pool's own figures; what a real driver adds is in docs/simulation.md.
namespace harvest::bench {
namespace {

struct PoolWorld {
  explicit PoolWorld(std::uint64_t budget_bytes)
      : backend(value_of(make_simulated_backend(value_of(machine_from_preset("2xh100-nvl")),
                                                {.bytes = SimulatedBytes::phantom}))),
        pool(*backend, {1, budget_bytes, 32 * MiB, 64 * MiB, {0}}) {}
  std::unique_ptr<SimulatedBackend> backend;
  memory::Pool pool;
};

void slot_allocate_release(benchmark::State& state) {
  const auto bytes = static_cast<std::uint64_t>(state.range(0));
  PoolWorld world(1024 * MiB);
  check(world.pool.grow(bytes));
  for (auto _ : state) {
    auto allocation = world.pool.allocate(bytes, 1);
    benchmark::DoNotOptimize(allocation);
    world.pool.release(allocation->slot, {});
  }
  state.SetItemsProcessed(state.iterations());
}

void malloc_free(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    void* memory = std::malloc(bytes);  // NOLINT: the baseline
    benchmark::DoNotOptimize(memory);
    std::free(memory);  // NOLINT
  }
  state.SetItemsProcessed(state.iterations());
}

void segment_grow_fence_unmap(benchmark::State& state) {
  PoolWorld world(1024 * MiB);
  const auto bytes = static_cast<std::uint64_t>(state.range(0));
  for (auto _ : state) {
    check(world.pool.grow(bytes));
    world.pool.fence(0);
    check(world.pool.unmap(0));
  }
  state.SetItemsProcessed(state.iterations());
}

BENCHMARK(slot_allocate_release)->Arg(32 << 10)->Arg(2 << 20)->Arg(36 << 20);
BENCHMARK(malloc_free)->Arg(32 << 10);
BENCHMARK(segment_grow_fence_unmap)->Arg(2 << 20)->Arg(36 << 20);

}  // namespace
}  // namespace harvest::bench

BENCHMARK_MAIN();
