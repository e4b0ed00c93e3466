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
