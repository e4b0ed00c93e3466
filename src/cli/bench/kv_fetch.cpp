// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/kv.hpp"
#include "cli/bench/kv_fetch_world.hpp"
#include "cli/output.hpp"

/// `harvest bench kv fetch`: how long a prefix takes back to an engine's pages.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Brings prefixes back into an engine's pages, from a peer and from host memory, with the cache of blocks "
    "and\n"
    "with the naive loop: a copy for each run of bytes that lies together in a page. The pages are "
    "scattered.\n"
    "`first` is the time until work on layer 0 can begin. `of wires` is the gain from the peer over the "
    "host, "
    "as a\n"
    "share of the two wires' ratio, which is the most that there is to gain.\n"
    "\n"
    "Example:\n"
    "  harvest bench kv fetch --system dgx-h100 --model llama-3-70b --tokens 2048,8192\n"
    "  harvest bench kv fetch --system 2xh100-nvl --model llama-3-8b --arrangement page_first --json\n"
    "\n"
    "It answers 1 if anything that arrived was wrong.";

constexpr std::uint64_t kMostTokens = 1ULL << 20;
constexpr std::uint64_t kMostPageTokens = 4096;

struct Options {
  MachineChoice machine;
  std::vector<std::string> models;
  std::vector<std::uint64_t> tokens{512, 2048, 8192, 32768, 131072};
  std::uint64_t page_tokens = 16;
  std::uint64_t block_tokens = 0;
  std::string arrangement = "layer_first";
  std::uint64_t consumer = 0;
  bool json = false;
};

struct TierFigures {
  ReloadTimes ours;
  ReloadTimes naive;
  double wire_bytes_per_s = 0;
};

struct Row {
  std::string model;
  std::uint64_t tokens = 0;
  std::uint64_t blocks = 0;
  std::uint64_t block_tokens = 0;
  std::uint64_t bytes = 0;
  TierFigures peer;
  TierFigures host;
  std::uint64_t wrong_runs = 0;
  std::string absent{};  ///< why there are no figures

  [[nodiscard]] double gain() const { return ratio(host.ours, peer.ours); }
  [[nodiscard]] double naive_gain() const { return ratio(host.naive, peer.naive); }
  [[nodiscard]] double of_wires() const { return gain() / (peer.wire_bytes_per_s / host.wire_bytes_per_s); }

 private:
  static double ratio(const ReloadTimes& slow, const ReloadTimes& fast) {
    return static_cast<double>(slow.all_ns) / static_cast<double>(fast.all_ns);
  }
};

/// What a wire gives is known of a simulated machine; of a real one its links were measured at the start.
double wire_of(const Backend& backend, DeviceId from, DeviceId to) {
  const LinkInfo* const link = link_of(backend, {from, to});
  return link == nullptr ? 0 : link->bandwidth_bytes_per_s;
}

Status measure(const MeasuredMachine& machine, DeviceId consumer, DeviceId peer, ReloadCase what, Row& row) {
  for (const Tier tier : {Tier::peer, Tier::host}) {
    what.tier = tier;
    auto world = ReloadWorld::create(machine, consumer, peer, what);
    if (!world) return tl::unexpected(world.error());
    TierFigures& figures = tier == Tier::peer ? row.peer : row.host;
    const auto ours = (*world)->load();
    if (!ours) return tl::unexpected(ours.error());
    const auto naive = (*world)->naive();
    if (!naive) return tl::unexpected(naive.error());
    figures = {*ours, *naive, wire_of(machine.backend(), tier == Tier::peer ? peer : kHost, consumer)};
    row.blocks = (*world)->blocks();
    row.block_tokens = (*world)->block_tokens();
    row.bytes = (*world)->bytes();
    row.wrong_runs += (*world)->wrong_runs();
  }
  return {};
}

Result<std::vector<Model>> models_of(const Options& options) {
  const auto known = known_models();
  if (options.models.empty()) return std::vector<Model>(known.begin(), known.end());
  std::vector<Model> models;
  for (const std::string& name : options.models) {
    const auto model = find_model(name);
    if (!model) return fail(model.error().code, "--model: " + model.error().message);
    models.push_back(*model);
  }
  return models;
}

Result<kv::KvArrangement> check(const Options& options) {
  const auto arrangement = kv::kv_arrangement_from(options.arrangement);
  if (!arrangement) return fail(arrangement.error().code, "--arrangement: " + arrangement.error().message);
  if (options.block_tokens % options.page_tokens != 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("--block-tokens: {} is not a multiple of a page of {} tokens",
                            options.block_tokens, options.page_tokens));
  return arrangement;
}

/// A fresh machine for each row: one prefix is not to find another's memory.
Result<Row> row_of(const Options& options, const ReloadCase& what) {
  const auto machine = MeasuredMachine::open(options.machine, SimulatedBytes::phantom);
  if (!machine) return tl::unexpected(machine.error());
  const auto consumer = static_cast<DeviceId>(options.consumer);
  const auto gpus = gpus_of(machine->backend());
  if (options.consumer >= gpus.size())
    return fail(ErrorCode::invalid_argument,
                fmt::format("--consumer: {} is not a GPU from 0 to {}", options.consumer, gpus.size() - 1));
  const auto peer = machine->best_peer(consumer);
  if (!peer) return tl::unexpected(peer.error());
  Row row;
  row.model = what.model.name;
  row.tokens = what.tokens;
  const Status measured = measure(*machine, consumer, *peer, what, row);
  if (measured) return row;
  if (measured.error().code != ErrorCode::out_of_memory) return tl::unexpected(measured.error());
  row.absent = measured.error().message;
  return row;
}

