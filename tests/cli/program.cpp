// SPDX-License-Identifier: Apache-2.0
#include "cli/program.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

namespace harvest::testing {
namespace {

/// In the child: never returns.
[[noreturn]] void become_harvest(std::vector<std::string> words, const std::string& folder, const char* out,
                                 const char* err) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int out_file = ::open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const int err_file = ::open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (out_file < 0 || err_file < 0 || ::dup2(out_file, STDOUT_FILENO) < 0 ||
      ::dup2(err_file, STDERR_FILENO) < 0 || (!folder.empty() && ::chdir(folder.c_str()) != 0))
    ::_exit(126);
  ::execv(HARVEST_PROGRAM, argv.data());
  ::_exit(127);
}

}  // namespace

Ran run_harvest(const std::vector<std::string>& arguments, const Surroundings& in) {
  const TemporaryFolder folder;
  const std::string out = in.out.empty() ? folder.file("out", "") : in.out;
  const std::string err = folder.file("err", "");
  std::vector<std::string> words{"harvest"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const pid_t child = ::fork();
  if (child == 0) become_harvest(std::move(words), in.folder, out.c_str(), err.c_str());
  int status = 0;
  Ran ran;
  if (child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status))
    ran.exit_code = WEXITSTATUS(status);
  if (in.out.empty()) ran.out = read_file(out);
  ran.err = read_file(err);
  return ran;
}

nlohmann::json run_for_json(std::vector<std::string> arguments) {
  arguments.emplace_back("--json");
  const Ran ran = run_harvest(arguments);
  EXPECT_EQ(ran.exit_code, 0) << fmt::format("{}", fmt::join(arguments, " ")) << "\n" << ran.err;
  EXPECT_EQ(ran.err, "") << "a script sees no progress";
  auto json = nlohmann::json::parse(ran.out, nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << ran.out;
  return json;
}

std::string mooncake(const std::vector<TraceLine>& lines) {
  std::string text;
  for (const TraceLine& line : lines)
    text += fmt::format(R"({{"timestamp": {}, "input_length": {}, "output_length": 10, "hash_ids": [{}]}})"
                        "\n",
                        line.timestamp_ms, line.blocks.size() * 512, fmt::join(line.blocks, ", "));
  return text;
}

std::optional<std::string> conversation_trace() {
  const char* folder = std::getenv("HARVEST_TRACES");
  const auto path = std::filesystem::path(folder != nullptr ? folder : HARVEST_DEFAULT_TRACES) / "mooncake" /
                    "conversation_trace.jsonl.gz";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return path.string();
}

}  // namespace harvest::testing
