// SPDX-License-Identifier: Apache-2.0
#include "wrong_input/table.hpp"

#include <gtest/gtest-spi.h>

/// The reader of the page sees what differs.
namespace harvest::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kPage =
    "# A page\n"
    "\n"
    "### `put`\n"
    "\n"
    "Some words.\n"
    "\n"
    "| wrong input | answer | the message says |\n"
    "|---|---|---|\n"
    "| `bytes` 0 | `invalid_argument` | `at least 1 byte`, `got 0` |\n"
    "| no tier | ok | `locate` says so |\n"
    "### `erase`\n"
    "no table\n"
    "### `fetch`\n"
    "| a | b | c |\n"
    "|---|---|---|\n"
    "| one | `busy` |\n";

TEST(WrongInputTable, IsRead) {
  const auto rows = read_table(kPage, "`put`");
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].input, "`bytes` 0");
  EXPECT_EQ(rows[0].answer, "invalid_argument");
  EXPECT_THAT(rows[0].words, ElementsAre("at least 1 byte", "got 0"));
  EXPECT_EQ(rows[1].answer, "ok");
  EXPECT_THAT(rows[1].words, IsEmpty());
  EXPECT_ANY_THROW((void)read_table(kPage, "`get`"));
  EXPECT_ANY_THROW((void)read_table(kPage, "`erase`"));
  EXPECT_ANY_THROW((void)read_table(kPage, "`fetch`"));
}

TEST(WrongInputTable, SeesEachDifference) {
  const Row row{"", "busy", {"5 of 3"}};
  const auto with = [](ErrorCode code, const char* message) { return Outcome(Error{code, message}); };
  EXPECT_EQ(difference(row, with(ErrorCode::busy, "it has 5 of 3")), "");
  EXPECT_THAT(difference(row, with(ErrorCode::ok, "it has 5 of 3")), HasSubstr("gave ok, not busy"));
  EXPECT_THAT(difference(row, with(ErrorCode::busy, "it has 6 of 3")), HasSubstr("does not say '5 of 3'"));
  EXPECT_THAT(difference({"", "busy", {}}, with(ErrorCode::busy, "why")), HasSubstr("the row does not say"));
  EXPECT_EQ(difference({"", "ok", {}}, Status{}), "");
}

TEST(WrongInputTable, FailsForARowThatNobodyShowsAndForAnInputWithoutARow) {
  const Error good{ErrorCode::invalid_argument, "an object has at least 1 byte, got 0"};
  EXPECT_NONFATAL_FAILURE(
      {
        Table table(kPage, "`put`");
        table.shows("`bytes` 0", good);
      },
      "no test shows the row 'no tier'");
  const auto show_one_more = [&] {
    Table table(kPage, "`put`");
    table.shows("`bytes` 0", good);
    table.shows("no tier", ErrorCode::ok);
    table.shows("no tier", ErrorCode::ok);
  };
  EXPECT_NONFATAL_FAILURE(show_one_more(), "shown twice");
}

}  // namespace
}  // namespace harvest::testing
