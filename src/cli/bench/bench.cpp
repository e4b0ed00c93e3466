// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/bench.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string>

#include "cli/arguments.hpp"

/// `harvest bench`: what the machine gives, and how much of it Harvest brings to its user.
namespace harvest::cli {
namespace bench {
namespace {

constexpr std::uint64_t kMostRuns = 10'000;

/// CLI11 hears of errors by its own exception.
std::uint64_t size_within(const std::string& option, const std::string& text, std::uint64_t least,
                          std::uint64_t most) {
  const auto bytes = parse_bytes(text);
  if (!bytes) throw CLI::ValidationError(option, bytes.error().message);
  if (*bytes >= least && *bytes <= most) return *bytes;
  throw CLI::ValidationError(
      option, fmt::format("'{}' is not from {} to {}", text, format_bytes(least), format_bytes(most)));
}

}  // namespace

void add_common(CLI::App& command, CommonOptions& target) {
  add_machine(command, target.machine, "Measure");
  add_count(command, "--runs", target.runs, {1, kMostRuns},
            "How often each thing is timed; medians are shown");
  command.add_flag("--quick", target.quick, "Small sizes: shows that it works, says little of speed")
      ->disable_flag_override();
  add_json(command, target.json);
}

void add_size(CLI::App& command, const std::string& name, std::uint64_t& target, std::uint64_t least,
              std::uint64_t most, const std::string& description) {
  command
      .add_option_function<std::string>(
          name,
          [name, least, most, &target](const std::string& text) {
            target = size_within(name, text, least, most);
          },
          description)
      ->type_name("BYTES")
      ->default_str(format_bytes(target));
}

void add_sizes(CLI::App& command, const std::string& name, std::vector<std::uint64_t>& target,
               std::uint64_t least, std::uint64_t most, const std::string& description) {
  command
      .add_option_function<std::string>(
          name,
          [name, least, most, &target](const std::string& text) {
            std::vector<std::uint64_t> sizes;
            for (const std::string& part : split_list(text))
              sizes.push_back(size_within(name, part, least, most));
            if (sizes.empty()) throw CLI::ValidationError(name, "the list is empty");
            target = std::move(sizes);
          },
          description)
      ->type_name("BYTES,BYTES,...");
}

Exit complain_of(const std::string& benchmark, const Error& error) {
  const bool bad_input = error.code == ErrorCode::invalid_argument || error.code == ErrorCode::not_found ||
                         error.code == ErrorCode::malformed || error.code == ErrorCode::not_supported;
  return complain(bad_input ? Exit::bad_input : Exit::failed, "bench " + benchmark, error.message);
}

}  // namespace bench

namespace {

constexpr const char* kTeaching =
    "Measures this machine's GPUs, one GPU in loopback, or a simulated machine:\n"
    "  harvest bench link                          every pair, and the host both ways\n"
    "  harvest bench fetch --loopback              through the cache, beside the naive loop\n"
    "  harvest bench reclaim --system dgx-h100     how long an owner waits for its memory\n"
    "  harvest bench owner                         what days of harvesting do to owners (simulated)\n"
    "\n"
    "Example:\n"
    "  harvest bench link --system 2xh100-nvl --max-bytes 16MiB\n"
    "\n"
    "All print --json. What each measures, how, and every key: docs/benchmarks/README.md";

}  // namespace

void add_bench(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("bench", "Measure links, reads, reclaims and memory");
  command->footer(kTeaching);
  command->require_subcommand(0, 1);
  bench::add_link(*command, chosen);
  bench::add_fetch(*command, chosen);
  bench::add_reclaim(*command, chosen);
  bench::add_owner(*command, chosen);
  bench::add_moe(*command, chosen);
  bench::add_kv(*command, chosen);
  bench::add_memory(*command, chosen);
  bench::add_lookup(*command, chosen);
  bench::add_calibrate(*command, chosen);
  command->callback([command, &chosen] {
    if (command->get_subcommands().empty())
      chosen = [] {
        return complain(Exit::bad_input, "bench",
                        "a benchmark is missing: link, fetch, reclaim, owner, moe, kv, memory, lookup or "
                        "calibrate (see harvest bench --help)");
      };
  });
}

}  // namespace harvest::cli
