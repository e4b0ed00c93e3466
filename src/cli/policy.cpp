// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/policy.hpp>

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
    "be hits, by the number of blocks that fit. Every access admits. belady knows the future: no policy\n"
    "can do better, so the distance to its row is what is left to gain.\n"
    "\n"
    "Example:\n"
    "  harvest policy --trace conversation_trace.jsonl.gz --capacity-blocks 1000,10000\n"
    "                 --policies lru,arc,belady";

struct Options {
  TraceOptions trace;
  std::vector<std::uint64_t> capacities{1000, 5000, 10000, 20000, 50000};
  std::string policies;
  bool json = false;
};

struct Row {
  std::string policy;
  std::vector<double> hit_ratios;  ///< by capacity
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

Result<std::vector<Row>> simulate(const std::vector<Key>& accesses, const std::vector<std::string>& policies,
                                  const std::vector<std::uint64_t>& capacities) {
  Progress progress("policies", policies.size() * capacities.size());
  std::vector<Row> rows;
  std::uint64_t done = 0;
  for (const std::string& policy : policies) {
    Row row{policy, {}};
    for (const std::uint64_t capacity : capacities) {
      progress.at(done++);
      const auto run = simulate_policy(policy, accesses, capacity);
      if (!run) return tl::unexpected(run.error());
      row.hit_ratios.push_back(run->hit_ratio());
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

Json to_json(const Options& options, std::uint64_t accesses, std::uint64_t unique,
             const std::vector<Row>& rows) {
  Json json{{"trace", options.trace.path}, {"accesses", accesses}, {"unique", unique}};
  json["results"] = Json::array();
  for (const Row& row : rows)
    for (std::size_t i = 0; i < row.hit_ratios.size(); ++i)
      json["results"].push_back({{"policy", row.policy},
                                 {"capacity_blocks", options.capacities[i]},
                                 {"hit_ratio", row.hit_ratios[i]}});
  return json;
}

void print_table(const Options& options, std::uint64_t accesses, std::uint64_t unique,
                 const std::vector<Row>& rows) {
  fmt::print("Hit ratio by blocks of capacity: {} accesses to {} blocks\n\n", format_count(accesses),
             format_count(unique));
  std::vector<std::string> header{"policy"};
  for (const std::uint64_t capacity : options.capacities) header.push_back(format_count(capacity));
  Table table(std::move(header));
  for (const Row& row : rows) {
    std::vector<std::string> cells{row.policy};
    for (const double ratio : row.hit_ratios) cells.push_back(fmt::format("{:.3f}", ratio));
    table.add(std::move(cells));
  }
  fmt::print("{}\nThe default of the library is {}; {} knows the future.\n", table.text(),
             eviction_policy_names().front(), kOptimum);
}

Exit run(const Options& options) {
  const auto policies = options.policies.empty() ? all_policies() : split_list(options.policies);
  if (const Status known = check_policies(policies); !known)
    return complain(Exit::bad_input, "policy", known.error().message);
  const auto trace = read_trace(options.trace);
  if (!trace) return complain(Exit::bad_input, "policy", trace.error().message);
  const std::vector<Key> accesses = trace->block_accesses();
  std::vector<Key> blocks = accesses;
  std::sort(blocks.begin(), blocks.end());
  const auto unique = static_cast<std::uint64_t>(std::unique(blocks.begin(), blocks.end()) - blocks.begin());
  const auto rows = simulate(accesses, policies, options.capacities);
  if (!rows) return complain(Exit::failed, "policy", rows.error().message);
  if (options.json)
    print_json(to_json(options, accesses.size(), unique, *rows));
  else
    print_table(options, accesses.size(), unique, *rows);
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
  add_counts(*command, "--capacity-blocks", options->capacities, kCapacities, "How many blocks fit");
  add_name(*command, "--policies", options->policies, "Some of " + joined(all_policies()))
      ->type_name("P,Q,...")
      ->default_str("all");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli
