// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>
#include <harvest/trace.hpp>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace harvest {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kTwoRequests =
    R"({"timestamp": 0, "input_length": 900, "output_length": 52, "hash_ids": [0, 1]})"
    "\n"
    R"({"hash_ids": [0, 18446744073709551615], "timestamp": 3000, "output_length": 0, "input_length": 7, "x": {}})"
    "\n";

class TraceFile : public testing::Test {
 protected:
  TraceFile()
      : folder_(std::filesystem::temp_directory_path() /
                ("harvest_trace_test_" + std::to_string(getpid()) + "_" +
                 testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::create_directories(folder_);
  }
  ~TraceFile() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }

  std::string gzipped(const std::string& content) const {
    const gzFile file = gzopen(path("packed").c_str(), "wb");
    EXPECT_EQ(gzwrite(file, content.data(), static_cast<unsigned>(content.size())),
              static_cast<int>(content.size()));
    EXPECT_EQ(gzclose(file), Z_OK);
    std::ifstream stream(path("packed"), std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  /// The message of the error that reading a file of `content` gives; it must be `malformed`.
  std::string complaint(const std::string& content) const {
    const auto trace = read_mooncake_trace(write("trace", content));
    if (trace) return "no error";
    EXPECT_EQ(trace.error().code, ErrorCode::malformed);
    return trace.error().message;
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(TraceFile, IsReadPlainOrGzipped) {
  const std::string without_last_newline(kTwoRequests, std::char_traits<char>::length(kTwoRequests) - 1);
  for (const std::string& content : {std::string(kTwoRequests), without_last_newline, gzipped(kTwoRequests),
                                     "\r\n  \n" + std::string(kTwoRequests) + "\n"}) {
    const auto trace = read_mooncake_trace(write("trace", content));
    ASSERT_TRUE(trace) << trace.error().message;
    ASSERT_EQ(trace->requests.size(), 2U);
    const TraceRequest& first = trace->requests[0];
    EXPECT_EQ(first.arrival_ns, 0);
    EXPECT_EQ(first.input_tokens, 900U);
    EXPECT_EQ(first.output_tokens, 52U);
    EXPECT_THAT(first.block_ids, ElementsAre(0U, 1U));
    EXPECT_EQ(trace->requests[1].arrival_ns, 3'000'000'000);
    EXPECT_THAT(trace->block_accesses(), ElementsAre(Key(0), Key(1), Key(0), Key(~std::uint64_t{0})));
  }
}

TEST_F(TraceFile, MayHaveLinesOfAnyLength) {
  std::string content = R"({"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [7)";
  for (int i = 0; i < 100'000; ++i) content += ", " + std::to_string(i);  // several buffers long
  const auto trace = read_mooncake_trace(write("trace", content + "]}\n" + content + "]}"));
  ASSERT_TRUE(trace) << trace.error().message;
  ASSERT_EQ(trace->requests.size(), 2U);
  EXPECT_EQ(trace->requests[1].block_ids.size(), 100'001U);
  EXPECT_EQ(trace->requests[1].block_ids.back(), 99'999U);
}

TEST_F(TraceFile, BeyondTheLimitsIsMalformed) {
  const std::string two(kTwoRequests);
  const std::size_t longest = two.size() - two.find('\n') - 2;
  for (const std::string& content : {two, gzipped(two)}) {
    const std::string file = write("trace", content);
    EXPECT_TRUE(read_mooncake_trace(file, {.line_bytes = longest, .text_bytes = two.size()}));
    const auto long_line = read_mooncake_trace(file, {.line_bytes = longest - 1});
    ASSERT_FALSE(long_line);
    EXPECT_THAT(long_line.error().message,
                HasSubstr("trace:2: the line is longer than the limit of " + std::to_string(longest - 1)));
    const auto long_text = read_mooncake_trace(file, {.text_bytes = two.size() - 1});
    ASSERT_FALSE(long_text);
    EXPECT_EQ(long_text.error().code, ErrorCode::malformed);
    EXPECT_THAT(long_text.error().message,
                HasSubstr("more text than the limit of " + std::to_string(two.size() - 1)));
  }
}

/// The library that parses JSON writes it recursively, and a message shows what is wrong.
TEST_F(TraceFile, MayBeNestedHoweverDeeply) {
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  EXPECT_THAT(
      complaint(R"({"timestamp": )" + deep + R"(, "input_length": 1, "output_length": 1, "hash_ids": []})"),
      HasSubstr("'timestamp' has a JSON array"));
  EXPECT_THAT(complaint(deep), HasSubstr("a JSON array, not an object"));
}

TEST_F(TraceFile, ThatIsDamagedGzipIsMalformed) {
  std::string content;
  for (int i = 0; i < 3000; ++i) {
    content += R"({"timestamp": )" + std::to_string(i) +
               R"(, "input_length": 1, "output_length": 1, "hash_ids": [)" + std::to_string(i * 7919 % 1009) +
               "]}\n";
  }
  const std::string whole = gzipped(content);
  ASSERT_EQ(complaint(whole), "no error");
  // Cut in the header, in the data and in the checksum at the end.
  for (const std::size_t length : {std::size_t{5}, whole.size() / 2, whole.size() - 4}) {
    EXPECT_THAT(complaint(whole.substr(0, length)), HasSubstr("gzip data is truncated")) << length;
  }
  std::string wrong_checksum = whole;
  wrong_checksum[whole.size() - 6] = static_cast<char>(~wrong_checksum[whole.size() - 6]);
  EXPECT_THAT(complaint(wrong_checksum), HasSubstr("gzip data is damaged"));
}

TEST(SpreadArrivals, SpreadsAStepAndStopsAtTheNext) {
  Trace trace;
  for (const TimeNs arrival_ns : {0, 0, 0, 3000, 3000, 3600, 9000})
    trace.requests.push_back({arrival_ns, 1, 1, {}});
  spread_arrivals(trace, 3000);
  std::vector<TimeNs> arrivals_ns;
  for (const TraceRequest& request : trace.requests) arrivals_ns.push_back(request.arrival_ns);
  EXPECT_THAT(arrivals_ns, ElementsAre(0, 1000, 2000, 3000, 3300, 3600, 9000));
}

TEST(SpreadArrivals, KeepsTheOrderWhateverTheTimes) {
  Trace trace;
  spread_arrivals(trace);
  EXPECT_THAT(trace.requests, IsEmpty());
  for (int i = 0; i < 7; ++i) trace.requests.push_back({5, 1, 1, {}});
  for (int i = 0; i < 3; ++i) trace.requests.push_back({kNever - 1, 1, 1, {}});
  spread_arrivals(trace, 3);  // fewer ns than requests
  for (std::size_t i = 1; i < trace.requests.size(); ++i) {
    EXPECT_LE(trace.requests[i - 1].arrival_ns, trace.requests[i].arrival_ns);
  }
  EXPECT_EQ(trace.requests[6].arrival_ns, 5 + 2);
}

}  // namespace
}  // namespace harvest
