// SPDX-License-Identifier: Apache-2.0
#include "cli/owner_trace.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace harvest::cli {
namespace {

using ::testing::HasSubstr;

const std::vector<OwnedDevice> kKnown{{1, 48ULL << 30}, {2, 24ULL << 30}};
const std::string kHeader = "time_s,device,used_bytes\n";

Result<OwnerTrace> parse(const std::string& text) {
  return parse_owner_trace(text, "used.csv", kKnown);
}

TEST(OwnerTrace, ReadsStepsFromTheFirstRowOn) {
  const auto trace = parse(kHeader +
                           "1700000000.5,1,1024\n"
                           "1700000057.5,2,0\n"
                           "1700000057.5,1,51539607552\n"
                           "1700000100,1,7\n");
  ASSERT_TRUE(trace) << trace.error().message;
  const std::vector<OwnerStep> expected{
      {0, 1, 1024}, {57'000'000'000, 2, 0}, {57'000'000'000, 1, 48ULL << 30}, {99'500'000'000, 1, 7}};
  EXPECT_EQ(trace->steps, expected);
  EXPECT_EQ(trace->duration_ns(), 99'500'000'000);
  EXPECT_EQ(trace->devices(), (std::vector<DeviceId>{1, 2}));
}

TEST(OwnerTrace, ReadsLinesAsOtherProgramsEndThem) {
  const std::string rows = kHeader + "0,1,5\n3,1,6";
  const auto trace = parse(rows);  // the last line has no end
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_EQ(trace->steps.size(), 2U);
  std::string windows;
  for (const char c : rows) windows += c == '\n' ? "\r\n" : std::string(1, c);
  const auto same = parse(windows + "\r\n");
  ASSERT_TRUE(same) << same.error().message;
  EXPECT_EQ(same->steps, trace->steps);
}

TEST(OwnerTrace, ComesBackAsItWasWritten) {
  const OwnerTrace trace{{{0, 2, 0},
                          {1, 1, 1},
                          {123'456'789'012'345, 1, 48ULL << 30},
                          {8'999'999'999'999'999'999, 2, 24ULL << 30}}};
  const auto again = parse(to_csv(trace));
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->steps, trace.steps);
}

struct Bad {
  const char* what;
  std::string text;
  std::vector<std::string> named;
};

TEST(OwnerTrace, SaysWhatIsWrongWhere) {
  const std::string good = kHeader + "0,1,5\n";
  const std::vector<Bad> table{
      {"empty", "", {"used.csv: the file is empty"}},
      {"no header", "0,1,5\n", {"used.csv:1:", "'0,1,5'", "time_s,device,used_bytes"}},
      {"another header", "time_s;device;used_bytes\n", {"used.csv:1:", "'time_s;device;used_bytes'"}},
      {"a header alone", kHeader, {"used.csv: no row"}},
      {"one time", good + "0,2,5\n", {"used.csv:", "all rows are of one time"}},
      {"an empty line", good + "\n1,1,5\n", {"used.csv:3:", "0 columns", "not 3"}},
      {"too few columns", good + "1,1\n", {"used.csv:3:", "2 columns in '1,1', not 3"}},
      {"too many columns", good + "1,1,5,6\n", {"used.csv:3:", "4 columns in '1,1,5,6', not 3"}},
      {"no time", good + ",1,5\n", {"used.csv:3:", "time_s is ''", "0 to 9000000000"}},
      {"words for a time", good + "soon,1,5\n", {"used.csv:3:", "time_s is 'soon'"}},
      {"a time and more", good + "1s,1,5\n", {"used.csv:3:", "time_s is '1s'"}},
      {"no number", good + "nan,1,5\n", {"used.csv:3:", "time_s is 'nan'", "0 to 9000000000"}},
      {"endless", good + "inf,1,5\n", {"used.csv:3:", "time_s is 'inf'"}},
      {"before the beginning", good + "-1,1,5\n", {"used.csv:3:", "time_s is '-1'"}},
      {"after the end of time", good + "9000000000,1,5\n", {"used.csv:3:", "time_s is '9000000000'"}},
      {"an exponent", good + "1e3,1,5\n", {"used.csv:3:", "time_s is '1e3'", "as in 57.25"}},
      {"half a fraction", good + "1.,1,5\n", {"used.csv:3:", "time_s is '1.'"}},
      {"two fractions", good + "1.5.5,1,5\n", {"used.csv:3:", "time_s is '1.5.5'"}},
      {"back in time",
       good + "4,1,5\n3.5,1,6\n",
       {"used.csv:4:", "'3.5', before the 4.000000000 of the row above"}},
      {"the consumer", good + "1,0,5\n", {"used.csv:3:", "device is '0'", "1, 2"}},
      {"the host", good + "1,-1,5\n", {"used.csv:3:", "device is '-1'", "1, 2"}},
      {"unknown device", good + "1,3,5\n", {"used.csv:3:", "device is '3'", "1, 2"}},
      {"a name", good + "1,GPU 1,5\n", {"used.csv:3:", "device is 'GPU 1'"}},
      {"a huge device", good + "1,99999999999,5\n", {"used.csv:3:", "device is '99999999999'"}},
      {"more than there is",
       good + "1,2,25769803777\n",
       {"used.csv:3:", "'25769803777'", "25769803776", "2"}},
      {"negative bytes", good + "1,1,-5\n", {"used.csv:3:", "used_bytes is '-5'"}},
      {"half bytes", good + "1,1,5.5\n", {"used.csv:3:", "used_bytes is '5.5'", "whole number"}},
      {"too many bytes", good + "1,1,99999999999999999999\n", {"used.csv:3:", "'99999999999999999999'"}},
      {"bytes with a unit", good + "1,1,5GiB\n", {"used.csv:3:", "used_bytes is '5GiB'"}},
      {"spaces", good + "1, 1,5\n", {"used.csv:3:", "device is ' 1'"}},
      {"what cannot be printed", good + std::string("1,1,\0\x1b[31m", 10) + "\n", {"'??[31m'"}},
      {"a long line", good + std::string(5000, 'x') + "\n", {"used.csv:3:", "x...'"}},
  };
  for (const Bad& bad : table) {
    SCOPED_TRACE(bad.what);
    const auto trace = parse(bad.text);
    ASSERT_FALSE(trace);
    EXPECT_EQ(trace.error().code, ErrorCode::malformed);
    EXPECT_LT(trace.error().message.size(), 200U);
    for (const std::string& text : bad.named) EXPECT_THAT(trace.error().message, HasSubstr(text));
  }
}

TEST(OwnerTrace, FilesThatAreNone) {
  const auto missing = read_owner_trace("/nonexistent/used.csv", kKnown);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::not_found);
  EXPECT_THAT(missing.error().message,
              HasSubstr("cannot read recording of owners '/nonexistent/used.csv': No such file"));
  const auto folder = read_owner_trace("/", kKnown);
  ASSERT_FALSE(folder);
  EXPECT_THAT(folder.error().message, HasSubstr("is a folder, not a recording of owners"));
  const Status written = write_owner_trace("/nonexistent/used.csv", {});
  ASSERT_FALSE(written);
  EXPECT_THAT(written.error().message, HasSubstr("'/nonexistent/used.csv' cannot be written: No such file"));
}

}  // namespace
}  // namespace harvest::cli