Result<std::vector<Row>> measure_all(const Options& options) {
  const auto models = models_of(options);
  if (!models) return tl::unexpected(models.error());
  const auto arrangement = check(options);
  if (!arrangement) return tl::unexpected(arrangement.error());
  std::vector<Row> rows;
  Progress progress("reloading", models->size() * options.tokens.size());
  for (const Model& model : *models) {
    for (const std::uint64_t tokens : options.tokens) {
      ReloadCase what;
      what.model = model;
      what.tokens = tokens;
      what.page_tokens = static_cast<std::uint32_t>(options.page_tokens);
      what.block_tokens = options.block_tokens;
      what.arrangement = *arrangement;
      auto row = row_of(options, what);
      if (!row) return tl::unexpected(row.error());
      rows.push_back(std::move(*row));
      progress.at(rows.size());
    }
  }
  return rows;
}

Json to_json(const TierFigures& figures, std::uint64_t bytes) {
  const auto rate = [&](TimeNs ns) { return static_cast<double>(bytes) * 1e9 / static_cast<double>(ns); };
  return {{"ns", figures.ours.all_ns},
          {"first_layers_ns", figures.ours.first_layers_ns},
          {"bytes_per_s", rate(figures.ours.all_ns)},
          {"naive_ns", figures.naive.all_ns},
          {"naive_bytes_per_s", rate(figures.naive.all_ns)},
          {"wire_bytes_per_s", figures.wire_bytes_per_s}};
}

Json to_json(const MeasuredMachine& machine, const Options& options, const std::vector<Row>& rows) {
  Json json = machine.header("kv_fetch");
  json["consumer"] = options.consumer;
  json["page_tokens"] = options.page_tokens;
  json["arrangement"] = options.arrangement;
  json["rows"] = Json::array();
  for (const Row& row : rows) {
    Json line{{"model", row.model}, {"tokens", row.tokens}};
    if (!row.absent.empty()) {
      line["absent"] = row.absent;
      json["rows"].push_back(std::move(line));
      continue;
    }
    line["blocks"] = row.blocks;
    line["block_tokens"] = row.block_tokens;
    line["bytes"] = row.bytes;
    line["peer"] = to_json(row.peer, row.bytes);
    line["host"] = to_json(row.host, row.bytes);
    line["gain"] = row.gain();
    line["share_of_wires"] = row.of_wires();
    line["naive_gain"] = row.naive_gain();
    line["wrong_runs"] = row.wrong_runs;
    json["rows"].push_back(std::move(line));
  }
  return json;
}

void print_table(const MeasuredMachine& machine, const Options& options, const std::vector<Row>& rows) {
  Table table({"model", "tokens", "bytes", "peer", "first", "host", "gain", "of wires", "naive peer",
               "naive host", "naive gain", "arrived"});
  std::vector<std::string> notes;
  for (const Row& row : rows) {
    if (!row.absent.empty()) {
      notes.push_back(fmt::format("{} of {} tokens: {}", row.model, row.tokens, row.absent));
      continue;
    }
    table.add(
        {row.model, format_count(row.tokens), format_bytes(row.bytes),
         format_ns(static_cast<double>(row.peer.ours.all_ns)),
         format_ns(static_cast<double>(row.peer.ours.first_layers_ns)),
         format_ns(static_cast<double>(row.host.ours.all_ns)), fmt::format("{:.2f}x", row.gain()),
         fmt::format("{:.1f} %", 100 * row.of_wires()), format_ns(static_cast<double>(row.peer.naive.all_ns)),
         format_ns(static_cast<double>(row.host.naive.all_ns)), fmt::format("{:.2f}x", row.naive_gain()),
         row.wrong_runs == 0 ? "right" : format_count(row.wrong_runs) + " runs WRONG"});
  }
  fmt::print("{}\n\n{}",
             machine.title(fmt::format("Prefixes back into pages of {} tokens ({})", options.page_tokens,
                                       options.arrangement)),
             table.text());
  for (const std::string& note : notes) fmt::print("\n{}\n", note);
}

Exit run(const Options& options) {
  const auto machine = MeasuredMachine::open(options.machine, SimulatedBytes::phantom);
  if (!machine) return complain_of("kv fetch", machine.error());
  const auto rows = measure_all(options);
  if (!rows) return complain_of("kv fetch", rows.error());
  if (options.json)
    print_json(to_json(*machine, options, *rows));
  else
    print_table(*machine, options, *rows);
  for (const Row& row : *rows)
    if (row.wrong_runs != 0) return Exit::failed;
  return Exit::ok;
}

}  // namespace

void add_kv_fetch(CLI::App& kv, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = kv.add_subcommand("fetch", "How long a prefix takes back to an engine's pages");
  command->footer(kTeaching);
  add_machine(*command, options->machine, "measure");
  add_names(*command, "--model", options->models, "Models: " + model_names() + "; without it all");
  add_counts(*command, "--tokens", options->tokens, {1, kMostTokens}, "Lengths of the prefix");
  add_count(*command, "--page-tokens", options->page_tokens, {1, kMostPageTokens}, "Of an engine's page");
  add_count(*command, "--block-tokens", options->block_tokens, {0, kMostTokens},
            "Of a block of the cache; 0: the library's default");
  add_name(*command, "--arrangement", options->arrangement,
           fmt::format("How tensors hold pages: {}", fmt::join(kv::kv_arrangement_names(), ", ")));
  add_count(*command, "--consumer", options->consumer, {0, 63}, "The GPU that reads");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
