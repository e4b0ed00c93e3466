// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/kv.hpp"
#include "cli/kv/options.hpp"
#include "cli/kv/serve.hpp"
#include "cli/output.hpp"

/// `harvest bench kv serve`: the options, and what is printed of the strategies.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Serves a stream of requests with continuous batching, chunked prefill and pages of KV cache, in\n"
    "virtual time, under several strategies that differ in where prefixes are kept:\n"
    "  recompute   on the GPU alone, as long as there is room\n"
    "  host        in host memory too, by a BlockCache without peers: what a good connector does\n"
    "  peer+host   on peers too, but copied fragment by fragment, while the GPU waits: the paper's way\n"
    "  harvest     on peers and host memory by a BlockCache, layer by layer while the GPU computes\n"
    "Caches, copies and owners are real, on a simulated machine; computation takes what a roofline of the\n"
    "card says. bound is the server `host` whose GPU has the peers' memory too, and for which what is on "
    "the\n"
    "host is there at once.\n"
    "Before a prefix is loaded, the time that this takes is weighed against computing it anew.\n"
    "When requests wait for room on the GPU, host and harvest take turns (kv::Turns): who has had "
    "--turn-tokens\n"
    "tokens may have to leave for one that is new; it waits in host memory, or on the peers.\n"
    "\n"
    "A model that does not fit on one GPU is split over several; one of them is simulated, with its part of\n"
    "heads, weights and the machine's peers. --trace takes a recording in the format of Mooncake\n"
    "(FAST25-release/traces of kvcache-ai/Mooncake), or synthetic: conversations that are made up.\n"
    "\n"
    "Example:\n"
    "  harvest bench kv serve --trace conversation_trace.jsonl.gz --system dgx-h100 --model llama-3-70b\n"
    "  harvest bench kv serve --requests 500 --rate 2 --owner-activity bursty --json\n"
    "\n"
    "It answers 1 if a block held what is not its own.";

constexpr std::uint64_t kMostRequests = 1ULL << 31;
constexpr std::uint64_t kMadeUpRequests = 2000;

struct Options {
  KvMachineOptions machine;
  std::string trace = "synthetic";
  double rate = 1;
  std::uint64_t requests = kMostRequests;
  std::vector<std::string> strategies;
  std::uint64_t chunk_tokens = 2048;
  std::uint64_t turn_tokens = 128;
  std::uint64_t ttft_limit_ms = 5000;
  std::uint64_t tbt_limit_ms = 200;
  std::string owner_activity = "none";
  std::uint64_t seed = 1;
  bool json = false;
};

Result<Trace> open_trace(const Options& options) {
  if (options.trace == "synthetic")
    return synthetic_conversations(std::min(options.requests, kMadeUpRequests), options.seed);
  auto trace = read_trace({.path = options.trace});
  if (trace) spread_arrivals(*trace);
  return trace;
}

Result<ServeRun> run_of(const Options& options) {
  const auto place = place_of(options.machine);
  if (!place) return tl::unexpected(place.error());
  ServeRun run{*place};
  const auto activity = parse_owner_activity(options.owner_activity);
  if (!activity) return fail(activity.error().code, "--owner-activity: " + activity.error().message);
  run.activity = *activity;
  const auto trace = open_trace(options);
  if (!trace) return tl::unexpected(trace.error());
  run.requests = requests_of(*trace, options.rate, options.requests);
  run.chunk_tokens = static_cast<std::uint32_t>(options.chunk_tokens);
  run.ttft_limit_ns = static_cast<TimeNs>(options.ttft_limit_ms) * 1'000'000;
  run.tbt_limit_ns = static_cast<TimeNs>(options.tbt_limit_ms) * 1'000'000;
  run.take_turns = run.new_first = options.turn_tokens > 0;
  if (run.take_turns) run.quantum_tokens = static_cast<std::uint32_t>(options.turn_tokens);
  run.seed = options.seed;
  return run;
}

Json by_tier(const std::array<std::uint64_t, kTiers>& counts) {
  return {{"local", counts[static_cast<std::size_t>(Tier::local)]},
          {"peer", counts[static_cast<std::size_t>(Tier::peer)]},
          {"host", counts[static_cast<std::size_t>(Tier::host)]}};
}

Json to_json(const ServeFigures& figures, const ServeFigures& bound) {
  Json json{{"strategy", to_string(figures.strategy)}};
  json.update(cli::to_json(figures));
  json["goodput_per_s"] = figures.goodput_per_s;
  json["blocks"] = figures.blocks;
  json["hits"] = by_tier(figures.hits);
  json["recomputed"] = figures.recomputed;
  json["lost"] = figures.lost;
  json["stored"] = figures.cache.stored;
  json["stores_given_up"] = figures.cache.stores_given_up;
  json["owners"] = {
      {"rises", figures.owners.rises}, {"refused", figures.owners.refused}, {"late", figures.owners.late}};
  json["bound"] = {{"ttft_ms_p90", static_cast<double>(bound.ttft.p90_ns) / 1e6},
                   {"tokens_per_s", bound.tokens_per_s},
                   {"hits", by_tier(bound.hits)}};
  return json;
}

Result<Json> to_json(const Options& options, const ServeRun& run, const std::vector<ServeFigures>& results,
                     const ServeFigures& bound) {
  auto header = kv_header(run, "kv_serve");
  if (!header) return header;
  Json& json = *header;
  json["trace"] = options.trace;
  json["requests"] = run.requests.size();
  json["rate"] = options.rate;
  json["block_bytes"] = run.block_bytes();
  json["chunk_tokens"] = run.chunk_tokens;
  json["turn_tokens"] = options.turn_tokens;
  json["ttft_limit_ms"] = options.ttft_limit_ms;
  json["tbt_limit_ms"] = options.tbt_limit_ms;
  json["owner_activity"] = options.owner_activity;
  json["results"] = Json::array();
  for (const ServeFigures& figures : results) json["results"].push_back(to_json(figures, bound));
  return header;
}

std::vector<std::string> row_of(const ServeFigures& figures) {
  const auto share = [&](std::uint64_t part) {
    const double all = std::max<double>(1, static_cast<double>(figures.blocks));
    return fmt::format("{:.1f} %", 100 * static_cast<double>(part) / all);
  };
  const auto time = [](TimeNs ns) { return format_ns(static_cast<double>(ns)); };
  return {std::string(to_string(figures.strategy)),
          time(figures.ttft.p50_ns),
          time(figures.ttft.p90_ns),
          time(figures.ttft.p99_ns),
          time(figures.tbt.p99_ns),
          fmt::format("{:.0f}", figures.tokens_per_s),
          fmt::format("{:.2f}", figures.goodput_per_s),
          share(figures.hits[0]),
          share(figures.hits[1]),
          share(figures.hits[2]),
          fmt::format("{:.2f} %", 100 * figures.exposed_stall_fraction)};
}

void print_table(const Options& options, const ServeRun& run, const std::vector<ServeFigures>& results,
                 const ServeFigures& bound) {
  fmt::print("{} over {} of the GPUs of {} (SIMULATED): {} requests of {}, {:g} times as fast, {} owners\n",
             run.rank.model().name, run.rank.ranks(), run.machine.name, format_count(run.requests.size()),
             options.trace, options.rate, options.owner_activity);
  fmt::print("blocks of {} tokens, {}; {} local, {} on each of {} peers, {} on the host\n\n",
             kServedBlockTokens, format_bytes(run.block_bytes()), format_bytes(run.local_bytes),
             format_bytes(run.peer_bytes), run.peers.size(), format_bytes(run.host_bytes));
  Table table({"strategy", "TTFT p50", "p90", "p99", "TBT p99", "tokens/s", "good/s", "local", "peer", "host",
               "stalled"});
  for (const ServeFigures& figures : results) table.add(row_of(figures));
  table.add(row_of(bound));
  fmt::print("{}", table.text());
  for (const ServeFigures& figures : results)
    if (figures.owners.rises > 0)
      fmt::print("  {}: owners: {} rises, {} refused, {} reclaims late\n", to_string(figures.strategy),
                 figures.owners.rises, figures.owners.refused, figures.owners.late);
}

Result<ServeFigures> serve_with_progress(const ServeRun& run, ServeStrategy strategy) {
  Progress progress(std::string(to_string(strategy)), run.requests.size());
  return serve(run, strategy, progress);
}

Exit run(const Options& options) {
  std::vector<ServeStrategy> strategies;
  for (const std::string& name : options.strategies) {
    const auto strategy = serve_strategy_from(name);
    if (!strategy)
      return complain(Exit::bad_input, "bench kv serve", "--strategy: " + strategy.error().message);
    strategies.push_back(*strategy);
  }
  if (strategies.empty())
    strategies = {ServeStrategy::recompute, ServeStrategy::host, ServeStrategy::peer_host,
                  ServeStrategy::harvest};
  const auto run = run_of(options);
  if (!run) return complain_of("kv serve", run.error());
  const auto bound = serve_with_progress(*run, ServeStrategy::bound);
  if (!bound) return complain_of("kv serve", bound.error());
  std::vector<ServeFigures> results;
  for (const ServeStrategy strategy : strategies) {
    auto figures = serve_with_progress(*run, strategy);
    if (!figures) return complain_of("kv serve", figures.error());
    results.push_back(std::move(*figures));
  }
  if (options.json) {
    const auto json = to_json(options, *run, results, *bound);
    if (!json) return complain_of("kv serve", json.error());
    print_json(*json);
  } else {
    print_table(options, *run, results, *bound);
  }
  const bool right = std::ranges::all_of(results, [](const ServeFigures& f) { return f.wrong_bytes == 0; });
  return right ? Exit::ok : Exit::failed;
}

}  // namespace

void add_kv_serve(CLI::App& kv, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = kv.add_subcommand("serve", "A server under a stream of requests, simulated");
  command->footer(kTeaching);
  add_kv_machine(*command, options->machine);
  add_name(*command, "--trace", options->trace, "Requests: a recording, or synthetic")
      ->type_name("FILE|synthetic");
  add_factor(*command, "--rate", options->rate, "How many times as fast requests come");
  add_count(*command, "--requests", options->requests, {1, kMostRequests}, "Only the first N requests")
      ->default_str(fmt::format("all, {} made up", kMadeUpRequests));
  add_names(*command, "--strategy", options->strategies,
            fmt::format("Of {}; without it all", fmt::join(serve_strategy_names(), ", ")));
  add_count(*command, "--chunk-tokens", options->chunk_tokens, {16, 1ULL << 20},
            "Computed in one pass over the model");
  add_count(*command, "--turn-tokens", options->turn_tokens, {0, 1ULL << 20}, "Of a turn; 0: no turns");
  add_count(*command, "--ttft-limit-ms", options->ttft_limit_ms, {1, 1ULL << 40},
            "A request is good whose first token comes within this");
  add_count(*command, "--tbt-limit-ms", options->tbt_limit_ms, {1, 1ULL << 40},
            "And whose tokens then follow within this of each other, on average");
  add_name(*command, "--owner-activity", options->owner_activity,
           "Of the peers' owners: none, steady or bursty");
  add_count(*command, "--seed", options->seed, {0, UINT64_MAX}, "Of made-up requests and owners");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
