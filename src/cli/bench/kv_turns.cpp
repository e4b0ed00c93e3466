// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/kv.hpp"
#include "cli/kv/options.hpp"
#include "cli/kv/serve.hpp"
#include "cli/output.hpp"

/// `harvest bench kv turns`: the options, and what is printed.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "More sequences come than the GPU has room for, in virtual time:\n"
    "  run_to_completion  who is on the GPU stays until it is done; only where answers outgrow the room "
    "does\n"
    "                     the last that came leave, and is computed anew\n"
    "  turns_over_host    turns of --turn-tokens tokens; what leaves waits in host memory\n"
    "  turns_over_peer    the same; it waits on peers\n"
    "Turns are kv::Turns, blocks leave and come back through a BlockCache, and what does not fill a block "
    "is\n"
    "computed anew. The order of requests is the same in all.\n"
    "\n"
    "Example:\n"
    "  harvest bench kv turns --system 2xh100-nvl --model llama-3-8b --local-bytes 8GiB --rate 20\n"
    "  harvest bench kv turns --turn-tokens 16 --json";

struct Options {
  KvMachineOptions machine;
  Crowd crowd;
  std::uint64_t turn_tokens = 64;
  std::uint64_t block_tokens = 64;
  std::uint64_t seed = 1;
  bool json = false;
};

struct Mode {
  const char* name;
  ServeStrategy strategy;
  bool turns;
};
constexpr std::array kModes{Mode{"run_to_completion", ServeStrategy::recompute, false},
                            Mode{"turns_over_host", ServeStrategy::host, true},
                            Mode{"turns_over_peer", ServeStrategy::harvest, true}};

Result<ServeRun> run_of(const Options& options) {
  const auto place = place_of(options.machine);
  if (!place) return tl::unexpected(place.error());
  ServeRun run{*place};
  run.requests = crowd_of(options.crowd, options.seed);
  run.block_tokens = static_cast<std::uint32_t>(options.block_tokens);
  run.quantum_tokens = static_cast<std::uint32_t>(options.turn_tokens);
  run.seed = options.seed;
  return run;
}

Result<ServeFigures> serve_as(ServeRun run, const Mode& mode) {
  run.take_turns = mode.turns;
  if (mode.strategy == ServeStrategy::harvest) run.host_bytes = 0;
  Progress progress(mode.name, run.requests.size());
  return serve(run, mode.strategy, progress);
}

Json to_json(const Mode& mode, const ServeFigures& figures) {
  Json json{{"mode", mode.name}};
  json.update(cli::to_json(figures));
  return json;
}

Result<Json> to_json(const Options& options, const ServeRun& run, const std::vector<ServeFigures>& results) {
  auto header = kv_header(run, "kv_turns");
  if (!header) return header;
  Json& json = *header;
  json["sequences"] = run.requests.size();
  json["rate"] = options.crowd.per_s;
  json["prompt_tokens"] = options.crowd.prompt_tokens;
  json["output_tokens"] = options.crowd.output_tokens;
  json["turn_tokens"] = run.quantum_tokens;
  json["results"] = Json::array();
  for (std::size_t i = 0; i < results.size(); ++i) json["results"].push_back(to_json(kModes[i], results[i]));
  return header;
}

void print_table(const Options& options, const ServeRun& run, const std::vector<ServeFigures>& results) {
  fmt::print("{} on {} (SIMULATED): {} sequences, {:g} a second, of {} + {} tokens on average\n",
             run.rank.model().name, run.machine.name, format_count(run.requests.size()), options.crowd.per_s,
             options.crowd.prompt_tokens, options.crowd.output_tokens);
  fmt::print("room for {} tokens, {}; turns of {} tokens, blocks of {}, {}\n\n",
             format_count(run.local_bytes / run.rank.kv_bytes_per_token()), format_bytes(run.local_bytes),
             run.quantum_tokens, run.block_tokens, format_bytes(run.block_bytes()));
  Table table({"mode", "tokens/s", "TTFT p50", "p90", "p99", "TBT p50", "p99", "left", "stalled"});
  const auto time = [](TimeNs ns) { return format_ns(static_cast<double>(ns)); };
  for (std::size_t i = 0; i < results.size(); ++i) {
    const ServeFigures& figures = results[i];
    table.add({kModes[i].name, fmt::format("{:.0f}", figures.tokens_per_s), time(figures.ttft.p50_ns),
               time(figures.ttft.p90_ns), time(figures.ttft.p99_ns), time(figures.tbt.p50_ns),
               time(figures.tbt.p99_ns), format_count(figures.left),
               fmt::format("{:.2f} %", 100 * figures.exposed_stall_fraction)});
  }
  fmt::print("{}", table.text());
}

Exit run(const Options& options) {
  const auto run = run_of(options);
  if (!run) return complain_of("kv turns", run.error());
  std::vector<ServeFigures> results;
  for (const Mode& mode : kModes) {
    auto figures = serve_as(*run, mode);
    if (!figures) return complain_of("kv turns", figures.error());
    results.push_back(std::move(*figures));
  }
  if (options.json) {
    const auto json = to_json(options, *run, results);
    if (!json) return complain_of("kv turns", json.error());
    print_json(*json);
  } else {
    print_table(options, *run, results);
  }
  for (const ServeFigures& figures : results)
    if (figures.wrong_bytes != 0) return Exit::failed;
  return Exit::ok;
}

}  // namespace

void add_kv_turns(CLI::App& kv, Action& chosen) {
  auto options = std::make_shared<Options>();
  options->machine.local = "8GiB";
  CLI::App* command = kv.add_subcommand("turns", "More sequences than fit take turns, simulated");
  command->footer(kTeaching);
  add_kv_machine(*command, options->machine);
  add_count(*command, "--sequences", options->crowd.sequences, {1, 1'000'000}, "How many come");
  add_factor(*command, "--rate", options->crowd.per_s, "How many come in a second");
  add_count(*command, "--prompt-tokens", options->crowd.prompt_tokens, {1, 1ULL << 20},
            "Of a prompt, on average");
  add_count(*command, "--output-tokens", options->crowd.output_tokens, {1, 1ULL << 20},
            "Of an answer, on average");
  add_count(*command, "--turn-tokens", options->turn_tokens, {1, 1ULL << 20}, "Of a turn");
  add_count(*command, "--block-tokens", options->block_tokens, {1, 4096}, "Of a block, which is a page");
  add_count(*command, "--seed", options->seed, {0, UINT64_MAX}, "Of the requests");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
