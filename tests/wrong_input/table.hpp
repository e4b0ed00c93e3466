// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/status.hpp>

#include <csignal>
#include <string>
#include <string_view>
#include <vector>

/// docs/reliability.md says under "Wrong input" what each wrong input gets. These tests read it, so that the
/// page and the program cannot drift: a test shows every row of its table, and a row nobody shows fails it.
namespace harvest::testing {

/// One line of a table: what goes in, what comes out, and words of the message.
struct Row {
  std::string input;
  std::string answer;              ///< an error code, an exit code, `ok`, a value, or `stops`
  std::vector<std::string> words;  ///< of an error's message: what stands in backticks in the third column
};

/// The rows of the table under "### `heading`" of a page. Throws if there is none.
[[nodiscard]] std::vector<Row> read_table(std::string_view page, const std::string& heading);

/// docs/reliability.md.
[[nodiscard]] const std::string& reliability_page();

/// The text between backticks, each.
[[nodiscard]] std::vector<std::string> in_backticks(std::string_view text);

/// What a call gave: the code of an error and its message, or `ok`.
struct Outcome {
  std::string answer;
  std::string message;

  Outcome(std::string text) : answer(std::move(text)) {}  // NOLINT: a value is an outcome
  Outcome(const char* text) : answer(text) {}             // NOLINT
  Outcome(ErrorCode code) : answer(to_string(code)) {}    // NOLINT
  Outcome(const Error& error) : answer(to_string(error.code)), message(error.message) {}  // NOLINT
  template <typename T>
  Outcome(const Result<T>& result)  // NOLINT
      : Outcome(result ? Error{} : result.error()) {}
};

/// The differences between what a row says and what a call gave; empty if there are none.
[[nodiscard]] std::string difference(const Row& row, const Outcome& given);

/// The table under one heading, while a test shows its rows.
class Table {
 public:
  explicit Table(const std::string& heading) : Table(reliability_page(), heading) {}
  Table(std::string_view page, const std::string& heading);
  /// Fails the test for each row that it has not shown.
  ~Table();
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  [[nodiscard]] const std::vector<Row>& rows() const { return rows_; }

  /// Wrong input, in the words of the first column, gave this.
  void shows(const std::string& input, const Outcome& given);

  /// The row cannot be shown in this build.
  void waives(const std::string& input);

  /// `act`, in a process of its own, is stopped and says on stderr what the row says.
  template <typename Act>
  void stops(const std::string& input, Act act) {
    const Row* row = take(input);
    if (row == nullptr) return;
    EXPECT_EQ(row->answer, "stops") << input;
    EXPECT_EXIT(act(), ::testing::KilledBySignal(SIGABRT), has_all(row->words)) << input;
  }

  /// `act`, in a process of its own, prints a message on stderr and exits with the number of its code.
  template <typename Act>
  void exits(const std::string& input, ErrorCode code, Act act) {
    const Row* row = take(input);
    if (row == nullptr) return;
    EXPECT_EQ(row->answer, to_string(code)) << input;
    EXPECT_EXIT(act(), ::testing::ExitedWithCode(static_cast<int>(code)), has_all(row->words)) << input;
  }

 private:
  /// The row of that input, which is shown from now on. Null, and a failure, if there is none.
  const Row* take(const std::string& input);
  [[nodiscard]] static ::testing::Matcher<const std::string&> has_all(const std::vector<std::string>& words);

  std::string heading_;
  std::vector<Row> rows_;
  std::vector<bool> shown_;
};

}  // namespace harvest::testing
