// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/policy.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"

/// `harvest policy`: what each eviction policy would keep of recorded traffic.
namespace harvest::cli {
namespace {

constexpr const char* kOptimum = "belady";

constexpr const char* kTeaching =
    "Replays the blocks of a trace through eviction policies and shows the share of accesses that would\n"
    "be hits, by the number of blocks that fit. Every access admits. A hit is usable if all blocks before\n"
    "it in its request hit too, for a block is worth nothing without its prefix. belady knows the future:\n"
    "no policy can hit more, so the distance to its row is what is left to gain.\n"
    "\n"
    "Capacities may be ranges: 1000..5000+1000 goes by steps, 1000..64000x2 by a factor. Long lists cost\n"
    "lru and belady nothing more, the other policies a replay for each.\n"
    "\n"
    "Example:\n"
    "  harvest policy --trace conversation_trace.jsonl.gz --capacity-blocks 1000,10000\n"
    "                 --policies lru,arc,belady\n"
    "  harvest policy --trace conversation_trace.jsonl.gz --capacity-blocks 100..102400x2 --json > "
    "curve.json\n"
    "  python3 benchmarks/plot.py curve.json";

/// More columns than this do not fit on a screen: then capacities go down.
constexpr std::size_t kMostColumns = 10;

struct Options {
  TraceOptions trace;
  std::vector<std::uint64_t> capacities{1000, 5000, 10000, 20000, 50000};
  std::string policies;
  bool json = false;
};

struct Row {
  std::string policy;
  std::vector<PolicyRun> runs;  ///< by capacity
};

std::vector<std::string> all_policies() {
  const auto names = eviction_policy_names();
  std::vector<std::string> all(names.begin(), names.end());
  all.emplace_back(kOptimum);
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

/// Before a long run, not in the middle of it.
Status check_policies(const std::vector<std::string>& names) {
  const auto known = all_policies();
  for (const std::string& name : names)
    if (std::find(known.begin(), known.end(), name) == known.end())
      return fail(ErrorCode::not_found,
                  fmt::format("--policies: no policy is named '{}'; known are {}", name, joined(known)));
  return {};
}

/// What a trace asks a cache for.
struct Accesses {
  std::vector<Key> blocks;
  std::vector<std::uint64_t> request_lengths;
  std::uint64_t unique = 0;
};

Accesses accesses_of(const Trace& trace) {
  Accesses accesses;
  accesses.blocks = trace.block_accesses();
  for (const TraceRequest& request : trace.requests)
    accesses.request_lengths.push_back(request.block_ids.size());
  std::vector<Key> blocks = accesses.blocks;
  std::sort(blocks.begin(), blocks.end());
  accesses.unique = static_cast<std::uint64_t>(std::unique(blocks.begin(), blocks.end()) - blocks.begin());
  return accesses;
}

Result<std::vector<Row>> simulate(const Accesses& accesses, const std::vector<std::string>& policies,
                                  const std::vector<std::uint64_t>& capacities) {
  Progress progress("policies", policies.size());
  std::vector<Row> rows;
  for (const std::string& policy : policies) {
    progress.at(rows.size());
    auto runs = simulate_policy_curve(policy, accesses.blocks, capacities, accesses.request_lengths);
    if (!runs) return tl::unexpected(runs.error());
    rows.push_back({policy, std::move(*runs)});
  }
  return rows;
}

Json to_json(const Options& options, const Accesses& accesses, const std::vector<Row>& rows) {
  Json json{{"benchmark", "policy"},
            {"trace", options.trace.path},
            {"requests", accesses.request_lengths.size()},
            {"accesses", accesses.blocks.size()},
            {"unique", accesses.unique}};
  json["results"] = Json::array();
  for (const Row& row : rows)
    for (std::size_t i = 0; i < row.runs.size(); ++i)
      json["results"].push_back({{"policy", row.policy},
                                 {"capacity_blocks", options.capacities[i]},
                                 {"hit_ratio", row.runs[i].hit_ratio()},
                                 {"usable_hit_ratio", row.runs[i].usable_hit_ratio()}});
  return json;
}

using Cells = std::vector<std::vector<std::string>>;

Cells transposed(const Cells& cells) {
  Cells result(cells.front().size());
  for (const auto& row : cells)
    for (std::size_t i = 0; i < row.size(); ++i) result[i].push_back(row[i]);
  return result;
}

void print_table(const std::vector<std::uint64_t>& capacities, const std::vector<Row>& rows,
                 double (PolicyRun::*ratio)() const) {
  Cells cells{{"policy"}};
  for (const std::uint64_t capacity : capacities) cells.front().push_back(format_count(capacity));
  for (const Row& row : rows) {
    cells.push_back({row.policy});
    for (const PolicyRun& run : row.runs) cells.back().push_back(fmt::format("{:.3f}", (run.*ratio)()));
  }
  if (capacities.size() > kMostColumns) {
    cells.front().front() = "blocks";
    cells = transposed(cells);
  }
  Table table(cells.front());
  for (std::size_t i = 1; i < cells.size(); ++i) table.add(cells[i]);
  fmt::print("{}\n", table.text());
}

void print_tables(const Options& options, const Accesses& accesses, const std::vector<Row>& rows) {
  fmt::print("Hit ratio by blocks of capacity: {} accesses to {} blocks in {} requests\n\n",
             format_count(accesses.blocks.size()), format_count(accesses.unique),
             format_count(accesses.request_lengths.size()));
  print_table(options.capacities, rows, &PolicyRun::hit_ratio);
  fmt::print("Usable: all blocks before it in its request hit too\n\n");
  print_table(options.capacities, rows, &PolicyRun::usable_hit_ratio);
  fmt::print("The default of the library is {}; {} knows the future.\n", eviction_policy_names().front(),
             kOptimum);
}

Exit run(const Options& options) {
  const auto policies = options.policies.empty() ? all_policies() : split_list(options.policies);
  if (const Status known = check_policies(policies); !known)
    return complain(Exit::bad_input, "policy", known.error().message);
  const auto trace = read_trace(options.trace);
  if (!trace) return complain(Exit::bad_input, "policy", trace.error().message);
  const Accesses accesses = accesses_of(*trace);
  const auto rows = simulate(accesses, policies, options.capacities);
  if (!rows) return complain(Exit::failed, "policy", rows.error().message);
  if (options.json)
    print_json(to_json(options, accesses, *rows));
  else
    print_tables(options, accesses, *rows);
  return Exit::ok;
}

}  // namespace

void add_policy(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("policy", "Compare eviction policies on a trace, and with the optimum");
  command->footer(kTeaching);
  add_trace(*command, options->trace);
  // Far beyond any trace, and small enough for arithmetic on multiples of it.
  constexpr CountRange kCapacities{1, 1'000'000'000};
  add_counts(*command, "--capacity-blocks", options->capacities, kCapacities,
             "How many blocks fit; FROM..TO+STEP and FROM..TOxFACTOR are ranges");
  add_name(*command, "--policies", options->policies, "Some of " + joined(all_policies()))
      ->type_name("P,Q,...")
      ->default_str("all");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli
