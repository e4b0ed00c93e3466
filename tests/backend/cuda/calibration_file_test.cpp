// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <harvest/cuda.hpp>
#include <iterator>
#include <optional>
#include <stdexcept>

#include "backend/cuda/calibration.hpp"

namespace harvest::cuda {
namespace {

using testing::HasSubstr;

class CalibrationFileTest : public testing::Test {
 protected:
  CalibrationFileTest() {
    std::string folder = (std::filesystem::temp_directory_path() / "harvest-calibration-XXXXXX").string();
    if (::mkdtemp(folder.data()) == nullptr) throw std::runtime_error("no temporary folder");
    folder_ = folder;
    path_ = (folder_ / "cache" / "calibration.json").string();
  }
  ~CalibrationFileTest() override { std::filesystem::remove_all(folder_); }

  void write_text(const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
    std::ofstream(path_, std::ios::binary) << text;
  }
  std::string read_text() {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  /// What reading `text` complains of.
  std::string complaint(const std::string& text) {
    write_text(text);
    const auto read = read_calibrations(path_);
    if (read) return "none";
    EXPECT_EQ(read.error().code, ErrorCode::malformed);
    EXPECT_THAT(read.error().message, HasSubstr(path_));
    return read.error().message;
  }

  std::filesystem::path folder_;
  std::string path_;
};

CardCalibration card(std::string name, std::string driver, std::uint64_t below_bytes) {
  CardCalibration result{std::move(name), std::move(driver), default_calibration()};
  result.thresholds[LinkClass::peer].kernel_below_bytes = below_bytes;
  return result;
}

/// A whole file of one card, with `replaced` in place of `what` in the peer's thresholds.
std::string file_with(const std::string& what = "", const std::string& replaced = "") {
  const auto link = [](const std::string& fields) { return "{" + fields + "}"; };
  const std::string good =
      R"("kernel_below_bytes": 1, "kernel_min_runs": 2, "kernel_blocks": 3, "batch_below_bytes": 4, "batch_min_runs": 5)";
  std::string peer = good;
  if (!what.empty()) peer.replace(peer.find(what), what.size(), replaced);
  return fmt::format(
      R"({{"format": 1, "cards": [{{"card": "A", "driver": "1", "links": {{"host_to_device": {0}, "device_to_host": {0},
          "peer": {1}, "same_device": {0}}}}}]}})",
      link(good), link(peer));
}

TEST_F(CalibrationFileTest, WhatIsWrittenIsRead) {
  const CardCalibration written = card("NVIDIA H200", "580.65.06", kNoLimitBytes);
  ASSERT_TRUE(write_calibration(path_, written));
  const auto read = read_calibrations(path_);
  ASSERT_TRUE(read) << read.error().message;
  ASSERT_EQ(read->size(), 1U);
  EXPECT_EQ(read->front().card, written.card);
  EXPECT_EQ(read->front().driver, written.driver);
  EXPECT_EQ(read->front().thresholds, written.thresholds);
}

TEST_F(CalibrationFileTest, AnotherCardOrDriverIsAddedAndTheSameIsReplaced) {
  ASSERT_TRUE(write_calibration(path_, card("A", "1", 100)));
  ASSERT_TRUE(write_calibration(path_, card("B", "1", 200)));
  ASSERT_TRUE(write_calibration(path_, card("A", "2", 300)));
  ASSERT_TRUE(write_calibration(path_, card("A", "1", 400)));
  const auto cards = read_calibrations(path_);
  ASSERT_TRUE(cards);
  EXPECT_EQ(cards->size(), 3U);
  const auto below = [&](const char* name, const char* driver) {
    return find_calibration(*cards, name, driver)[LinkClass::peer].kernel_below_bytes;
  };
  EXPECT_EQ(below("A", "1"), 400U);
  EXPECT_EQ(below("B", "1"), 200U);
  EXPECT_EQ(below("A", "2"), 300U);
  EXPECT_EQ(find_calibration(*cards, "B", "2"), default_calibration());
  EXPECT_EQ(find_calibration(*cards, "C", "1"), default_calibration());
}

TEST_F(CalibrationFileTest, LeavesNoTemporaryFile) {
  ASSERT_TRUE(write_calibration(path_, card("A", "1", 100)));
  ASSERT_TRUE(write_calibration(path_, card("B", "1", 100)));
  int files = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(path_).parent_path()))
    ++files;
  EXPECT_EQ(files, 1);
}

TEST_F(CalibrationFileTest, AFileThatIsNotThereIsNotFound) {
  const auto read = read_calibrations(path_);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::not_found);
  EXPECT_THAT(read.error().message, HasSubstr(path_));
  const auto folder = read_calibrations(folder_.string());
  ASSERT_FALSE(folder);
  EXPECT_EQ(folder.error().code, ErrorCode::not_found);
  EXPECT_THAT(folder.error().message, HasSubstr("is a folder"));
}

TEST_F(CalibrationFileTest, WhatIsWrongIsNamedWithItsPlaceItsValueAndItsLimit) {
  EXPECT_EQ(complaint(file_with()), "none");
  EXPECT_THAT(complaint(""), HasSubstr("not JSON"));
  EXPECT_THAT(complaint("[1]"), HasSubstr("the document is [1], it must be an object"));
  EXPECT_THAT(complaint(R"({"cards": []})"), HasSubstr("field format is missing"));
  EXPECT_THAT(complaint(R"({"format": 2, "cards": []})"),
              HasSubstr("format is 2, it must be an integer from 1 to 1"));
  EXPECT_THAT(complaint(R"({"format": 1})"), HasSubstr("field cards is missing"));
  EXPECT_THAT(complaint(R"({"format": 1, "cards": {}})"), HasSubstr("cards is {}, it must be an array"));
  EXPECT_THAT(complaint(R"({"format": 1, "cards": [7]})"), HasSubstr("cards[0] is 7, it must be an object"));
  EXPECT_THAT(complaint(R"({"format": 1, "cards": [], "more": 1})"), HasSubstr("unknown field more"));
  EXPECT_THAT(complaint(R"({"format": 1, "cards": [{"card": 1, "driver": "1", "links": {}}]})"),
              HasSubstr("cards[0].card is 1, it must be a string"));
  EXPECT_THAT(complaint(R"({"format": 1, "cards": [{"card": "A", "driver": "1", "links": {}}]})"),
              HasSubstr("field cards[0].links.host_to_device is missing"));
  EXPECT_THAT(complaint(R"({"format": 1e999, "cards": []})"), HasSubstr("1e999"));
}

/// Else an entry could be read that could not be written again.
TEST_F(CalibrationFileTest, AnEntryHasTheNameOfItsCardAndDriver) {
  for (const auto& [card, driver] : {std::pair{"", "1"}, {"A", ""}})
    EXPECT_THAT(
        complaint(fmt::format(
            R"({{"format": 1, "cards": [{{"card": "{}", "driver": "{}", "links": {{}}}}]}})", card, driver)),
        HasSubstr(fmt::format("cards[0] is '{}' with driver '{}', neither may be empty", card, driver)));
}

TEST_F(CalibrationFileTest, AFileWithoutAnEndIsRefused) {
  const auto read = read_calibrations("/dev/zero");
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::malformed);
  EXPECT_THAT(read.error().message, HasSubstr("16777216"));
}

TEST_F(CalibrationFileTest, ThresholdsAreCheckedOneByOne) {
  EXPECT_THAT(
      complaint(file_with(R"("kernel_min_runs": 2)", R"("kernel_min_runs": 0)")),
      HasSubstr("cards[0].links.peer.kernel_min_runs is 0, it must be an integer from 1 to 4294967295"));
  EXPECT_THAT(complaint(file_with(R"("kernel_blocks": 3)", R"("kernel_blocks": 1025)")),
              HasSubstr("cards[0].links.peer.kernel_blocks is 1025, it must be an integer from 1 to 1024"));
  EXPECT_THAT(complaint(file_with(R"("batch_below_bytes": 4)", R"("batch_below_bytes": -4)")),
              HasSubstr("cards[0].links.peer.batch_below_bytes is -4"));
  EXPECT_THAT(complaint(file_with(R"("batch_below_bytes": 4)", R"("batch_below_bytes": 0.5)")),
              HasSubstr("cards[0].links.peer.batch_below_bytes is 0.5"));
  EXPECT_THAT(complaint(file_with(R"("batch_min_runs": 5)", R"("batch_min_runs": 4294967296)")),
              HasSubstr("cards[0].links.peer.batch_min_runs is 4294967296"));
  EXPECT_THAT(complaint(file_with(R"("batch_min_runs")", R"("batch_minimum")")),
              HasSubstr("unknown field cards[0].links.peer.batch_minimum"));
  EXPECT_THAT(complaint(file_with(R"(, "batch_min_runs": 5)", "")),
              HasSubstr("field cards[0].links.peer.batch_min_runs is missing"));
}

TEST_F(CalibrationFileTest, TheSameCardTwiceIsAmbiguous) {
  ASSERT_TRUE(write_calibration(path_, card("A", "1", 100)));
  ASSERT_TRUE(write_calibration(path_, card("B", "1", 100)));
  std::string text = read_text();
  text.replace(text.find("\"B\""), 3, "\"A\"");
  EXPECT_THAT(complaint(text), HasSubstr("cards[1] is 'A' with driver '1', which is there before it"));
}

TEST_F(CalibrationFileTest, AFileThatCannotBeReadIsNotWrittenOver) {
  write_text("{ mine");
  const Status status = write_calibration(path_, card("A", "1", 100));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::malformed);
  EXPECT_EQ(read_text(), "{ mine");
}

TEST_F(CalibrationFileTest, RefusesWhatItCouldNotRead) {
  EXPECT_EQ(write_calibration(path_, card("", "1", 1)).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(write_calibration(path_, card("A", "", 1)).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(write_calibration("", card("A", "1", 1)).error().code, ErrorCode::invalid_argument);
  CardCalibration bad = card("A", "1", 1);
  bad.thresholds[LinkClass::same_device].kernel_blocks = 0;
  const Status status = write_calibration(path_, bad);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("same_device"));
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(CalibrationFileTest, WhereNothingCanBeWrittenTheSystemSaysWhy) {
  write_text("a file, where a folder is needed");
  const Status status = write_calibration(path_ + "/deeper/calibration.json", card("A", "1", 1));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::unavailable);
  EXPECT_THAT(status.error().message, HasSubstr("Not a directory"));
  EXPECT_EQ(read_text(), "a file, where a folder is needed");
}

/// Sets or clears a variable of the environment for a scope.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  ~Variable() { set(before_ ? before_->c_str() : nullptr); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const char* value) {
    if (value != nullptr)
      ::setenv(name_, value, 1);
    else
      ::unsetenv(name_);
  }
  const char* name_;
  std::optional<std::string> before_;
};

TEST(CalibrationPathTest, IsInTheUsersCache) {
  const Variable home("HOME", "/users/somebody");
  {
    const Variable cache("XDG_CACHE_HOME", "/var/cache/somebody");
    EXPECT_EQ(cuda_calibration_file(), "/var/cache/somebody/harvest/calibration.json");
  }
  for (const char* ignored : {static_cast<const char*>(nullptr), "", "relative"}) {
    const Variable cache("XDG_CACHE_HOME", ignored);
    EXPECT_EQ(cuda_calibration_file(), "/users/somebody/.cache/harvest/calibration.json");
  }
  const Variable cache("XDG_CACHE_HOME", nullptr);
  const Variable no_home("HOME", nullptr);
  EXPECT_EQ(cuda_calibration_file(), "");
}

}  // namespace
}  // namespace harvest::cuda
