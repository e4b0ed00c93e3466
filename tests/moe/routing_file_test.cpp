// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/moe/routing.hpp>

#include <algorithm>
#include <filesystem>
#include <string>

#include "cli/files.hpp"

/// Recordings as files.
namespace harvest::moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr RoutingShape kShape{.layers = 2, .experts = 8, .top_k = 2};

constexpr const char* kGood =
    R"({"step": 0, "phase": "prefill", "sequence": 7, "layer": 0, "tokens": 5, "experts": [1, 2, 3]})"
    "\n"
    R"({"step": 0, "phase": "prefill", "sequence": 7, "layer": 1, "tokens": 5, "experts": [4, 0]})"
    "\n"
    R"({"step": 3, "phase": "decode", "sequence": 7, "layer": 0, "experts": [1, 5], "gate": [0.7, 0.3]})"
    "\n"
    R"({"experts": [7, 0], "layer": 1, "tokens": 1, "sequence": 7, "phase": "decode", "step": 3})"
    "\n";

class RoutingFile : public ::testing::Test {
 protected:
  [[nodiscard]] Result<RoutingTrace> read(const std::string& text) const {
    return read_routing(folder_.file("routing", text), kShape);
  }
  /// What is wrong with a file of good lines and `line`, without its path.
  [[nodiscard]] std::string complaint(const std::string& line) const {
    const auto trace = read(kGood + line + "\n");
    if (trace) return "taken";
    EXPECT_EQ(trace.error().code, ErrorCode::malformed);
    const std::string path = (folder_.path() / "routing").string();
    EXPECT_THAT(trace.error().message, StartsWith(path + ":"));
    return trace.error().message.substr(path.size() + 1);
  }

  testing::TemporaryFolder folder_;
};

TEST_F(RoutingFile, IsReadPlainOrGzipped) {
  const std::string text = kGood;
  for (const std::string& content :
       {text, text.substr(0, text.size() - 1), "\r\n \n" + text + "\n", testing::gzipped(text)}) {
    const auto trace = read(content);
    ASSERT_TRUE(trace) << trace.error().message;
    ASSERT_EQ(trace->size(), 2U);
    EXPECT_EQ(trace->shape(), kShape);
    EXPECT_EQ(trace->step(0).phase(), Phase::prefill);
    EXPECT_THAT(trace->step(0).sequences(), ElementsAre(BatchSequence{7, 5}));
    EXPECT_THAT(trace->step(0).experts(0), ElementsAre(1, 2, 3));
    EXPECT_THAT(trace->step(0).experts(1), ElementsAre(4, 0));
    EXPECT_EQ(trace->step(1).phase(), Phase::decode);
    EXPECT_THAT(trace->step(1).experts(0), ElementsAre(1, 5));
    EXPECT_THAT(trace->step(1).experts(1), ElementsAre(7, 0));
  }
}

TEST_F(RoutingFile, IsReadAsItWasWritten) {
  for (const RoutingModel& model : routing_models()) {
    auto generator = RoutingGenerator::create(model, {3, {1, 40}, {1, 6}, 5});
    ASSERT_TRUE(generator);
    RoutingTrace trace(model.shape);
    for (int i = 0; i < 12; ++i) ASSERT_TRUE(trace.add(generator->next()));
    for (const char* name : {"plain.jsonl", "packed.jsonl.gz"}) {
      const std::string path = (folder_.path() / name).string();
      ASSERT_TRUE(write_routing(path, trace));
      const auto again = read_routing(path, model.shape);
      ASSERT_TRUE(again) << again.error().message;
      EXPECT_EQ(*again, trace) << model.name;
    }
    EXPECT_LT(std::filesystem::file_size(folder_.path() / "packed.jsonl.gz") * 2,
              std::filesystem::file_size(folder_.path() / "plain.jsonl"));
    EXPECT_EQ(testing::read_file(folder_.path() / "plain.jsonl").front(), '{');
  }
}

TEST_F(RoutingFile, LeavesOutAStepThatIsNotWhole) {
  auto trace = read(kGood);
  ASSERT_TRUE(trace);
  const RoutingTrace before = *trace;
  const std::vector<std::uint32_t> experts{1, 2};
  ASSERT_TRUE(trace->add({9, Phase::decode, 7, 0, 1, experts}));
  const std::string path = (folder_.path() / "written").string();
  ASSERT_TRUE(write_routing(path, *trace));
  EXPECT_EQ(*read_routing(path, kShape), before);
}

