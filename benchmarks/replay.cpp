// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>
#include <harvest/machine.hpp>

#include <random>

#include "bench_world.hpp"
#include "cli/workload.hpp"

/// How fast traffic is replayed: the whole of `harvest replay` but the reading of the file. Requests are made
/// up: prefixes of conversations that go on, as a chat service has them.
namespace harvest::bench {
namespace {

constexpr std::uint64_t kBlockBytes = 64ULL << 20;
constexpr std::uint64_t kConversations = 200;
constexpr std::uint64_t kMostBlocks = 64;
constexpr TimeNs kBetweenRequestsNs = 300'000'000;

/// Each request takes up one of the conversations, with all that was said there and up to eight new blocks.
Trace chat_trace(std::size_t requests) {
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> length(kConversations, 0);
  std::vector<std::uint64_t> round(kConversations, 0);
  Trace trace;
  for (std::size_t i = 0; i < requests; ++i) {
    const std::uint64_t who = random() % kConversations;
    length[who] += 1 + random() % 8;
    if (length[who] > kMostBlocks) {  // it ends, and another one begins
      length[who] = 1;
      ++round[who];
    }
    TraceRequest request;
    request.arrival_ns = static_cast<TimeNs>(i) * kBetweenRequestsNs;
    for (std::uint64_t block = 0; block < length[who]; ++block)
      request.block_ids.push_back((round[who] * kConversations + who) * kMostBlocks + block + 1);
    trace.requests.push_back(std::move(request));
  }
  return trace;
}

void replay(benchmark::State& state) {
  cli::Workload workload;
  workload.trace = chat_trace(static_cast<std::size_t>(state.range(0)));
  workload.machine = *machine_from_preset("dgx-h100");
  workload.block_bytes = kBlockBytes;
  workload.local_bytes = 8ULL << 30;
  workload.peer_bytes = 20ULL << 30;
  workload.host_bytes = 200ULL << 30;
  workload.activity = cli::OwnerActivity::bursty;
  std::uint64_t accesses = 0;
  std::uint64_t wrong = 0;
  for (auto _ : state) {
    cli::Progress progress("", 1);
    const auto run = cli::run_workload(workload, true, progress);
    if (!run) {
      state.SkipWithError(run.error().message.c_str());
      return;
    }
    accesses += run->engine.accesses;
    wrong += run->engine.wrong_bytes;
  }
  if (wrong != 0) state.SkipWithError("wrong bytes");
  state.counters["requests"] = benchmark::Counter(
      static_cast<double>(workload.trace.requests.size() * state.iterations()), benchmark::Counter::kIsRate);
  state.counters["blocks"] = benchmark::Counter(static_cast<double>(accesses), benchmark::Counter::kIsRate);
}

BENCHMARK(replay)->Arg(200)->Arg(smoke() ? 400 : 5000)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace harvest::bench

BENCHMARK_MAIN();
