// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

#include "cli/command.hpp"

/// The commands of `harvest bench kv`: one file each.
namespace harvest::cli::bench {

void add_kv_fetch(CLI::App& kv, Action& chosen);
void add_kv_serve(CLI::App& kv, Action& chosen);
void add_kv_turns(CLI::App& kv, Action& chosen);

}  // namespace harvest::cli::bench
