// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/moe/gate_ahead.hpp"
#include "cli/moe/strategies.hpp"

/// `harvest bench moe`: a server of a mixture of experts that do not fit, under several strategies.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Serves a model whose experts do not all fit on one GPU of a simulated machine, with each strategy in "
    "turn:\n"
    "  all_local        all experts on the GPU, where they fit: what nothing can beat\n"
    "  host             a cache of experts over host memory alone\n"
    "  static_peer      experts that are not local lie in a fixed pool on the peers\n"
    "  expert_parallel  experts split over all GPUs, which lend their arithmetic too\n"
    "  harvest          a cache of experts over peers and host memory\n"
    "Copies are simulated one by one; computation takes what a roofline of the card says.\n"
    "bound is a roofline too: nothing is fetched before its router has named it, and wires and arithmetic\n"
    "overlap perfectly. A predictor may beat it.\n"
    "The predictor gate_ahead stands for the next layer's router, applied one layer early to what goes into\n"
    "this layer. That is an assumption, no router is asked: of the experts that the next layer needs each "
    "is\n"
    "named with probability --gate-recall, and for each that is not, a wrong one. (78.8 % of a layer's "
    "experts\n"
    "are named one layer early: Fate, arXiv 2502.12224.) Below 0.5 the cache follows no guess.\n"
    "\n"
    "Example:\n"
    "  harvest bench moe --model mixtral-8x7b --batch 8 --local-fraction 0.5\n"
    "  harvest bench moe --system dgx-h100 --model qwen3-235b-a22b --batch 1,8 --local-fraction 0.1\n"
    "  harvest bench moe --phase prefill --tokens 2048 --owner-activity bursty --json";

struct Options {
  std::string system = "2xh100-nvl";
  std::string model = "mixtral-8x7b";
  std::vector<std::uint64_t> batches{8};
  std::vector<double> fractions{0.5};
  std::string phase = "decode";
  std::uint64_t tokens = 512;
  std::uint64_t context = 1024;
  std::string routing;
  std::vector<std::string> strategies;
  std::string predictor;
  double gate_recall = kGateRecall;
  std::string eviction;
  std::uint64_t warm_up = 64;
  std::uint64_t steps = 64;
  std::string owner_activity = "none";
  std::uint64_t seed = 1;
  bool json = false;
};

constexpr std::uint64_t kMostSteps = 1'000'000;
constexpr std::uint64_t kMostBatch = 4096;
constexpr std::uint64_t kMostTokens = 1ULL << 20;

struct Case {
  std::uint64_t batch = 0;
  double fraction = 0;
  std::vector<MoeFigures> results;
};

Error of_option(const std::string& option, const Error& error) {
  return {error.code, option + ": " + error.message};
}

template <typename Value>
Result<Value> for_option(const std::string& option, Result<Value> result) {
  if (!result) return tl::unexpected(of_option(option, result.error()));
  return result;
}

/// Steps of a recording again and again, or of the generator.
Result<std::function<RoutingSource()>> open_routing(const Options& options, const MoeShape& shape,
                                                    std::uint64_t batch) {
  if (!options.routing.empty()) {
    auto read = moe::read_routing(options.routing, {shape.layers, shape.experts, shape.top_k});
    if (!read) return tl::unexpected(of_option("--routing", read.error()));
    auto trace = std::make_shared<moe::RoutingTrace>(std::move(*read));
    const auto wanted = options.phase == "prefill" ? moe::Phase::prefill : moe::Phase::decode;
    bool there = options.phase == "both";
    for (std::size_t i = 0; i < trace->size() && !there; ++i) there = trace->step(i).phase() == wanted;
    if (!there)
      return fail(ErrorCode::malformed,
                  fmt::format("--routing: '{}' has no step of {}", options.routing, options.phase));
    return [trace] {
      return [trace, next = std::size_t{0}]() mutable { return trace->step(next++ % trace->size()); };
    };
  }
  const auto model = moe::find_routing_model(shape.name);
  if (!model) return tl::unexpected(model.error());
  moe::RoutingTraffic traffic;
  traffic.batch = static_cast<std::uint32_t>(batch);
  traffic.seed = options.seed;
  const auto tokens = static_cast<std::uint32_t>(options.tokens);
  traffic.prompt_tokens = {tokens, tokens};
  if (options.phase == "prefill") traffic.output_tokens = {1, 1};
  auto tried = moe::RoutingGenerator::create(*model, traffic);
  if (!tried) return tl::unexpected(tried.error());
  return [model = *model, traffic] {
    auto generator =
        std::make_shared<moe::RoutingGenerator>(std::move(*moe::RoutingGenerator::create(model, traffic)));
    return [generator] { return generator->next(); };
  };
}

