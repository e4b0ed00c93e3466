// SPDX-License-Identifier: Apache-2.0
#include <harvest/trace.hpp>

#include "cli/files.hpp"
#include "wrong_input/table.hpp"

namespace harvest::testing {
namespace {

constexpr const char* kGood =
    R"({"timestamp": 3000, "input_length": 900, "output_length": 52, "hash_ids": [0, 1]})"
    "\n";

class TraceTable : public ::testing::Test {
 protected:
  Outcome read(const std::string& content) { return read_mooncake_trace(folder_.file("trace", content)); }
  void show_files();

  TemporaryFolder folder_;
  Table table_{"Traces"};
};

void TraceTable::show_files() {
  std::string many;
  for (int i = 0; i < 1000; ++i) many += kGood;
  const std::string zipped = gzipped(many);
  std::string damaged = zipped;
  damaged[zipped.size() - 6] = static_cast<char>(~damaged[zipped.size() - 6]);
  table_.shows("a file that is not there", read_mooncake_trace("/no/such/trace.jsonl"));
  table_.shows("a folder", read_mooncake_trace("/"));
  table_.shows("`/dev/zero`", read_mooncake_trace("/dev/zero"));
  const std::string good = folder_.file("trace", kGood);
  table_.shows("a line beyond `TraceLimits::line_bytes`", read_mooncake_trace(good, {.line_bytes = 80}));
  table_.shows("a file beyond `TraceLimits::text_bytes`", read_mooncake_trace(good, {.text_bytes = 81}));
  table_.shows("an empty file", read(""));
  table_.shows("a file of blank lines", read("\n\n"));
  table_.shows("an empty gzip", read(gzipped("")));
  table_.shows("a gzip that is cut off", read(zipped.substr(0, zipped.size() / 2)));
  table_.shows("a gzip with a wrong byte", read(damaged));
  table_.shows("a line that is not text", read(std::string(kGood) + "\x01\xff\n" + kGood));
}

TEST_F(TraceTable, IsTrue) {
  show_files();
  Trace trace;
  trace.requests.resize(2);
  trace.requests[0].arrival_ns = 5;
  table_.stops("`spread_arrivals` with a step of 0", [&] { spread_arrivals(trace, 0); });
  table_.stops("`spread_arrivals` of times that go backwards", [&] { spread_arrivals(trace, 1); });
  for (const Row& row : table_.rows()) {
    const auto line = in_backticks(row.input);
    const bool is_line = line.size() == 1 && row.input == "`" + line[0] + "`" && line[0][0] != '/';
    if (is_line) table_.shows(row.input, read(kGood + line[0] + "\n" + kGood));
  }
}

}  // namespace
}  // namespace harvest::testing
