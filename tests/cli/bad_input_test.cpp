// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cli/program.hpp"

/// Bad input: exit code 2, nothing on stdout, one line on stderr that names the value and what is allowed.
namespace harvest::testing {
namespace {

using ::testing::HasSubstr;

void expect_refused(const std::vector<std::string>& arguments, const std::vector<std::string>& named) {
  const Ran ran = run_harvest(arguments);
  std::string line;
  for (const std::string& word : arguments) line += word + " ";
  SCOPED_TRACE("harvest " + line);
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  EXPECT_THAT(ran.err, ::testing::StartsWith("harvest"));
  for (const std::string& text : named) EXPECT_THAT(ran.err, HasSubstr(text));
}

class BadInput : public ::testing::Test {
 protected:
  /// `replay` or `policy` of a good trace, and more.
  std::vector<std::string> with_trace(const std::string& command,
                                      const std::vector<std::string>& more) const {
    std::vector<std::string> all{command, "--trace", trace_};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  TemporaryFolder folder_;
  std::string trace_ = folder_.file("good.jsonl", mooncake({{0, {1, 2}}, {3000, {1, 2, 3}}}));
};

TEST_F(BadInput, CommandsAndOptions) {
  expect_refused({}, {"topo, policy, replay, demo or bench"});
  expect_refused({"fly"}, {"fly"});
  expect_refused({"topo", "--sytem", "dgx-h100"}, {"--sytem", "harvest topo --help"});
  expect_refused({"policy"}, {"--trace"});
  expect_refused({"replay"}, {"--trace"});
  expect_refused({"replay", "--trace"}, {"--trace"});
  expect_refused({"demo", "--json=yes"}, {"json", "harvest demo --help"});
}

TEST_F(BadInput, Systems) {
  for (const char* command : {"topo", "demo"})
    expect_refused({command, "--system", "dgx-h1000"},
                   {"--system", "'dgx-h1000'", "dgx-h100", "2xh100-nvl", "4x4090-pcie"});
  expect_refused(with_trace("replay", {"--system", "nowhere"}), {"--system", "'nowhere'", "dgx-h100"});
  const std::string broken = folder_.file("machine.json", R"({"name": "half a)");
  for (const char* command : {"topo", "demo"}) expect_refused({command, "--system", broken}, {broken});
  for (const char* command : {"topo", "demo"}) expect_refused({command, "--system", ""}, {"--system", "''"});
  for (const char* command : {"topo", "demo"})
    expect_refused({command, "--system", "/"}, {"--system", "'/'", "dgx-h100"});  // a folder
  const std::string empty = folder_.file("empty.json", "{}");
  expect_refused({"topo", "--system", empty}, {empty});
}

TEST_F(BadInput, TracesThatCannotBeRead) {
  const auto both = [&](const std::string& path, const std::vector<std::string>& named) {
    expect_refused({"policy", "--trace", path}, named);
    expect_refused({"replay", "--trace", path}, named);
  };
  const std::string good = mooncake({{0, {1, 2}}, {3000, {1, 2, 3}}});
  both("/nonexistent/trace.jsonl", {"--trace", "/nonexistent/trace.jsonl"});
  both(folder_.file("none.jsonl", ""), {"none.jsonl"});
  both(folder_.file("words.jsonl", good + "hello\n"), {"words.jsonl:3:"});
  both(folder_.file("field.jsonl", good + R"({"timestamp": 6000, "hash_ids": [1]})"
                                          "\n"),
       {"field.jsonl:3:"});
  both(folder_.file("type.jsonl",
                    R"({"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ["x"]})"),
       {"type.jsonl:1:"});
  both(folder_.file("back.jsonl", mooncake({{3000, {1}}, {0, {2}}})), {"back.jsonl:2:"});

  const std::string zipped = gzipped(good);
  both(folder_.file("short.gz", zipped.substr(0, zipped.size() - 6)), {"short.gz"});
  std::string damaged = zipped;
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 0x5a);
  both(folder_.file("damaged.gz", damaged), {"damaged.gz"});
  expect_refused(with_trace("policy", {"--format", "csv"}), {"--format", "'csv'", "mooncake"});
}

TEST_F(BadInput, Policies) {
  expect_refused(with_trace("policy", {"--policies", "lru,lrru"}), {"--policies", "'lrru'", "lru", "belady"});
  expect_refused(with_trace("policy", {"--policies", "lru,"}), {"--policies", "''"});
  expect_refused(with_trace("policy", {"--capacity-blocks", "10,0"}), {"--capacity-blocks", "'0'", "from 1"});
  expect_refused(with_trace("policy", {"--capacity-blocks", "many"}), {"--capacity-blocks", "'many'"});
  expect_refused(with_trace("policy", {"--policies", ""}), {"--policies", "''"});
  expect_refused(with_trace("replay", {"--policy", ""}), {"--policy", "''"});
  expect_refused(with_trace("replay", {"--policy", "belady"}), {"--policy", "'belady'", "lru"});
}

TEST_F(BadInput, SizesThatAreNoneOrDoNotFit) {
  for (const std::string option : {"--local", "--peer", "--host"}) {
    for (const std::string text : {"16G", "-1", "lots", "", "0.1"})
      expect_refused(with_trace("replay", {option, text}), {option, "'" + text + "'", "16GiB"});
    expect_refused(with_trace("replay", {option, "99999999999TiB"}),
                   {option, "'99999999999TiB'", "limit of 1.0 PiB"});
  }
  expect_refused(with_trace("replay", {"--system", "4x4090-pcie", "--local", "24GiB"}),
                 {"--local", "24.0 GiB", "GPU 0", "23.8 GiB", "3 blocks of 64.0 MiB"});
  expect_refused(with_trace("replay", {"--system", "4x4090-pcie", "--local", "1GiB", "--peer", "25GiB"}),
                 {"--peer", "25.0 GiB", "GPU 1", "24.0 GiB"});
  expect_refused(
      with_trace("replay", {"--system", "4x4090-pcie", "--local", "1GiB", "--peer", "25769803777"}),
      {"--peer", "25769803777 B", "GPU 1", "25769803776 B"});  // not "24.0 GiB do not fit into 24.0 GiB"
  expect_refused(with_trace("replay", {"--host", "513GiB"}), {"--host", "513.0 GiB", "512.0 GiB"});
  expect_refused(with_trace("replay", {"--host", "63MiB"}), {"--host", "63.0 MiB", "64.0 MiB"});
}

TEST_F(BadInput, OtherOptionsOfReplay) {
  expect_refused(with_trace("replay", {"--model", "llama-9"}),
                 {"--model", "'llama-9'", "llama-3-8b", "deepseek-v3"});
  expect_refused(with_trace("replay", {"--owner-activity", "wild"}),
                 {"--owner-activity", "'wild'", "none, steady, bursty"});
  expect_refused(with_trace("replay", {"--seed", "-1"}), {"--seed", "'-1'", "from 0 to 4294967295"});
  expect_refused(with_trace("replay", {"--requests", "0"}), {"--requests", "'0'", "from 1"});
  // In milliseconds since 1970: years of virtual time in which nothing happens.
  const std::string late = folder_.file("late.jsonl", mooncake({{0, {1}}, {1'700'000'000'000, {1}}}));
  expect_refused({"replay", "--trace", late}, {"--trace", "472222 hours", "168", "--requests"});
}

}  // namespace
}  // namespace harvest::testing