Result<MoeRun> run_of(const Options& options) {
  MoeRun run;
  const auto machine = for_option("--system", load_machine(options.system));
  if (!machine) return tl::unexpected(machine.error());
  run.machine = *machine;
  const auto card = for_option("--system", find_card(machine->devices[0].info.name));
  if (!card) return tl::unexpected(card.error());
  run.card = *card;
  const auto shape = for_option("--model", find_moe_shape(options.model));
  if (!shape) return tl::unexpected(shape.error());
  run.shape = *shape;
  const auto activity = for_option("--owner-activity", parse_owner_activity(options.owner_activity));
  if (!activity) return tl::unexpected(activity.error());
  run.activity = *activity;
  if (!options.eviction.empty())
    if (const auto known = for_option("--eviction", moe::make_slot_value(options.eviction)); !known)
      return tl::unexpected(known.error());
  if (!options.predictor.empty() && options.predictor != kGateAhead) {
    const auto known = moe::make_predictor(options.predictor, shape->description());
    if (!known) return tl::unexpected(of_option("--predictor", known.error()));
  }
  for (const std::string& strategy : options.strategies)
    if (std::ranges::find(moe_strategy_names(), strategy) == moe_strategy_names().end())
      return fail(ErrorCode::not_found, fmt::format("--strategy: no strategy '{}'; known are {}", strategy,
                                                    fmt::join(moe_strategy_names(), ", ")));
  if (options.phase == "decode")
    run.phase = moe::Phase::decode;
  else if (options.phase == "prefill")
    run.phase = moe::Phase::prefill;
  else if (options.phase != "both")
    return fail(ErrorCode::not_found,
                fmt::format("--phase: no phase '{}'; known are decode, prefill, both", options.phase));
  run.predictor = options.predictor;
  run.gate_recall = options.gate_recall;
  run.eviction = options.eviction;
  run.context = static_cast<double>(options.context);
  run.warm_up = options.warm_up;
  run.steps = options.steps;
  run.seed = options.seed;
  return run;
}

