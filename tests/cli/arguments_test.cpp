// SPDX-License-Identifier: Apache-2.0
#include "cli/arguments.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/output.hpp"

namespace harvest::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Arguments, SizesArePlainBinaryOrDecimal) {
  const auto bytes = [](std::string_view text) {
    const auto parsed = parse_bytes(text);
    return parsed ? *parsed : ~0ULL;
  };
  EXPECT_EQ(bytes("0"), 0U);
  EXPECT_EQ(bytes("1024"), 1024U);
  EXPECT_EQ(bytes("7B"), 7U);
  EXPECT_EQ(bytes("16GiB"), 16ULL << 30);
  EXPECT_EQ(bytes(" 1.5 MiB "), 3ULL << 19);
  EXPECT_EQ(bytes("60GB"), 60'000'000'000U);
  EXPECT_EQ(bytes("2kB"), 2'000U);
  EXPECT_EQ(bytes("1TiB"), 1ULL << 40);
}

TEST(Arguments, WhatIsNoSizeIsNamedWithWhatIsAllowed) {
  for (const char* text : {"", "GiB", "16G", "-1", "1e3", "1..5GiB", "0x10", "16 gib", "1GiB2", "nan"}) {
    const auto parsed = parse_bytes(text);
    ASSERT_FALSE(parsed) << text << " was read as " << *parsed;
    EXPECT_THAT(parsed.error().message, HasSubstr(std::string("'") + text + "'"));
    EXPECT_THAT(parsed.error().message, HasSubstr("16GiB"));
  }
  EXPECT_THAT(parse_bytes("99999999TiB").error().message, HasSubstr("limit of 1.0 PiB"));
}

TEST(Arguments, CountsStayInTheirRange) {
  EXPECT_EQ(parse_count("1", 1, 10), 1U);
  EXPECT_EQ(parse_count("10", 1, 10), 10U);
  EXPECT_EQ(parse_count("18446744073709551615", 0, UINT64_MAX), UINT64_MAX);
  for (const char* text : {"0", "11", "-1", "1.5", "", "ten", "18446744073709551616"})
    EXPECT_FALSE(parse_count(text, 1, 10)) << text;
  EXPECT_THAT(parse_count("11", 1, 10).error().message, HasSubstr("from 1 to 10"));
}

TEST(ParseCounts, ReadsListsAndRanges) {
  const auto counts = [](std::string_view text) { return parse_counts(text, 1, 1'000'000).value(); };
  EXPECT_THAT(counts("7"), ElementsAre(7));
  EXPECT_THAT(counts("9, 1..3+1,8"), ElementsAre(9, 1, 2, 3, 8));
  EXPECT_THAT(counts("10..35+10"), ElementsAre(10, 20, 30)) << "does not pass the end";
  EXPECT_THAT(counts("1000..8000x2"), ElementsAre(1000, 2000, 4000, 8000));
  EXPECT_THAT(counts("3..3x2"), ElementsAre(3));
  EXPECT_THAT(parse_counts("18446744073709551614..18446744073709551615+1", 0, UINT64_MAX).value(),
              ElementsAre(UINT64_MAX - 1, UINT64_MAX));
  EXPECT_THAT(parse_counts("9223372036854775808..18446744073709551615x2", 0, UINT64_MAX).value(),
              ElementsAre(1ULL << 63U));
  EXPECT_EQ(counts("1..10000+1").size(), 10'000U);
}

TEST(ParseCounts, SaysWhatIsWrong) {
  const auto message = [](std::string_view text) {
    const auto counts = parse_counts(text, 0, 1'000'000);
    return counts ? std::string("none") : counts.error().message;
  };
  EXPECT_THAT(message(""), HasSubstr("the list is empty"));
  EXPECT_THAT(message("1,,2"), HasSubstr("'' is not a whole number"));
  EXPECT_THAT(message("1..10"), HasSubstr("'1..10' does not say how it goes on"));
  EXPECT_THAT(message("10..1+1"), HasSubstr("'1' is not a whole number from 10 to 1000000"));
  EXPECT_THAT(message("1..10+0"), HasSubstr("'0' is not a whole number from 1"));
  EXPECT_THAT(message("1..10x1"), HasSubstr("'1' is not a whole number from 2"));
  EXPECT_THAT(message("0..10x2"), HasSubstr("never leaves 0"));
  EXPECT_THAT(message("1..1000000+1"), HasSubstr("more than 10000 numbers"));
  EXPECT_THAT(message("1..9000+1,1..9000+1"), HasSubstr("more than 10000 numbers"));
  EXPECT_THAT(message("a..9+1"), HasSubstr("'a' is not a whole number"));
}

TEST(Arguments, ListsAreCutAtCommas) {
  EXPECT_THAT(split_list("lru"), ElementsAre("lru"));
  EXPECT_THAT(split_list("lru, arc,,x"), ElementsAre("lru", "arc", "", "x"));
  EXPECT_THAT(split_list("lru,"), ElementsAre("lru", ""));
  EXPECT_THAT(split_list(""), ElementsAre());
}

TEST(Output, UnitsChangeWhereTheNumberWouldBecomeLong) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.0 KiB");
  EXPECT_EQ(format_bytes((1ULL << 30) - 1), "1.0 GiB");
  EXPECT_EQ(format_bytes(UINT64_MAX), "16384.0 PiB");
  EXPECT_EQ(format_ns(850), "850 ns");
  EXPECT_EQ(format_ns(3'550), "3.55 us");
  EXPECT_EQ(format_ns(2.5e9), "2.50 s");
  EXPECT_EQ(format_bandwidth(376e9), "376.0 GB/s");
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(288'500), "288,500");
  EXPECT_EQ(format_count(1'000'000), "1,000,000");
}

TEST(Output, TablesAlignTheirColumns) {
  Table table({"tier", "hits"});
  table.add({"local", "1"});
  table.add({"peer", "12345"});
  EXPECT_EQ(table.text(),
            "  tier    hits\n"
            "  -----  -----\n"
            "  local      1\n"
            "  peer   12345\n");
}

}  // namespace
}  // namespace harvest::cli
