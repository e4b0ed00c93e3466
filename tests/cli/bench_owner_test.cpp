// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "cli/program.hpp"

/// `harvest bench owner`: owners beside a cache that takes all that they leave.
namespace harvest::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr std::uint64_t kGiB = 1ULL << 30;

std::vector<std::string> words(std::vector<std::string> more) {
  more.insert(more.begin(), {"bench", "owner"});
  return more;
}

json bench(std::vector<std::string> more) {
  return run_for_json(words(std::move(more)));
}

/// For answers with exit code 1, where owners did not get what they asked for.
json bench_with_harm(std::vector<std::string> more) {
  more.emplace_back("--json");
  const Ran ran = run_harvest(words(std::move(more)));
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_THAT(ran.err, HasSubstr("did not get it"));
  return json::parse(ran.out);
}

const json& row_of(const json& result, const std::string& mode, const std::string& rise,
                   std::uint64_t reserve_bytes) {
  for (const json& row : result.at("rows"))
    if (row.at("mode") == mode && row.at("rise") == rise && row.at("reserve_bytes") == reserve_bytes)
      return row;
  ADD_FAILURE() << "no row " << mode << " " << rise << " " << reserve_bytes;
  static const json kNone;
  return kNone;
}

std::set<std::string> keys_of(const json& object) {
  std::set<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.insert(key);
  return keys;
}

/// A day of one GPU's owner, told by hand: 20 GiB of 48, `gib` more from the tenth to the twentieth minute.
std::string burst_of(const TemporaryFolder& folder, const std::string& name, double gib) {
  const std::uint64_t base = 20 * kGiB;
  const auto high = base + static_cast<std::uint64_t>(gib * static_cast<double>(kGiB));
  return folder.file(name, "time_s,device,used_bytes\n0,1," + std::to_string(base) + "\n600,1," +
                               std::to_string(high) + "\n1200,1," + std::to_string(base) + "\n3600,1," +
                               std::to_string(base) + "\n");
}

std::vector<std::string> on_pair(const std::string& trace, std::vector<std::string> more) {
  more.insert(more.begin(), {"--system", "2xh100-nvl", "--gpu-bytes", "48GiB", "--owner-trace", trace});
  return more;
}

TEST(BenchOwner, SaysWhatItSimulatedAndEveryKeyIsThere) {
  const json result = bench({"--quick"});
  EXPECT_EQ(keys_of(result),
            (std::set<std::string>{"benchmark", "version", "simulated", "loopback", "backend", "system",
                                   "driver", "clock", "devices", "owners", "seed", "backing", "deadline_ns",
                                   "rise_bytes_per_s", "rise_step_bytes", "rows"}));
  EXPECT_EQ(result["benchmark"], "owner");
  EXPECT_EQ(result["simulated"], true);
  EXPECT_EQ(result["system"], "dgx-h100");
  EXPECT_EQ(result["clock"], "virtual");
  EXPECT_EQ(result["devices"][1].at("total_bytes"), 48 * kGiB) << "as the generated owners' study";
  EXPECT_EQ(keys_of(result["owners"]), (std::set<std::string>{"source", "devices", "hours", "owner_hours",
                                                              "used_gib_p50", "used_gib_p99"}));
  EXPECT_EQ(result["owners"]["source"], "generated");
  EXPECT_EQ(result["owners"]["owner_hours"], 7);
  EXPECT_NEAR(result["owners"]["used_gib_p50"].get<double>(), 23, 4);
  ASSERT_EQ(result["rows"].size(), 2U * 2U * 2U) << "rises, modes, reserves";
  for (const json& row : result["rows"]) {
    SCOPED_TRACE(row.dump());
    EXPECT_EQ(keys_of(row),
              (std::set<std::string>{"mode", "rise", "reserve_bytes", "harvested_gib_hours", "idle_gib_hours",
                                     "percent_of_idle", "rises", "failed_rises", "failed_per_owner_hour",
                                     "failed_per_owner_hour_at_most", "reclaims", "reclaim_ns_p50",
                                     "reclaim_ns_p99", "reclaim_ns_max", "late", "monitor_reclaims",
                                     "populated_bytes", "spilled_bytes"}));
    EXPECT_GT(row["rises"], 20);
    EXPECT_GT(row["percent_of_idle"], 80);
    EXPECT_LT(row["percent_of_idle"], 100);
    EXPECT_GT(row["populated_bytes"], 0);
    EXPECT_EQ(row["spilled_bytes"], 0) << "host memory has the objects too";
    const double odds = row["failed_rises"].get<double>() / 7;
    EXPECT_DOUBLE_EQ(row["failed_per_owner_hour"], odds);
    const double at_most = row["failed_per_owner_hour_at_most"];
    if (row["failed_rises"] == 0)
      EXPECT_DOUBLE_EQ(at_most, 3.0 / 7);
    else
      EXPECT_GT(at_most, odds);
    if (row["mode"] == "watermark") {
      EXPECT_EQ(row["reclaims"], 0) << "nobody asks";
      EXPECT_TRUE(row["reclaim_ns_p50"].is_null());
    }
  }
  const Ran text = run_harvest(words({"--quick"}));
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_EQ(text.err, "") << "no progress where there is no terminal";
  EXPECT_THAT(text.out, HasSubstr("dgx-h100 (SIMULATED)"));
  EXPECT_THAT(text.out, HasSubstr("generated with seed 1"));
  EXPECT_THAT(text.out, HasSubstr("< 0.43"));
}

TEST(BenchOwner, OneFailureInAnHourMayBeNearlyFive) {
  const TemporaryFolder folder;
  const json result = bench(on_pair(burst_of(folder, "used.csv", 10),
                                    {"--reserves", "2GiB", "--rises", "at_once", "--modes", "watermark"}));
  const json& row = result.at("rows").at(0);
  EXPECT_EQ(row.at("failed_per_owner_hour"), 1);
  EXPECT_NEAR(row.at("failed_per_owner_hour_at_most").get<double>(), 4.74, .05)
      << "of Poisson's distribution";
}

TEST(BenchOwner, HelpTeachesWithAnExample) {
  const Ran help = run_harvest(words({"--help"}));
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Example:\n  harvest bench owner"));
  EXPECT_THAT(help.out, HasSubstr("time_s,device,used_bytes"));
  EXPECT_THAT(run_harvest({"bench", "--help"}).out, HasSubstr("  owner "));
}

TEST(BenchOwner, TheSameSeedGivesTheSameReport) {
  const std::vector<std::string> three{"--quick", "--seed", "3"};
  const json result = bench(three);
  EXPECT_EQ(result, bench(three));
  EXPECT_NE(result.at("rows"), bench({"--quick", "--seed", "4"}).at("rows"));
}

TEST(BenchOwner, WhatItWroteIsReplayedExactly) {
  const TemporaryFolder folder;
  const std::string file = folder.file("used.csv", "");
  const json generated = bench({"--quick", "--seed", "3", "--write-owner-trace", file});
  const json recorded = bench({"--quick", "--seed", "3", "--owner-trace", file, "--gpu-bytes", "48GiB"});
  EXPECT_EQ(recorded.at("rows"), generated.at("rows"));
  EXPECT_EQ(recorded["owners"].at("source"), file);
}

TEST(BenchOwner, HoursCutARecordingOff) {
  const TemporaryFolder folder;
  const std::string file = folder.file("used.csv",
                                       "time_s,device,used_bytes\n0,1,0\n60,1,4096\n120,1,8192\n"
                                       "5400,1,12288\n7200,1,0\n");
  const std::vector<std::string> one_run{"--modes", "cooperative", "--rises",
                                         "at_once", "--reserves",  "2GiB"};
  const json whole = bench(on_pair(file, one_run));
  EXPECT_EQ(whole["owners"].at("hours"), 2);
  EXPECT_EQ(whole["rows"][0].at("rises"), 3);
  auto shorter = one_run;
  shorter.insert(shorter.end(), {"--hours", "1"});
  const json half = bench(on_pair(file, shorter));
  EXPECT_EQ(half["owners"].at("hours"), 1);
  EXPECT_EQ(half["rows"][0].at("rises"), 2);
}

