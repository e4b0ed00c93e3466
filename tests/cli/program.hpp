// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Runs the built program as a shell would, and makes the files that it reads.
namespace harvest::testing {

struct Ran {
  int exit_code = -1;
  std::string out;
  std::string err;
};

/// Runs `harvest` with `arguments`; its output goes to files, so it sees no terminal.
Ran run_harvest(const std::vector<std::string>& arguments);

/// The same, with `--json`: expects exit code 0 and nothing but JSON on stdout, and answers that.
nlohmann::json run_for_json(std::vector<std::string> arguments);

/// A folder that is gone with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  /// Writes a file into it and answers its path.
  std::string file(const std::string& name, std::string_view content) const;

 private:
  std::filesystem::path path_;
};

struct TraceLine {
  std::int64_t timestamp_ms = 0;
  std::vector<std::uint64_t> blocks;
};

/// A trace in the format of Mooncake.
std::string mooncake(const std::vector<TraceLine>& lines);

std::string gzipped(std::string_view text);

/// The published conversation trace, or nothing: the project ships no copy of it.
std::optional<std::string> conversation_trace();
inline constexpr const char* kNoConversationTrace =
    "no conversation_trace.jsonl.gz: download FAST25-release/traces/conversation_trace.jsonl of "
    "kvcache-ai/Mooncake, gzip it, and name the folder that holds mooncake/ in HARVEST_TRACES";

}  // namespace harvest::testing
