// SPDX-License-Identifier: Apache-2.0
#include "cli/engine.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <utility>

namespace harvest::cli {
namespace {

constexpr std::uint64_t kBlockBytes = 2ULL << 20;

/// The engine's checks must be able to fail: machines that corrupt, fail or lose, and what is then counted.
struct Bench {
  explicit Bench(FaultPlan faults) {
    SimulationOptions options;
    options.bytes = SimulatedBytes::phantom;
    options.faults = std::move(faults);
    backend = *make_simulated_backend(*machine_from_preset("2xh100-nvl"), options);
    engine = *Engine::create(*backend, 0, kBlockBytes, 8);
    PeerCacheConfig config;
    config.verify_paths = false;
    config.peer_budget_bytes = 0;
    config.on_event = [this](const CacheEvent& event) { engine->hear(event); };
    cache = *PeerCache::create(*backend, config);
  }
  ~Bench() { cache.reset(); }

  void serve(std::vector<std::uint64_t> blocks) {
    const Status served = engine->serve(*cache, {.block_ids = std::move(blocks)});
    EXPECT_TRUE(served) << served.error().message;
    EXPECT_TRUE(cache->settle(backend->now_ns() + 1'000'000'000));
  }

  std::unique_ptr<SimulatedBackend> backend;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<PeerCache> cache;
};

TEST(Engine, FindsNothingWrongOnASoundMachine) {
  Bench bench({});
  bench.serve({1, 2, 3});
  bench.serve({1, 2, 3, 4});
  bench.serve({1, 5, 3});
  bench.engine->finish(*bench.cache);
  const EngineFigures& figures = bench.engine->figures();
  EXPECT_EQ(figures.accesses, 10U);
  EXPECT_EQ(figures.hits[static_cast<std::size_t>(Tier::host)], 4U);
  EXPECT_EQ(figures.misses, 6U);
  EXPECT_EQ(figures.reload_ns.size(), 2U);
  EXPECT_EQ(figures.wrong_bytes, 0U);
  EXPECT_EQ(figures.lost, 0U);
  EXPECT_EQ(bench.engine->uses().size(), 5U + 4U) << "5 stored, 4 brought back";
}

TEST(Engine, CountsBlocksThatArriveWithOtherContent) {
  FaultPlan faults;
  faults.corrupt_copy.rate = 1;
  Bench bench(faults);
  bench.serve({1, 2, 3});
  bench.serve({1, 2, 3});
  EXPECT_EQ(bench.engine->figures().wrong_bytes, 3 * kBlockBytes);
}

TEST(Engine, CountsObjectsThatWentWithoutHavingBeenEvicted) {
  FaultPlan faults;
  faults.fail_copy.at = 1;
  Bench told(faults);
  told.serve({1, 2, 3});  // the copy of one of them fails, and the cache says so
  EXPECT_EQ(told.engine->figures().lost, 1U);

  Bench silent({});
  silent.serve({1, 2, 3});
  EXPECT_TRUE(silent.cache->erase(2));  // nobody tells the engine
  EXPECT_TRUE(silent.cache->erase(3));
  silent.serve({1, 2});
  silent.engine->finish(*silent.cache);
  EXPECT_EQ(silent.engine->figures().lost, 2U);
}

}  // namespace
}  // namespace harvest::cli
