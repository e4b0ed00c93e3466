// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/files.hpp"

/// Runs the built program as a shell would.
namespace harvest::testing {

struct Ran {
  int exit_code = -1;
  std::string out;
  std::string err;
};

/// Where the program runs, and where its results go if not into `Ran::out`.
struct Surroundings {
  std::string folder{};
  std::string out{};
};

/// Runs `harvest` with `arguments`; its output goes to files, so it sees no terminal.
Ran run_harvest(const std::vector<std::string>& arguments, const Surroundings& in = {});

/// The same, with `--json`: expects exit code 0 and nothing but JSON on stdout, and answers that.
nlohmann::json run_for_json(std::vector<std::string> arguments);

struct TraceLine {
  std::int64_t timestamp_ms = 0;
  std::vector<std::uint64_t> blocks;
};

/// A trace in the format of Mooncake.
std::string mooncake(const std::vector<TraceLine>& lines);

/// The published conversation trace, or nothing: the project ships no copy of it.
std::optional<std::string> conversation_trace();
inline constexpr const char* kNoConversationTrace =
    "no conversation_trace.jsonl.gz: download FAST25-release/traces/conversation_trace.jsonl of "
    "kvcache-ai/Mooncake, gzip it, and name the folder that holds mooncake/ in HARVEST_TRACES";

}  // namespace harvest::testing
