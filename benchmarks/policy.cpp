// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>
#include <harvest/policy.hpp>

#include <cmath>
#include <string>

#include "bench_world.hpp"

/// What a policy costs for each access, on a skewed stream with room for a tenth of its keys.
namespace harvest::bench {
namespace {

std::vector<Key> skewed_accesses(std::size_t length, std::uint32_t keys) {
  std::vector<Key> accesses;
  accesses.reserve(length);
  for (const std::uint32_t draw : random_order(1U << 30, length, 11)) {
    const double u = (draw + 1.0) / static_cast<double>(1U << 30);
    accesses.push_back(key_of(static_cast<std::uint32_t>(std::pow(static_cast<double>(keys), u))));
  }
  return accesses;
}

void policy_access(benchmark::State& state, const std::string& name) {
  const std::uint32_t keys = smoke() ? 2000 : 100'000;
  const auto accesses = skewed_accesses(smoke() ? 10'000 : 500'000, keys);
  double hit_ratio = 0;
  for (auto _ : state) hit_ratio = value_of(simulate_policy(name, accesses, keys / 10)).hit_ratio();
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(accesses.size()));
  state.counters["hit_ratio"] = hit_ratio;
  state.counters["per_access"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * static_cast<double>(accesses.size()),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

}  // namespace
}  // namespace harvest::bench

int main(int argc, char** argv) {
  using namespace harvest;
  using namespace harvest::bench;
  for (const std::string_view name : eviction_policy_names())
    benchmark::RegisterBenchmark(("policy_access/" + std::string(name)).c_str(), policy_access,
                                 std::string(name))
        ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("policy_access/belady", policy_access, std::string("belady"))
      ->Unit(benchmark::kMillisecond);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