Result<Json> to_json(const Options& options, const MoeRun& run, const std::vector<Case>& cases) {
  const auto backend = make_simulated_backend(run.machine, {.bytes = SimulatedBytes::phantom});
  if (!backend) return tl::unexpected(backend.error());
  Json json = header_of(**backend, false, "moe");
  json["model"] = run.shape.name;
  json["expert_bytes"] = run.shape.expert_bytes();
  json["pool_bytes"] = run.shape.pool_bytes();
  json["phase"] = options.phase;
  json["context_tokens"] = options.context;
  json["warm_up_steps"] = options.warm_up;
  json["steps"] = options.steps;
  json["predictor"] = options.predictor.empty() ? moe::predictor_names().front() : options.predictor;
  if (options.predictor == kGateAhead) json["assumed"] = {{"gate_recall", options.gate_recall}};
  json["eviction"] = options.eviction.empty() ? moe::expert_eviction_names().front() : options.eviction;
  json["routing"] = options.routing.empty() ? "generated" : options.routing;
  json["owner_activity"] = options.owner_activity;
  json["seed"] = options.seed;
  json["cases"] = Json::array();
  for (const Case& one : cases) {
    Json results = Json::array();
    for (const MoeFigures& figures : one.results) {
      Json result;
      result["strategy"] = figures.strategy;
      if (!figures.absent.empty()) {
        result["absent"] = figures.absent;
        results.push_back(result);
        continue;
      }
      result["tokens_per_s"] = figures.tokens_per_s;
      result["hit"] = {{"local", figures.hit[0]}, {"peer", figures.hit[1]}, {"host", figures.hit[2]}};
      result["exposed_stall_fraction"] = figures.exposed_stall;
      if (figures.bound_tokens_per_s > 0) result["bound_tokens_per_s"] = figures.bound_tokens_per_s;
      result["bytes_moved"] = figures.bytes_moved;
      if (figures.strategy == "harvest" || figures.strategy == "host") {
        result["stall"] = {{"exposed_ns", figures.stall.exposed_ns},
                           {"hidden_ns", figures.stall.hidden_ns},
                           {"unseen_ns", figures.stall.unseen_ns}};
        result["guesses"] = figures.cache.guesses;
        result["guesses_used"] = figures.cache.guesses_used;
        result["wasted_bytes"] = figures.cache.wasted_bytes;
      }
      if (figures.strategy == "harvest")
        result["owners"] = {{"rises", figures.owners.rises},
                            {"refused", figures.owners.refused},
                            {"late", figures.owners.late}};
      results.push_back(result);
    }
    json["cases"].push_back({{"batch", one.batch}, {"local_fraction", one.fraction}, {"results", results}});
  }
  return json;
}

void print_tables(const Options& options, const MoeRun& run, const std::vector<Case>& cases) {
  fmt::print("{} on {} (SIMULATED), {}: {} layers of {} experts of {}, {} in all\n\n", run.shape.name,
             run.machine.name, options.phase, run.shape.layers, run.shape.experts,
             format_bytes(run.shape.expert_bytes()), format_bytes(run.shape.pool_bytes()));
  if (options.predictor == kGateAhead)
    fmt::print("ASSUMED: {} names {:.1f} % of the next layer's experts, and a wrong one for each other\n\n",
               kGateAhead, 100 * options.gate_recall);
  for (const Case& one : cases) {
    fmt::print("batch {}, {:g} of the experts local\n", one.batch, one.fraction);
    Table table({"strategy", "tokens/s", "local", "peer", "host", "stalled", "of bound"});
    std::vector<std::string> notes;
    for (const MoeFigures& figures : one.results) {
      if (!figures.absent.empty()) {
        table.add({figures.strategy, "-", "-", "-", "-", "-", "-"});
        notes.push_back(figures.strategy + ": " + figures.absent);
        continue;
      }
      const auto percent = [](double share) { return fmt::format("{:.1f} %", 100 * share); };
      const bool moves = figures.strategy != "expert_parallel";
      table.add({figures.strategy, fmt::format("{:.1f}", figures.tokens_per_s),
                 moves ? percent(figures.hit[0]) : "-", moves ? percent(figures.hit[1]) : "-",
                 moves ? percent(figures.hit[2]) : "-", percent(figures.exposed_stall),
                 figures.bound_tokens_per_s > 0 ? percent(figures.tokens_per_s / figures.bound_tokens_per_s)
                                                : "-"});
      if (figures.owners.rises > 0)
        notes.push_back(fmt::format("owners: {} rises, {} refused, {} reclaims late", figures.owners.rises,
                                    figures.owners.refused, figures.owners.late));
    }
    fmt::print("{}", table.text());
    for (const std::string& note : notes) fmt::print("  {}\n", note);
    fmt::print("\n");
  }
}

Exit run(const Options& options) {
  auto base = run_of(options);
  if (!base) return complain_of("moe", base.error());
  std::vector<std::string> strategies = options.strategies;
  if (strategies.empty()) strategies.assign(moe_strategy_names().begin(), moe_strategy_names().end());
  std::vector<Case> cases;
  for (const std::uint64_t batch : options.batches) {
    auto routing = open_routing(options, base->shape, batch);
    if (!routing) return complain_of("moe", routing.error());
    base->routing = *routing;
    for (const double fraction : options.fractions) {
      base->local_fraction = fraction;
      Case one{batch, fraction, {}};
      for (const std::string& strategy : strategies) {
        Progress progress(fmt::format("{} batch {} fraction {:g}", strategy, batch, fraction),
                          options.warm_up + options.steps);
        auto figures = run_strategy(*base, strategy, progress);
        if (!figures) return complain_of("moe", of_option(strategy, figures.error()));
        one.results.push_back(std::move(*figures));
      }
      cases.push_back(std::move(one));
    }
  }
  if (!options.json) {
    print_tables(options, *base, cases);
    return Exit::ok;
  }
  const auto json = to_json(options, *base, cases);
  if (!json) return complain_of("moe", json.error());
  print_json(*json);
  return Exit::ok;
}

/// From 0 to 1.
double share_of(const std::string& option, const std::string& text) {
  double value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !(value >= 0 && value <= 1))
    throw CLI::ValidationError(option, fmt::format("'{}' is not a number from 0 to 1", text));
  return value;
}

void add_share(CLI::App& command, const std::string& name, double& target, const std::string& description) {
  command
      .add_option_function<std::string>(
          name, [name, &target](const std::string& text) { target = share_of(name, text); }, description)
      ->type_name("NUMBER")
      ->default_str(fmt::format("{}", target));
}

/// "0,0.25,1": each from 0 to 1.
void add_fractions(CLI::App& command, const std::string& name, std::vector<double>& target,
                   const std::string& description) {
  command
      .add_option_function<std::string>(
          name,
          [name, &target](const std::string& text) {
            std::vector<double> fractions;
            for (const std::string& part : split_list(text)) fractions.push_back(share_of(name, part));
            if (fractions.empty()) throw CLI::ValidationError(name, "the list is empty");
            target = std::move(fractions);
          },
          description)
      ->type_name("NUMBER,NUMBER,...")
      ->default_str("0.5");
}

}  // namespace

void add_moe(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand("moe", "A server of experts that do not fit, simulated");
  command->footer(kTeaching);
  std::string models;
  for (const MoeShape& shape : moe_shapes())
    models += fmt::format("{}{}", models.empty() ? "" : ", ", shape.name);
  add_name(*command, "--system", options->system, "A machine's preset or JSON file: " + simulated_names());
  add_name(*command, "--model", options->model, "A model: " + models);
  add_counts(*command, "--batch", options->batches, {1, kMostBatch}, "Sequences at a time");
  add_fractions(*command, "--local-fraction", options->fractions,
                "Shares of the experts with a slot on the GPU");
  add_name(*command, "--phase", options->phase, "Steps that are served: decode, prefill or both");
  add_count(*command, "--tokens", options->tokens, {1, kMostTokens}, "Of a prompt");
  add_count(*command, "--context", options->context, {0, kMostTokens}, "Tokens that attention looks back on");
  add_name(*command, "--routing", options->routing,
           "A recording of a model's routing, instead of the generator's");
  add_names(*command, "--strategy", options->strategies, "Strategies; without it all");
  add_name(*command, "--predictor", options->predictor,
           fmt::format("Of host and harvest: {}, {}", fmt::join(moe::predictor_names(), ", "), kGateAhead));
  add_share(*command, "--gate-recall", options->gate_recall,
            "Assumed of gate_ahead: the share of a layer's experts that it names");
  add_name(*command, "--eviction", options->eviction,
           fmt::format("Of host and harvest: {}", fmt::join(moe::expert_eviction_names(), ", ")));
  add_count(*command, "--warm-up", options->warm_up, {0, kMostSteps}, "Steps before those that count");
  add_count(*command, "--steps", options->steps, {1, kMostSteps}, "Steps that count");
  add_name(*command, "--owner-activity", options->owner_activity,
           "Of the peers' owners: none, steady or bursty");
  add_count(*command, "--seed", options->seed, {0, UINT64_MAX}, "Of routing and owners");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
