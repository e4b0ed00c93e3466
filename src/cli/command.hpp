// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "cli/parser.hpp"

/// The commands of the program `harvest`: one file each. A command adds itself to the parser with its
/// options and, when it is the one that was typed, leaves in `chosen` what there is to do.
namespace harvest::cli {

/// What the program answers to the shell.
enum class Exit : int {
  ok = 0,
  failed = 1,     ///< an operation failed, or what was checked is wrong
  bad_input = 2,  ///< an option, a file or a size that cannot be meant
};

using Action = std::function<Exit()>;

void add_topo(CLI::App& app, Action& chosen);
void add_policy(CLI::App& app, Action& chosen);
void add_routing(CLI::App& app, Action& chosen);
void add_replay(CLI::App& app, Action& chosen);
void add_demo(CLI::App& app, Action& chosen);
void add_bench(CLI::App& app, Action& chosen);

}  // namespace harvest::cli
