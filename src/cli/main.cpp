// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>

#include "cli/command.hpp"

namespace {

using harvest::cli::Action;
using harvest::cli::Exit;

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

Exit run(int argc, char** argv) {
  CLI::App app(kAbout, "harvest");
  app.footer(kFirstSteps);
  app.set_version_flag("--version", "harvest " HARVEST_VERSION);
  app.require_subcommand(0, 1);
  Action chosen;
  harvest::cli::add_topo(app, chosen);
  harvest::cli::add_policy(app, chosen);
  harvest::cli::add_replay(app, chosen);
  harvest::cli::add_demo(app, chosen);
  harvest::cli::add_bench(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      app.exit(error);
      return Exit::ok;
    }
    std::string command = "harvest";
    for (auto typed = app.get_subcommands(); !typed.empty(); typed = typed.front()->get_subcommands())
      command += " " + typed.front()->get_name();
    fmt::print(stderr, "{}: {} (see {} --help)\n", command, error.what(), command);
    return Exit::bad_input;
  }
  if (!chosen) {
    fmt::print(stderr,
               "harvest: a command is missing: topo, policy, replay, demo or bench (see harvest --help)\n");
    return Exit::bad_input;
  }
  const Exit exit = chosen();
  if (std::fflush(stdout) == 0) return exit;
  fmt::print(stderr, "harvest: the results cannot be written: {}\n", std::strerror(errno));
  return Exit::failed;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    // The library logs to spdlog's default logger: on stderr, so that stdout is the results' alone.
    spdlog::set_default_logger(spdlog::stderr_color_mt("harvest"));
    return static_cast<int>(run(argc, argv));
  } catch (const std::exception& error) {  // no memory, or no stderr to write to
    std::fputs("harvest: ", stderr);
    std::fputs(error.what(), stderr);
    std::fputs("\n", stderr);
    return static_cast<int>(Exit::failed);
  }
}
