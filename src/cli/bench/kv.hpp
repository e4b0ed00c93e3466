// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cli/command.hpp"
#include "cli/kv/serve.hpp"
#include "cli/parser.hpp"

/// The commands of `harvest bench kv`: one file each.
namespace harvest::cli::bench {

void add_kv_fetch(CLI::App& kv, Action& chosen);
void add_kv_serve(CLI::App& kv, Action& chosen);
void add_kv_turns(CLI::App& kv, Action& chosen);

/// What the JSON of a served model begins with.
[[nodiscard]] Result<Json> kv_header(const ServeRun& run, const std::string& benchmark);

}  // namespace harvest::cli::bench