TEST(BenchOwner, CountsWhatTheRecordingSays) {
  const TemporaryFolder folder;
  const json result =
      bench(on_pair(burst_of(folder, "used.csv", 10), {"--reserves", "0,2GiB", "--rises", "at_once"}));
  EXPECT_EQ(result["owners"].at("devices"), json({1}));
  EXPECT_EQ(result["owners"].at("owner_hours"), 1);
  EXPECT_EQ(result["owners"].at("used_gib_p50"), 20);
  EXPECT_EQ(result["owners"].at("used_gib_p99"), 30);
  for (const json& row : result.at("rows")) {
    SCOPED_TRACE(row.dump());
    EXPECT_EQ(row.at("rises"), 1);
    EXPECT_NEAR(row.at("idle_gib_hours").get<double>(), 28 - 10 * 600.0 / 3600, 1e-3);
    const double reserve_gib = row.at("reserve_bytes").get<double>() / static_cast<double>(kGiB);
    EXPECT_LE(row.at("harvested_gib_hours").get<double>(),
              row["idle_gib_hours"].get<double>() - reserve_gib + 1e-3);
    EXPECT_GT(row["harvested_gib_hours"].get<double>(),
              row["idle_gib_hours"].get<double>() - reserve_gib - 2);
    const bool cooperative = row.at("mode") == "cooperative";
    EXPECT_EQ(row.at("failed_rises"), cooperative ? 0 : 1);
    EXPECT_EQ(row.at("reclaims"), cooperative ? 1 : 0);
    EXPECT_EQ(row.at("late"), 0);
    if (!cooperative) continue;
    // The driver takes 26 us for each of about 150 segments of 64 MiB; reads under way end before.
    EXPECT_GT(row.at("reclaim_ns_p50"), 3e6);
    EXPECT_LT(row.at("reclaim_ns_max"), 20e6);
  }
}

TEST(BenchOwner, HarmIsCountedWhereTheReserveIsTooSmall) {
  const TemporaryFolder folder;
  const std::string small = burst_of(folder, "small.csv", 1.5);
  const std::string large = burst_of(folder, "large.csv", 3);
  const std::vector<std::string> alone{"--modes",         "watermark",  "--rises",
                                       "at_once,gradual", "--reserves", "0,2GiB"};
  const auto failed = [&](const std::string& trace, const std::string& rise, std::uint64_t reserve) {
    return row_of(bench(on_pair(trace, alone)), "watermark", rise, reserve).at("failed_rises");
  };
  EXPECT_EQ(failed(small, "at_once", 0), 1);
  EXPECT_EQ(failed(small, "at_once", 2 * kGiB), 0) << "it fits into the reserve";
  EXPECT_EQ(failed(large, "at_once", 2 * kGiB), 1) << "no monitor is asked before one allocation";
  EXPECT_EQ(failed(large, "gradual", 2 * kGiB), 0)
      << "each of its allocations fits, and the monitor makes room";
  EXPECT_EQ(failed(large, "gradual", 0), 1) << "in several allocations, and counted once";
}

TEST(BenchOwner, AGradualRiseThatIsFasterThanTheMonitorFails) {
  const TemporaryFolder folder;
  const std::string trace = burst_of(folder, "used.csv", 16);
  const auto failed = [&](const std::string& rate) {
    const json result = bench(on_pair(trace, {"--modes", "watermark", "--rises", "gradual", "--reserves",
                                              "2GiB", "--rise-step", "512MiB", "--rise-rate", rate}));
    return result.at("rows")[0].at("failed_rises");
  };
  EXPECT_EQ(failed("100GiB"), 0);
  EXPECT_EQ(failed("1TiB"), 1);
}

TEST(BenchOwner, LeavingPollsOutChangesNothingThatIsCounted) {
  const TemporaryFolder folder;
  std::string rows = "time_s,device,used_bytes\n";
  const double used_gib[]{20, 23, 20, 21.5, 30, 26, 22, 33, 20, 20};
  for (std::size_t i = 0; i < std::size(used_gib); ++i)
    rows += std::to_string(i * 30) + ",1," +
            std::to_string(static_cast<std::uint64_t>(used_gib[i] * static_cast<double>(kGiB))) + "\n";
  auto arguments = on_pair(folder.file("used.csv", rows), {"--reserves", "0,2GiB"});
  const json jumps = bench(arguments);
  arguments.emplace_back("--every-poll");
  const json polls = bench(arguments);
  ASSERT_EQ(jumps.at("rows").size(), 8U);
  for (std::size_t i = 0; i < 8; ++i) {
    const json& a = jumps["rows"][i];
    const json& b = polls.at("rows").at(i);
    SCOPED_TRACE(a.dump() + "\n" + b.dump());
    for (const char* key : {"rises", "failed_rises", "reclaims", "late"})
      EXPECT_EQ(a.at(key), b.at(key)) << key;
    for (const char* key : {"harvested_gib_hours", "idle_gib_hours", "populated_bytes"}) {
      const double expected = b.at(key);
      EXPECT_NEAR(a.at(key).get<double>(), expected, .02 * expected) << key;
    }
  }
}

TEST(BenchOwner, ADeadlineThatIsTooShortShowsLateReclaims) {
  const TemporaryFolder folder;
  const json result = bench_with_harm(
      on_pair(burst_of(folder, "used.csv", 10),
              {"--modes", "cooperative", "--rises", "at_once", "--reserves", "0", "--deadline-ms", "1"}));
  const json& row = result.at("rows").at(0);
  EXPECT_EQ(row.at("reclaims"), 1);
  EXPECT_EQ(row.at("late"), 1);
  EXPECT_GE(row.at("reclaim_ns_max"), 1e6);
}

TEST(BenchOwner, WhatComesAfterTheDeadlineIsLateToo) {
  const TemporaryFolder folder;
  const json result = bench_with_harm(
      on_pair(burst_of(folder, "used.csv", 10),
              {"--modes", "cooperative", "--rises", "at_once", "--reserves", "0", "--deadline-ms", "4"}));
  const json& row = result.at("rows").at(0);
  EXPECT_GT(row.at("reclaim_ns_max"), 4e6) << "the driver is not interrupted";
  EXPECT_EQ(row.at("late"), 1);
  EXPECT_EQ(row.at("failed_rises"), 0) << "but all is there";
}

/// 3 GiB at 512 GiB/s are 6 ms, and a sample comes every 5: it makes room in the middle, or too early or
/// late.
TEST(BenchOwner, SamplesFallAnywhereBeforeARise) {
  const TemporaryFolder folder;
  constexpr int kBursts = 60;
  std::string rows = "time_s,device,used_bytes\n0,1,0\n";
  for (int i = 1; i <= kBursts; ++i)
    rows += std::to_string(i * 600) + ",1," + std::to_string(3 * kGiB) + "\n" + std::to_string(i * 600 + 60) +
            ",1,0\n";
  const json result = bench(
      on_pair(folder.file("used.csv", rows), {"--modes", "watermark", "--rises", "gradual", "--reserves",
                                              "2GiB", "--rise-rate", "512GiB", "--rise-step", "64MiB"}));
  const json& row = result.at("rows").at(0);
  EXPECT_EQ(row.at("rises"), kBursts);
  EXPECT_GT(row.at("failed_rises"), 5);
  EXPECT_LT(row.at("failed_rises"), kBursts - 5);
}

TEST(BenchOwner, SoleCopiesAreMovedBeforeTheirMemoryGoesBack) {
  const TemporaryFolder folder;
  const json result =
      bench(on_pair(burst_of(folder, "used.csv", 10), {"--modes", "cooperative", "--rises", "at_once",
                                                       "--reserves", "2GiB", "--backing", "spill"}));
  const json& row = result.at("rows").at(0);
  EXPECT_EQ(row.at("failed_rises"), 0);
  EXPECT_EQ(row.at("late"), 0);
  EXPECT_GE(row.at("spilled_bytes"), 8 * kGiB);
  EXPECT_GT(row.at("reclaim_ns_p50"), 100e6) << "8 GiB over PCIe";
}

/// docs/benchmarks/owner.md has it for a thousand hours.
TEST(BenchOwner, WithTheDefaultReserveNobodyWhoAsksIsHarmed) {
  const json result = bench({"--hours", "5", "--modes", "cooperative", "--reserves", "2GiB"});
  for (const json& row : result.at("rows")) {
    EXPECT_GT(row.at("rises"), 150);
    EXPECT_EQ(row.at("failed_rises"), 0);
    EXPECT_EQ(row.at("late"), 0);
  }
}

/// What else is wrong with a recording, owner_trace_test tries; this needs the machine.
TEST(BenchOwner, ARecordingNamesPeersOfItsMachineAndWhatTheyHave) {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& row, const std::string& message) {
    const std::string file = folder.file("used.csv", "time_s,device,used_bytes\n0,1,5\n" + row + "\n");
    const Ran ran = run_harvest(words({"--owner-trace", file, "--quick"}));
    EXPECT_EQ(ran.exit_code, 2);
    EXPECT_THAT(ran.err, HasSubstr("--owner-trace: " + file + ":3: " + message));
  };
  refused("9,8,5", "device is '8'; those that have owners are 1, 2, 3, 4, 5, 6, 7");
  refused("9,1,85899345921", "used_bytes is '85899345921'");
}

}  // namespace
}  // namespace harvest::testing
