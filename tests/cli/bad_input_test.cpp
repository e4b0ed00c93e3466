// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/cuda.hpp>
#include <harvest/machine.hpp>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "cli/program.hpp"
#include "wrong_input/table.hpp"

/// The tables of command lines in docs/reliability.md: each is run as it stands there.
namespace harvest::testing {
namespace {

using ::testing::HasSubstr;

constexpr const char* kTables[] = {"`harvest`",
                                   "`harvest topo`",
                                   "`harvest policy`",
                                   "`harvest replay`",
                                   "`harvest routing`",
                                   "`harvest demo`",
                                   "`harvest bench`",
                                   "`harvest bench owner`",
                                   "`harvest bench moe`",
                                   "`harvest bench calibrate`",
                                   "`harvest bench kv fetch`",
                                   "`harvest bench kv serve`",
                                   "`harvest bench kv turns`"};
/// Those that measure a machine.
const std::vector<std::string> kBenchmarks{"link", "fetch", "reclaim", "memory", "lookup"};

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
  return text;
}

/// The rows of a table, whose inputs are command lines; one for each benchmark where the page means them all.
std::vector<Row> lines_of(const std::string& table) {
  std::vector<Row> lines;
  for (Row row : read_table(reliability_page(), table)) {
    const auto quoted = in_backticks(row.input);
    EXPECT_EQ(quoted.size(), 1U) << row.input;
    row.input = quoted.front();
    const bool each = row.input.find("BENCHMARK") != std::string::npos;
    for (const std::string& name : each ? kBenchmarks : std::vector<std::string>{""}) {
      lines.push_back(row);
      lines.back().input = replaced(row.input, "BENCHMARK", name);
      for (std::string& word : lines.back().words) word = replaced(word, "BENCHMARK", name);
    }
  }
  return lines;
}

/// The words of a command line, as a shell cuts them; '' is an empty one.
std::vector<std::string> words_of(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word == "''" ? "" : word);
  return words;
}

class BadInput : public ::testing::TestWithParam<const char*> {
 protected:
  BadInput();
  void expect_row(const std::string& line, const Row& row);

  TemporaryFolder folder_;
};

/// The files that the page names.
BadInput::BadInput() {
  const std::string good = mooncake({{0, {1, 2}}, {3000, {1, 2, 3}}});
  folder_.file("good.jsonl", good);
  folder_.file("empty.jsonl", "");
  folder_.file("words.jsonl", good + "hello\n");
  folder_.file("types.jsonl",
               R"({"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ["x"]})");
  folder_.file("back.jsonl", mooncake({{3000, {1}}, {0, {2}}}));
  folder_.file("late.jsonl", mooncake({{0, {1}}, {1'700'000'000'000, {1}}}));  // in ms since 1970
  const std::string zipped = gzipped(good);
  folder_.file("cut.gz", zipped.substr(0, zipped.size() - 6));
  std::string damaged = zipped;
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 0x5a);
  folder_.file("damaged.gz", damaged);
  folder_.file("routing.jsonl",
               R"({"step": 0, "phase": "decode", "sequence": 3, "layer": 0, "experts": [1, 5]})"
               "\n"
               R"({"step": 0, "phase": "decode", "sequence": 3, "layer": 1, "experts": [0, 2]})"
               "\n");
  folder_.file("half.json", R"({"name": "half a)");
  folder_.file("empty.json", "{}");
  std::filesystem::create_directory(folder_.path() / "folder");

  Machine machine = *machine_from_preset("2xh100-nvl");
  for (MachineLink& link : machine.links) link.info.peer_access = false;
  folder_.file("apart.json", to_json(machine));
  machine.devices.erase(machine.devices.begin() + 1);
  std::erase_if(machine.links,
                [](const MachineLink& link) { return link.info.from == 1 || link.info.to == 1; });
  folder_.file("one-gpu.json", to_json(machine));
}

void BadInput::expect_row(const std::string& line, const Row& row) {
  SCOPED_TRACE(line);
  const auto redirected = line.find(" > ");
  Surroundings in{folder_.path().string(), {}};
  if (redirected != std::string::npos) in.out = line.substr(redirected + 3);
  std::vector<std::string> words = words_of(line.substr(0, redirected));
  ASSERT_EQ(words.front(), "harvest");
  words.erase(words.begin());
  const Ran ran = run_harvest(words, in);
  EXPECT_EQ(std::to_string(ran.exit_code), row.answer) << ran.err;
  for (const std::string& word : row.words) EXPECT_THAT(ran.err, HasSubstr(word));
  if (ran.exit_code == 0) return;
  EXPECT_FALSE(row.words.empty());
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  EXPECT_THAT(ran.err, ::testing::StartsWith("harvest"));
}

TEST_P(BadInput, IsRefusedAsThePageSays) {
  for (const Row& row : lines_of(GetParam())) expect_row(row.input, row);
}

INSTANTIATE_TEST_SUITE_P(Tables, BadInput, ::testing::ValuesIn(kTables), [](const auto& table) {
  std::string name;
  for (const char c : std::string_view(table.param))
    if (std::isalpha(static_cast<unsigned char>(c)) != 0) name += c;
  return name;
});

/// The options that the help of a command lists.
std::set<std::string> options_of(const std::string& command) {
  std::vector<std::string> words = words_of(command);
  words.emplace_back("--help");
  std::istringstream help(run_harvest(words).out);
  std::set<std::string> options;
  for (std::string line, word; std::getline(help, line);)
    if (line.starts_with("  --") && std::istringstream(line) >> word) options.insert(word);
  return options;
}

TEST(BadInputTables, NameEveryOption) {
  std::vector<std::string> commands{"topo",           "policy",         "replay",        "routing",
                                    "demo",           "bench owner",    "bench moe",     "bench calibrate",
                                    "bench kv fetch", "bench kv serve", "bench kv turns"};
  for (const std::string& name : kBenchmarks) commands.push_back("bench " + name);
  std::vector<std::string> lines;
  for (const char* table : kTables)
    for (const Row& row : lines_of(table)) lines.push_back(row.input + " ");
  for (const std::string& command : commands) {
    const auto options = options_of(command);
    EXPECT_GE(options.size(), 3U) << command;
    for (const std::string& option : options)
      EXPECT_TRUE(std::ranges::any_of(lines,
                                      [&](const std::string& line) {
                                        return line.starts_with("harvest " + command + " ") &&
                                               (line.find(" " + option + " ") != std::string::npos ||
                                                line.find(" " + option + "=") != std::string::npos);
                                      }))
          << "docs/reliability.md has no row for harvest " << command << " " << option;
  }
}

/// A machine with GPUs would be measured.
TEST(BadInputTables, WithoutAGpuABenchmarkSaysWhatToDo) {
  if (has_cuda() && make_cuda_backend()) GTEST_SKIP() << "this machine has a GPU";
  for (const std::string& name : kBenchmarks) {
    const Ran ran = run_harvest({"bench", name, "--quick"});
    EXPECT_EQ(ran.exit_code, 2);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, HasSubstr("no GPU to measure"));
    EXPECT_THAT(ran.err, HasSubstr("--system: 2xh100-nvl"));
  }
}

}  // namespace
}  // namespace harvest::testing
