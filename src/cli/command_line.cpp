// SPDX-License-Identifier: Apache-2.0
#include "cli/command_line.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <sstream>
#include <string>

namespace harvest::cli {
namespace {

constexpr const char* kAbout =
    "Harvest keeps what does not fit into one GPU's memory in the idle memory of its neighbours,\n"
    "and gives that back as soon as its owner wants it.";

constexpr const char* kFirstSteps =
    "Begin with:\n"
    "  harvest demo                          see it work, in a few seconds\n"
    "  harvest topo --system 2xh100-nvl      what a machine's links can give\n"
    "  harvest replay --help                 what it would do for real KV-cache traffic\n"
    "  harvest bench --help                  what this machine's links and memory give\n"
    "\n"
    "Every command takes --help, and --json to print one JSON value instead of tables.\n"
    "Exit codes: 0 success, 1 an operation failed, 2 bad input.";

}  // namespace

CommandLine::CommandLine() : app_(kAbout, "harvest") {
  app_.footer(kFirstSteps);
  app_.set_version_flag("--version", "harvest " HARVEST_VERSION);
  app_.require_subcommand(0, 1);
  add_topo(app_, chosen_);
  add_policy(app_, chosen_);
  add_replay(app_, chosen_);
  add_routing(app_, chosen_);
  add_demo(app_, chosen_);
  add_bench(app_, chosen_);
}

std::optional<Exit> CommandLine::parse(int argc, const char* const* argv) {
  try {
    app_.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      std::ostringstream text;
      app_.exit(error, text, text);
      fmt::print("{}", text.str());
      return Exit::ok;
    }
    std::string command = "harvest";
    for (auto typed = app_.get_subcommands(); !typed.empty(); typed = typed.front()->get_subcommands())
      command += " " + typed.front()->get_name();
    fmt::print(stderr, "{}: {} (see {} --help)\n", command, error.what(), command);
    return Exit::bad_input;
  }
  if (!chosen_) {
    fmt::print(
        stderr,
        "harvest: a command is missing: topo, policy, replay, routing, demo or bench (see harvest --help)\n");
    return Exit::bad_input;
  }
  return std::nullopt;
}

}  // namespace harvest::cli
