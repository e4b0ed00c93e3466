// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/moe/routing.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/routing_evictions.hpp"
#include "cli/routing_summary.hpp"

/// `harvest routing`: recordings of which experts a model picks, made up or read, and what they are like.
namespace harvest::cli {
namespace {

constexpr const char* kTeaching =
    "Makes up which experts a model's routers pick, as a seeded generator that was fitted to published\n"
    "figures does, or reads a recording. Shows how often a token needs what the one before it needed, how\n"
    "well a layer tells the next, and what a cache for each layer would hit; or writes a recording.\n"
    "\n"
    "Example:\n"
    "  harvest routing --model qwen3-30b-a3b --output-tokens 257\n"
    "  harvest routing --model qwen3-30b-a3b --batch 8 --evictions\n"
    "  harvest routing --model mixtral-8x7b --batch 8 --steps 500 --write mixtral.jsonl.gz\n"
    "  harvest routing --model 32x8x2 --routing mixtral.jsonl.gz";

/// 1 GiB of a recording.
constexpr std::uint64_t kMostExperts = 1ULL << 28U;

struct Options {
  std::string model;
  std::string routing;
  std::uint64_t seed = 1;
  std::uint64_t steps = 256;
  std::uint64_t batch = 1;
  std::vector<std::uint64_t> prompt_tokens{64, 512};
  std::vector<std::uint64_t> output_tokens{64, 512};
  std::string write;
  bool summary = false;
  bool evictions = false;
  bool json = false;
};

/// "32x8x2": layers, experts and how many a token is sent to. Nothing if that is not what it is.
std::optional<moe::RoutingShape> parse_shape(std::string_view text) {
  std::vector<std::uint32_t> numbers;
  for (std::string_view rest = text;; rest.remove_prefix(rest.find('x') + 1)) {
    const auto number = parse_count(rest.substr(0, rest.find('x')), 1, UINT32_MAX);
    if (!number) return std::nullopt;
    numbers.push_back(static_cast<std::uint32_t>(*number));
    if (rest.find('x') == std::string_view::npos) break;
  }
  if (numbers.size() != 3) return std::nullopt;
  return moe::RoutingShape{numbers[0], numbers[1], numbers[2]};
}

/// A model whose routers can be imitated, or for a recording any shape.
Result<moe::RoutingModel> model_of(const Options& options) {
  if (const auto shape = options.routing.empty() ? std::nullopt : parse_shape(options.model)) {
    if (const Status valid = shape->validate(); !valid)
      return fail(valid.error().code, fmt::format("--model: {}", valid.error().message));
    return moe::RoutingModel{options.model, *shape, {}};
  }
  auto model = moe::find_routing_model(options.model);
  if (!model) return fail(model.error().code, fmt::format("--model: {}", model.error().message));
  return model;
}

Result<moe::TokenRange> range_of(std::string_view option, const std::vector<std::uint64_t>& counts) {
  if (counts.size() > 2)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: {} numbers; write one, or the least and the most", option, counts.size()));
  if (counts.front() > counts.back())
    return fail(ErrorCode::invalid_argument, fmt::format("{}: the least, {}, is more than the most, {}",
                                                         option, counts.front(), counts.back()));
  return moe::TokenRange{static_cast<std::uint32_t>(counts.front()),
                         static_cast<std::uint32_t>(counts.back())};
}

/// That the recording may have. A prompt may need all of them.
std::uint64_t most_experts(const Options& options, const moe::RoutingShape& shape) {
  const std::uint64_t prompts = options.batch * (options.steps / (options.output_tokens.front() - 1) + 1);
  return shape.layers * (options.steps * options.batch * shape.top_k + prompts * shape.experts);
}

/// Until there are as many decode steps as were asked for.
Result<moe::RoutingTrace> generate(const Options& options, const moe::RoutingModel& model) {
  const auto prompt_tokens = range_of("--prompt-tokens", options.prompt_tokens);
  if (!prompt_tokens) return tl::unexpected(prompt_tokens.error());
  const auto output_tokens = range_of("--output-tokens", options.output_tokens);
  if (!output_tokens) return tl::unexpected(output_tokens.error());
  const std::uint64_t most = most_experts(options, model.shape);
  if (most > kMostExperts)
    return fail(ErrorCode::invalid_argument,
                fmt::format("--steps {} with --batch {} may be a recording of {} experts, the limit is {}",
                            options.steps, options.batch, most, kMostExperts));
  auto generator = moe::RoutingGenerator::create(
      model, {static_cast<std::uint32_t>(options.batch), *prompt_tokens, *output_tokens, options.seed});
  if (!generator) return tl::unexpected(generator.error());
  Progress progress("steps", options.steps);
  moe::RoutingTrace trace(model.shape);
  for (std::uint64_t steps = 0; steps < options.steps;) {
    const moe::RoutingStep step = generator->next();
    if (const Status added = trace.add(step); !added) return tl::unexpected(added.error());
    if (step.phase() == moe::Phase::decode) progress.at(++steps);
  }
  return trace;
}

Json to_json(const OverLayers& figures) {
  return {{"mean", figures.mean}, {"min", figures.least}, {"max", figures.most}};
}

/// Of one cache of experts for all layers.
struct Evictions {
  std::uint64_t slots = 0;
  std::vector<EvictionFigures> figures;  ///< none: they were not asked for
};

Result<Evictions> replay_evictions_of(const moe::RoutingTrace& trace) {
  const std::uint64_t experts = std::uint64_t{trace.shape().layers} * trace.shape().experts;
  Evictions evictions{std::max<std::uint64_t>(2, experts * kResidentPercent / 100), {}};
  auto figures = replay_evictions(trace, evictions.slots);
  if (!figures) return tl::unexpected(figures.error());
  evictions.figures = std::move(*figures);
  return evictions;
}

Json to_json(const Options& options, const moe::RoutingModel& model, const RoutingSummary& summary,
             const Evictions& evictions) {
  Json json{{"model", model.name},
            {"layers", model.shape.layers},
            {"experts", model.shape.experts},
            {"top_k", model.shape.top_k},
            {"routing", options.routing},
            {"sequences", summary.sequences},
            {"prefill_steps", summary.prefill_steps},
            {"decode_steps", summary.decode_steps},
            {"decode_tokens", summary.decode_tokens},
            {"prefill_experts", summary.prefill_experts},
            {"distinct_experts", summary.distinct_experts},
            {"overlap", to_json(summary.overlap)},
            {"next_layer", to_json(summary.next_layer)},
            {"skew", to_json(summary.skew)}};
  if (options.routing.empty()) json["seed"] = options.seed;
  json["resident_experts"] = summary.resident;
  json["policies"] = Json::array();
  for (const PolicyFigures& figures : summary.policies) {
    Json policy{{"policy", figures.policy},
                {"miss_ratio", figures.miss_ratio},
                {"miss_ratio_one_by_one", figures.miss_ratio_one_by_one}};
    policy["hit_ratios"] = Json::array();
    for (std::size_t i = 0; i < summary.capacities.size(); ++i)
      policy["hit_ratios"].push_back(
          {{"capacity_experts", summary.capacities[i]}, {"hit_ratio", figures.hit_ratios[i]}});
    json["policies"].push_back(std::move(policy));
  }
  if (!evictions.figures.empty()) json["eviction_slots"] = evictions.slots;
  for (const EvictionFigures& figures : evictions.figures)
    json["evictions"].push_back({{"eviction", figures.eviction}, {"miss_ratio", figures.miss_ratio}});
  return json;
}

void print_ratios(const moe::RoutingShape& shape, const RoutingSummary& summary) {
  Table table({"of a token's experts", "mean", "least layer", "most", "chance"});
  const auto row = [&](const char* what, const OverLayers& figures, double chance) {
    table.add({what, fmt::format("{:.3f}", figures.mean), fmt::format("{:.3f}", figures.least),
               fmt::format("{:.3f}", figures.most), fmt::format("{:.3f}", chance)});
  };
  const double experts = shape.experts;
  row("needed by the token before it too", summary.overlap, shape.top_k / experts);
  row("first one, told by the layer before", summary.next_layer, 1 / experts);
  row("among the layer's most used eighth", summary.skew, std::max(1.0, std::floor(experts / 8)) / experts);
  fmt::print("{}\n", table.text());
}

void print_hits(const RoutingSummary& summary) {
  fmt::print("Hit ratio of a cache for each layer, empty at the beginning, by experts that fit\n\n");
  std::vector<std::string> header{"policy"};
  for (const std::uint64_t capacity : summary.capacities) header.push_back(format_count(capacity));
  Table hits(std::move(header));
  Table misses({"policy", "whole steps", "one by one"});
  for (const PolicyFigures& figures : summary.policies) {
    std::vector<std::string> cells{figures.policy};
    for (const double ratio : figures.hit_ratios) cells.push_back(fmt::format("{:.3f}", ratio));
    hits.add(std::move(cells));
    misses.add({figures.policy, fmt::format("{:.3f}", figures.miss_ratio),
                fmt::format("{:.3f}", figures.miss_ratio_one_by_one)});
  }
  fmt::print(
      "{}\nMiss ratio with room for {} of them, {} %, if nothing goes for what its own step needs,\n"
      "and if experts come one by one\n\n{}",
      hits.text(), summary.resident, kResidentPercent, misses.text());
}

void print_evictions(const Evictions& evictions) {
  Table table({"eviction", "misses"});
  for (const EvictionFigures& figures : evictions.figures)
    table.add({figures.eviction, fmt::format("{:.3f}", figures.miss_ratio)});
  fmt::print("\nMiss ratio of one cache of experts for all layers, with {} slots, {} %\n\n{}",
             format_count(evictions.slots), kResidentPercent, table.text());
}

void print_summary(const Options& options, const moe::RoutingModel& model, const RoutingSummary& summary) {
  const std::string source =
      options.routing.empty() ? fmt::format("MADE UP, seed {}", options.seed) : options.routing;
  fmt::print("Routing of {}: {} layers of {} experts, top {} ({})\n", model.name, model.shape.layers,
             model.shape.experts, model.shape.top_k, source);
  fmt::print("{} sequences, {} prefill steps, {} decode steps of {} tokens\n",
             format_count(summary.sequences), format_count(summary.prefill_steps),
             format_count(summary.decode_steps), format_count(summary.decode_tokens));
  fmt::print("A layer needs {:.1f} experts in a decode step, {:.1f} in a prefill step\n\n",
             summary.distinct_experts, summary.prefill_experts);
  print_ratios(model.shape, summary);
  print_hits(summary);
}

Exit run(const Options& options) {
  const auto model = model_of(options);
  if (!model) return complain(Exit::bad_input, "routing", model.error().message);
  auto trace =
      options.routing.empty() ? generate(options, *model) : moe::read_routing(options.routing, model->shape);
  if (!trace)
    return complain(Exit::bad_input, "routing",
                    options.routing.empty() ? trace.error().message
                                            : fmt::format("--routing: {}", trace.error().message));
  if (!options.write.empty()) {
    if (const Status written = moe::write_routing(options.write, *trace); !written)
      return complain(Exit::bad_input, "routing", fmt::format("--write: {}", written.error().message));
    if (!options.summary) return Exit::ok;
  }
  const auto summary = summarize(*trace);
  if (!summary) return complain(Exit::failed, "routing", summary.error().message);
  const auto evictions = options.evictions ? replay_evictions_of(*trace) : Evictions{};
  if (!evictions) return complain(Exit::failed, "routing", evictions.error().message);
  if (options.json) {
    print_json(to_json(options, *model, *summary, *evictions));
    return Exit::ok;
  }
  print_summary(options, *model, *summary);
  if (options.evictions) print_evictions(*evictions);
  return Exit::ok;
}

}  // namespace

void add_routing(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("routing", "Show, make up or record which experts a model's routers pick");
  command->footer(kTeaching);
  std::string names;
  for (const moe::RoutingModel& model : moe::routing_models())
    names += fmt::format("{}{}", names.empty() ? "" : ", ", model.name);
  add_name(*command, "--model", options->model,
           "Whose routers: " + names + "; or LAYERSxEXPERTSxTOP_K, of a recording")
      ->required();
  constexpr CountRange kTokens{1, 1U << 20U};
  auto* file = add_name(*command, "--routing", options->routing, "Read this recording, gzipped or not")
                   ->type_name("FILE");
  add_count(*command, "--seed", options->seed, {0, UINT32_MAX}, "Of what is made up")->excludes(file);
  add_count(*command, "--steps", options->steps, {1, 1'000'000}, "Decode steps to make up")->excludes(file);
  add_count(*command, "--batch", options->batch, {1, 4096}, "Sequences at a time")->excludes(file);
  add_counts(*command, "--prompt-tokens", options->prompt_tokens, kTokens,
             "Length of prompts, or the least and the most")
      ->type_name("N[,N]")
      ->excludes(file);
  // The prompt's step makes the first.
  add_counts(*command, "--output-tokens", options->output_tokens, {2, kTokens.most},
             "Length of answers, or the least and the most")
      ->type_name("N[,N]")
      ->excludes(file);
  add_name(*command, "--write", options->write, "Write a recording, gzipped if the name ends in .gz")
      ->type_name("FILE");
  command->add_flag("--summary", options->summary, "With --write: show what it is like too")
      ->disable_flag_override();
  command
      ->add_flag("--evictions", options->evictions,
                 "Replay a cache of experts for all layers too, with each of its evictions and Belady's")
      ->disable_flag_override();
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli
