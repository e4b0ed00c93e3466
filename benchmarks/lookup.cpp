// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include <map>
#include <memory>
#include <mutex>

#include "bench_world.hpp"

#ifdef HARVEST_HAS_ROCKSDB
#include <rocksdb/cache.h>
#endif

/// What one read costs before any byte moves: `acquire` and release of a resident key, and a miss, beside
/// the look-up and release of RocksDB's block caches with the same keys in the same order.
namespace harvest::bench {
namespace {

constexpr std::uint64_t kObjectBytes = 4096;
constexpr std::size_t kOrder = 1 << 16;

World& world_of(std::uint32_t objects) {
  static std::map<std::uint32_t, std::unique_ptr<World>> worlds;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  auto& world = worlds[objects];
  if (!world) world = std::make_unique<World>(objects, kObjectBytes);
  return *world;
}

void acquire_hit(benchmark::State& state) {
  const auto objects = static_cast<std::uint32_t>(state.range(0));
  World& world = world_of(objects);
  const auto order = random_order(objects, kOrder, 7 + static_cast<std::uint64_t>(state.thread_index()));
  std::size_t i = 0;
  for (auto _ : state) {
    const Lease lease = world.cache->acquire(key_of(order[i++ % kOrder]), world.stream);
    benchmark::DoNotOptimize(lease.data());
  }
  state.SetItemsProcessed(state.iterations());
}

/// As `acquire_hit`, but no two threads read the same objects.
void acquire_hit_apart(benchmark::State& state) {
  const auto objects = static_cast<std::uint32_t>(state.range(0));
  World& world = world_of(objects);
  const auto threads = static_cast<std::uint32_t>(state.threads());
  const auto mine = static_cast<std::uint32_t>(state.thread_index());
  auto order = random_order(objects / threads, kOrder, 7 + mine);
  for (std::uint32_t& i : order) i = i * threads + mine;
  std::size_t i = 0;
  for (auto _ : state) {
    const Lease lease = world.cache->acquire(key_of(order[i++ % kOrder]), world.stream);
    benchmark::DoNotOptimize(lease.data());
  }
  state.SetItemsProcessed(state.iterations());
}

/// What two threads that share nothing reach on this machine at this moment: no scaling below can be
/// better than this one.
void no_memory_at_all(benchmark::State& state) {
  std::uint64_t x = 1;
  for (auto _ : state) {
    for (int i = 0; i < 16; ++i) benchmark::DoNotOptimize(x = x * 6364136223846793005ULL + 1);
  }
  state.SetItemsProcessed(state.iterations());
}

void acquire_miss(benchmark::State& state) {
  const auto objects = static_cast<std::uint32_t>(state.range(0));
  World& world = world_of(objects);
  const auto order = random_order(objects, kOrder, 7 + static_cast<std::uint64_t>(state.thread_index()));
  std::size_t i = 0;
  for (auto _ : state) {
    const Lease lease = world.cache->acquire(key_of(objects + order[i++ % kOrder]), world.stream);
    benchmark::DoNotOptimize(lease.outcome());
  }
  state.SetItemsProcessed(state.iterations());
}

#ifdef HARVEST_HAS_ROCKSDB
void delete_nothing(const rocksdb::Slice&, void*) {}

std::shared_ptr<rocksdb::Cache> filled(std::shared_ptr<rocksdb::Cache> cache, std::uint32_t objects) {
  static int value = 0;
  for (std::uint32_t i = 0; i < objects; ++i) {
    const Key key = key_of(i);
    const rocksdb::Slice slice(reinterpret_cast<const char*>(&key),
                               sizeof key);  // NOLINT: 16 bytes, as it wants
    if (!cache->Insert(slice, &value, kObjectBytes, &delete_nothing).ok()) std::abort();
  }
  return cache;
}

void rocksdb_lookup(benchmark::State& state, rocksdb::Cache& cache, std::uint32_t first) {
  const auto objects = static_cast<std::uint32_t>(state.range(0));
  const auto order = random_order(objects, kOrder, 7 + static_cast<std::uint64_t>(state.thread_index()));
  std::size_t i = 0;
  std::uint64_t hits = 0;
  for (auto _ : state) {
    const Key key = key_of(first + order[i++ % kOrder]);
    rocksdb::Cache::Handle* handle =
        cache.Lookup(rocksdb::Slice(reinterpret_cast<const char*>(&key), sizeof key));  // NOLINT
    if (handle == nullptr) continue;
    ++hits;
    benchmark::DoNotOptimize(cache.Value(handle));
    cache.Release(handle);
  }
  state.SetItemsProcessed(state.iterations());
  state.counters["hit_share"] = benchmark::Counter(
      static_cast<double>(hits) / static_cast<double>(state.iterations()), benchmark::Counter::kAvgThreads);
}

/// Room to spare, so that every key is resident in both.
rocksdb::Cache& hyper_clock_of(std::uint32_t objects) {
  static std::map<std::uint32_t, std::shared_ptr<rocksdb::Cache>> caches;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  auto& cache = caches[objects];
  if (!cache)
    cache = filled(
        rocksdb::HyperClockCacheOptions(objects * kObjectBytes * 4, kObjectBytes).MakeSharedCache(), objects);
  return *cache;
}

rocksdb::Cache& lru_of(std::uint32_t objects) {
  static std::map<std::uint32_t, std::shared_ptr<rocksdb::Cache>> caches;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  auto& cache = caches[objects];
  if (!cache) cache = filled(rocksdb::NewLRUCache(objects * kObjectBytes * 4), objects);
  return *cache;
}

void rocksdb_hyper_clock_hit(benchmark::State& state) {
  rocksdb_lookup(state, hyper_clock_of(static_cast<std::uint32_t>(state.range(0))), 0);
}
void rocksdb_hyper_clock_miss(benchmark::State& state) {
  const auto objects = static_cast<std::uint32_t>(state.range(0));
  rocksdb_lookup(state, hyper_clock_of(objects), objects);
}
void rocksdb_lru_hit(benchmark::State& state) {
  rocksdb_lookup(state, lru_of(static_cast<std::uint32_t>(state.range(0))), 0);
}
#endif

/// A few objects (all in the processor's caches) and many (a miss or more each), one thread and two.
void sizes(benchmark::internal::Benchmark* benchmark) {
  for (const std::int64_t objects : {1 << 10, 1 << (smoke() ? 11 : 16)}) benchmark->Arg(objects);
  benchmark->Threads(1)->Threads(2)->UseRealTime();
}

BENCHMARK(no_memory_at_all)->Threads(1)->Threads(2)->UseRealTime();
BENCHMARK(acquire_hit)->Apply(sizes);
BENCHMARK(acquire_hit_apart)->Apply(sizes);
#ifdef HARVEST_HAS_ROCKSDB
BENCHMARK(rocksdb_hyper_clock_hit)->Apply(sizes);
BENCHMARK(rocksdb_lru_hit)->Apply(sizes);
#endif
BENCHMARK(acquire_miss)->Apply(sizes);
#ifdef HARVEST_HAS_ROCKSDB
BENCHMARK(rocksdb_hyper_clock_miss)->Apply(sizes);
#endif

}  // namespace
}  // namespace harvest::bench

BENCHMARK_MAIN();