TEST_F(RoutingFile, NamesTheFieldOfAWrongLine) {
  EXPECT_THAT(complaint("hello"), StartsWith("5: not JSON"));
  EXPECT_EQ(complaint("[1]"), "5: the document is [1], it must be an object");
  EXPECT_EQ(complaint(R"({"phase": "decode"})"), "5: field step is missing");
  const auto with = [this](const std::string& wrong, const std::string& field) {
    std::string line = R"({"step": 4, "phase": "decode", "sequence": 1, "layer": 0, "experts": [1, 5]})";
    const auto begin = line.find("\"" + field + "\": ") + field.size() + 4;
    const auto end = field == "experts" ? line.size() - 1 : line.find(", \"", begin);
    return complaint(line.replace(begin, end - begin, wrong));
  };
  EXPECT_EQ(with("-1", "step"), "5: step is -1, it must be an integer from 0 to 18446744073709551615");
  EXPECT_EQ(with("2.5", "step"), "5: step is 2.5, it must be an integer from 0 to 18446744073709551615");
  EXPECT_EQ(with("2", "step"), "5: step goes back from 3 to 2");
  EXPECT_EQ(with("3", "step"), "5: step 3 is whole already");
  EXPECT_EQ(with("\"train\"", "phase"), "5: phase is 'train'; known are prefill, decode");
  EXPECT_EQ(with("1", "phase"), "5: phase is 1, it must be a string");
  EXPECT_EQ(with("4294967296", "sequence"),
            "5: sequence is 4294967296, it must be an integer from 0 to 4294967295");
  EXPECT_EQ(with("2", "layer"), "5: layer is 2, the model has 2");
  EXPECT_EQ(with("null", "layer"), "5: layer is null, it must be an integer from 0 to 4294967295");
  EXPECT_EQ(with("0, \"tokens\": 0", "layer"), "5: tokens is 0, the limits are 1 and 16777216");
  EXPECT_EQ(with("{}", "experts"), "5: experts is {}, it must be an array");
  EXPECT_EQ(with("[1, -5]", "experts"), "5: experts[1] is -5, it must be an integer from 0 to 4294967295");
  EXPECT_EQ(with("[1, 8]", "experts"), "5: experts has 8, the model has 8");
  EXPECT_EQ(with("[5, 5]", "experts"), "5: experts has 5 twice");
  EXPECT_EQ(with("[5]", "experts"), "5: experts has 1 of them, the limits for 1 token are 2 and 2");
}

TEST_F(RoutingFile, NamesTheLimitOfAWrongFile) {
  EXPECT_THAT(read("").error().message, HasSubstr("routing:1: the file ends without a step"));
  const std::string last = R"({"step": 4, "phase": "decode", "sequence": 1, "layer": 0, "experts": [1, 5]})";
  EXPECT_EQ(complaint(last), "6: step 4 ends in layer 0 after 1 of 1 sequences; the model has 2 layers");
  EXPECT_THAT(read_routing("/", kShape).error().message, HasSubstr("'/' is a folder, not a routing file"));
  EXPECT_EQ(read_routing("/no/such", kShape).error().message,
            "cannot open routing file '/no/such': No such file or directory");
  EXPECT_THAT(read_routing("/dev/zero", kShape).error().message,
              HasSubstr("/dev/zero:1: the line is longer"));
  const std::string path = folder_.file("routing", kGood);
  EXPECT_THAT(read_routing(path, kShape, {.line_bytes = 80}).error().message,
              HasSubstr("routing:1: the line is longer than the limit of 80 bytes"));
  EXPECT_THAT(read_routing(path, kShape, {.text_bytes = 200}).error().message,
              HasSubstr("the file has more text than the limit of 200 bytes"));
  EXPECT_EQ(read_routing(path, {2, 8, 9}).error().code, ErrorCode::invalid_argument);
  const std::string packed = testing::gzipped(kGood);
  EXPECT_THAT(read(packed.substr(0, packed.size() - 9)).error().message, HasSubstr("truncated"));
}

TEST_F(RoutingFile, SaysWhyItCannotBeWritten) {
  const auto trace = read(kGood);
  ASSERT_TRUE(trace);
  const auto written = write_routing("/no/such/file", *trace);
  EXPECT_EQ(written.error().code, ErrorCode::not_found);
  EXPECT_EQ(written.error().message, "'/no/such/file' cannot be written: No such file or directory");
  EXPECT_THAT(write_routing("/dev/full", *trace).error().message, HasSubstr("No space left on device"));
}

}  // namespace
}  // namespace harvest::moe
