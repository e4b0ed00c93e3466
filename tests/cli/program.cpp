// SPDX-License-Identifier: Apache-2.0
#include "cli/program.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace harvest::testing {
namespace {

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// In the child: never returns.
[[noreturn]] void become_harvest(std::vector<std::string> words, const char* out, const char* err) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int out_file = ::open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const int err_file = ::open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (out_file < 0 || err_file < 0 || ::dup2(out_file, STDOUT_FILENO) < 0 ||
      ::dup2(err_file, STDERR_FILENO) < 0)
    ::_exit(126);
  ::execv(HARVEST_PROGRAM, argv.data());
  ::_exit(127);
}

}  // namespace

Ran run_harvest(const std::vector<std::string>& arguments) {
  const TemporaryFolder folder;
  const std::string out = folder.file("out", "");
  const std::string err = folder.file("err", "");
  std::vector<std::string> words{"harvest"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const pid_t child = ::fork();
  if (child == 0) become_harvest(std::move(words), out.c_str(), err.c_str());
  int status = 0;
  Ran ran;
  if (child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status))
    ran.exit_code = WEXITSTATUS(status);
  ran.out = read(out);
  ran.err = read(err);
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

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "harvest-test-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TemporaryFolder::file(const std::string& name, std::string_view content) const {
  const auto path = path_ / name;
  std::ofstream(path, std::ios::binary) << content;
  return path.string();
}

std::string mooncake(const std::vector<TraceLine>& lines) {
  std::string text;
  for (const TraceLine& line : lines)
    text += fmt::format(R"({{"timestamp": {}, "input_length": {}, "output_length": 10, "hash_ids": [{}]}})"
                        "\n",
                        line.timestamp_ms, line.blocks.size() * 512, fmt::join(line.blocks, ", "));
  return text;
}

std::string gzipped(std::string_view text) {
  const TemporaryFolder folder;
  const std::string path = folder.file("text.gz", "");
  const gzFile file = gzopen(path.c_str(), "wb");
  EXPECT_EQ(gzwrite(file, text.data(), static_cast<unsigned>(text.size())), static_cast<int>(text.size()));
  EXPECT_EQ(gzclose(file), Z_OK);
  return read(path);
}

std::optional<std::string> conversation_trace() {
  const char* folder = std::getenv("HARVEST_TRACES");
  const auto path = std::filesystem::path(folder != nullptr ? folder : HARVEST_DEFAULT_TRACES) / "mooncake" /
                    "conversation_trace.jsonl.gz";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return path.string();
}

}  // namespace harvest::testing
