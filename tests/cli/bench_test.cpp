// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/cuda.hpp>
#include <harvest/machine.hpp>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cli/program.hpp"

/// `harvest bench` on simulated machines, where each figure is known beforehand.
namespace harvest::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kSystem = "2xh100-nvl";
const std::vector<std::string> kBenchmarks{"link", "fetch", "reclaim", "memory", "lookup"};

json bench(const std::string& name, std::vector<std::string> more = {}, const std::string& system = kSystem) {
  std::vector<std::string> words{"bench", name, "--system", system, "--quick"};
  words.insert(words.end(), more.begin(), more.end());
  return run_for_json(words);
}

/// What the formula of docs/simulation.md says of one copy alone.
double expected_bytes_per_s(const LinkInfo& link, double bytes) {
  return bytes /
         (static_cast<double>(link.issue_ns + link.latency_ns) * 1e-9 + bytes / link.bandwidth_bytes_per_s);
}

const LinkInfo& link_of(const Machine& machine, const json& row) {
  return machine.find_link(row.at("from"), row.at("to"))->info;
}

TEST(Bench, EveryBenchmarkSaysWhatItMeasured) {
  for (const std::string& name : kBenchmarks) {
    SCOPED_TRACE(name);
    const json result = bench(name, {"--runs", "2"});
    EXPECT_EQ(result.at("benchmark"), name);
    EXPECT_EQ(result.at("simulated"), true);
    EXPECT_EQ(result.at("loopback"), false);
    EXPECT_EQ(result.at("backend"), "simulated");
    EXPECT_EQ(result.at("system"), kSystem);
    EXPECT_EQ(result.at("driver"), "");
    EXPECT_EQ(result.at("clock"), name == "lookup" ? "host" : "virtual");
    EXPECT_EQ(result.at("runs"), 2);
    EXPECT_FALSE(result.at("version").get<std::string>().empty());
    ASSERT_EQ(result.at("devices").size(), 3U);
    EXPECT_EQ(result["devices"][2].at("id"), -1);
    EXPECT_FALSE(result.at("rows").empty());

    const Ran text = run_harvest({"bench", name, "--system", kSystem, "--quick", "--runs", "1"});
    EXPECT_EQ(text.exit_code, 0);
    EXPECT_THAT(text.out, HasSubstr("2xh100-nvl (SIMULATED)"));
    EXPECT_EQ(text.err, "");
  }
}

TEST(Bench, HelpTeachesWithAnExample) {
  const Ran help = run_harvest({"bench", "--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Example:\n  harvest bench"));
  auto all = kBenchmarks;
  all.emplace_back("calibrate");
  for (const std::string& name : all) {
    EXPECT_THAT(help.out, HasSubstr("  " + name + " "));
    const Ran own = run_harvest({"bench", name, "--help"});
    EXPECT_EQ(own.exit_code, 0);
    EXPECT_THAT(own.out, HasSubstr("Example:\n  harvest bench " + name));
    EXPECT_THAT(own.out, HasSubstr("--json"));
    EXPECT_THAT(own.out, Not(HasSubstr("owner-process"))) << "that is not for people";
  }
}

TEST(BenchLink, MeasuresEveryOrderedPairAndTheHostBothWays) {
  const Machine machine = *machine_from_preset("4x4090-pcie");
  const json result = bench("link", {"--runs", "1", "--sizes", "64KiB"}, "4x4090-pcie");
  std::set<std::pair<int, int>> seen;
  for (const json& row : result.at("rows")) seen.emplace(row.at("from"), row.at("to"));
  EXPECT_EQ(seen.size(), 4U * 3U + 4U * 2U) << "and each once";
  EXPECT_EQ(result["rows"].size(), seen.size());
  EXPECT_TRUE(result.at("waived").empty());
}

TEST(BenchLink, TellsTheLinksOfTheSimulationWhenTheBytesHaveArrived) {
  const Machine machine = *machine_from_preset(kSystem);
  const json result = bench("link", {"--sizes", "4KiB,1MiB,32MiB,33333"});
  ASSERT_EQ(result.at("rows").size(), 6U * 4U);
  EXPECT_EQ(result.at("wrong_bytes"), 0);
  for (const json& row : result["rows"]) {
    SCOPED_TRACE(row.dump());
    const LinkInfo& link = link_of(machine, row);
    const double expected = expected_bytes_per_s(link, row.at("bytes"));
    EXPECT_NEAR(row.at("bytes_per_s").get<double>(), expected, expected * .01);
    EXPECT_LE(row.at("bytes_per_s_min"), row["bytes_per_s"]);
    EXPECT_GE(row.at("bytes_per_s_max"), row["bytes_per_s"]);
    EXPECT_NEAR(row.at("ns_per_copy").get<double>(),
                row["bytes"].get<double>() * 1e9 / row["bytes_per_s"].get<double>(), 1);
    EXPECT_EQ(row.at("nominal_bytes_per_s"), link.bandwidth_bytes_per_s);
    EXPECT_EQ(row.at("kind"), to_string(link.kind));
    EXPECT_EQ(row.at("method"), "copy_engine");
    EXPECT_EQ(row.at("gated"), true) << "submitting takes no virtual time";
    EXPECT_EQ(row.at("checked"), true);
    EXPECT_EQ(row.at("wrong_bytes"), 0);
  }
}

TEST(BenchLink, KeepsToTheWayAndTheSizesThatWereNamed) {
  const auto rows_of = [](std::vector<std::string> more) {
    return bench("link", std::move(more)).at("rows");
  };
  for (const json& row : rows_of({"--from", "host"})) EXPECT_EQ(row.at("from"), -1);
  const json one = rows_of({"--from", "1", "--to", "host", "--sizes", "5000"});
  ASSERT_EQ(one.size(), 1U);
  EXPECT_EQ(one[0].at("from"), 1);
  EXPECT_EQ(one[0].at("to"), -1);
  EXPECT_EQ(one[0].at("bytes"), 5000);
  const json itself = rows_of({"--from", "0", "--to", "0"});
  EXPECT_FALSE(itself.empty());
  for (const json& row : itself) EXPECT_EQ(row.at("kind"), "same_device");
}

TEST(BenchLink, WaivesWhatDoesNotFitAndMeasuresTheRest) {
  const TemporaryFolder folder;
  Machine machine = *machine_from_preset(kSystem);
  machine.devices[1].tenant_bytes = machine.devices[1].info.total_bytes - (8ULL << 20);
  const std::string file = folder.file("full.json", to_json(machine));
  const json result = bench("link", {"--sizes", "16MiB", "--runs", "1"}, file);
  EXPECT_EQ(result.at("rows").size(), 2U) << "GPU 0 and the host";
  EXPECT_EQ(result.at("waived").size(), 4U);
  for (const json& waived : result["waived"]) {
    EXPECT_TRUE(waived.at("from") == 1 || waived.at("to") == 1);
    EXPECT_EQ(waived.at("method"), "copy_engine");
    EXPECT_THAT(waived.at("reason"), HasSubstr("free"));
  }
  const Ran nothing = run_harvest({"bench", "link", "--system", file, "--from", "1", "--sizes", "16MiB"});
  EXPECT_EQ(nothing.exit_code, 1);
  EXPECT_THAT(nothing.err, HasSubstr("nothing could be measured"));
}

TEST(BenchFetch, ComparesEveryByteAndTheNaiveLoop) {
  const Machine machine = *machine_from_preset(kSystem);
  const json result = bench("fetch");
  EXPECT_EQ(result.at("wrong_bytes"), 0);
  ASSERT_EQ(result.at("rows").size(), 2U * 3U * 2U) << "tiers, sizes, layouts";
  std::map<std::string, int> tiers;
  for (const json& row : result["rows"]) {
    SCOPED_TRACE(row.dump());
    ++tiers[row.at("from")];
    const bool from_peer = row["from"] == "peer";
    EXPECT_EQ(row.at("device"), from_peer ? 1 : -1);
    EXPECT_EQ(row.at("bytes"),
              row.at("object_bytes").get<std::uint64_t>() * row.at("objects").get<std::uint64_t>());
    EXPECT_EQ(row.at("checked"), true);
    EXPECT_EQ(row.at("gated"), true);
    const LinkInfo& link = machine.find_link(row["device"], 0)->info;
    const double whole = expected_bytes_per_s(link, row["bytes"]);
    EXPECT_NEAR(row.at("link_bytes_per_s").get<double>(), whole, whole * .01);
    const double fetch = row.at("fetch_bytes_per_s");
    EXPECT_DOUBLE_EQ(row.at("percent_of_link"), 100 * fetch / row["link_bytes_per_s"].get<double>());
    // In virtual time nothing waits for the submitter, so both ways to look at it are one.
    EXPECT_NEAR(row.at("call_bytes_per_s").get<double>(), fetch, fetch * .01);
    const double alone = expected_bytes_per_s(link, row["object_bytes"]);
    EXPECT_NEAR(row.at("naive_bytes_per_s").get<double>(), alone, alone * .02);
    EXPECT_NEAR(row.at("naive_waited_bytes_per_s").get<double>(), alone, alone * .02);
    if (row.at("layout") == "contiguous") {
      EXPECT_GT(row["percent_of_link"], 99) << "one run, after merging";
    } else {
      EXPECT_LT(row["percent_of_link"], 99) << "nothing to merge";
      EXPECT_GT(row.at("call_over_naive"), 1.05) << "one batch";
    }
  }
  EXPECT_EQ(tiers["peer"], 6);
  EXPECT_EQ(tiers["host"], 6);
}

TEST(BenchFetch, KeepsToTheTierThatWasNamedAndDoesWithoutAPeer) {
  const json from_host = bench("fetch", {"--from", "host", "--sizes", "64KiB", "--runs", "1"});
  for (const json& row : from_host.at("rows")) EXPECT_EQ(row.at("from"), "host");

  const TemporaryFolder folder;
  Machine alone = *machine_from_preset(kSystem);
  alone.devices.erase(alone.devices.begin() + 1);
  std::erase_if(alone.links,
                [](const MachineLink& link) { return link.info.from == 1 || link.info.to == 1; });
  const std::string file = folder.file("alone.json", to_json(alone));
  const std::vector<std::string> fetch{"bench",  "fetch", "--system", file,    "--quick",
                                       "--runs", "1",     "--sizes",  "64KiB", "--json"};
  const Ran ran = run_harvest(fetch);
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_THAT(ran.err, HasSubstr("no peer is measured"));
  const json without_peer = json::parse(ran.out);
  for (const json& row : without_peer.at("rows")) EXPECT_EQ(row.at("from"), "host");
  auto peer_alone = fetch;
  peer_alone.insert(peer_alone.end(), {"--from", "peer"});
  const Ran refused = run_harvest(peer_alone);
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("--loopback"));

  auto loopback = fetch;
  loopback.emplace_back("--loopback");
  const Ran own = run_harvest(loopback);
  EXPECT_EQ(own.exit_code, 0) << own.err;
  const json result = json::parse(own.out);
  EXPECT_EQ(result.at("loopback"), true);
  EXPECT_EQ(result.at("simulated"), true);
  EXPECT_TRUE(std::any_of(result["rows"].begin(), result["rows"].end(),
                          [](const json& row) { return row.at("from") == "peer"; }));
  EXPECT_THAT(run_harvest({"bench", "fetch", "--system", file, "--quick", "--runs", "1", "--loopback"}).out,
              HasSubstr("LOOPBACK"));
}

TEST(BenchReclaim, TakesWhatTheDriverTakesAndTheOwnerGetsIt) {
  const Machine machine = *machine_from_preset(kSystem);
  const json result = bench("reclaim", {"--runs", "3", "--sizes", "64MiB,1GiB,16GiB"});
  EXPECT_EQ(result.at("owner"), "a simulated tenant");
  EXPECT_EQ(result.at("owner_skipped"), "");
  EXPECT_EQ(result.at("peer"), 1);
  ASSERT_EQ(result.at("rows").size(), 6U);
  for (const json& row : result["rows"]) {
    SCOPED_TRACE(row.dump());
    const std::uint64_t bytes = row.at("bytes");
    EXPECT_GE(row.at("returned_bytes"), bytes);
    EXPECT_EQ(row.at("late"), 0);
    EXPECT_EQ(row.at("owner_got"), 3);
    EXPECT_LE(row.at("reclaim_ns_p50"), row.at("reclaim_ns_p99"));
    EXPECT_LE(row["reclaim_ns_p99"], row.at("reclaim_ns_max"));
    EXPECT_LE(row.at("call_ns_p50"), row["reclaim_ns_p50"]);
    // Segments of 32 to 64 MiB, each unmapped once; and the free count is asked.
    const auto most = static_cast<double>(machine.costs.unmap_ns) * static_cast<double>(bytes >> 25);
    EXPECT_GE(row["reclaim_ns_p50"].get<double>(), most / 2);
    EXPECT_LE(row["reclaim_ns_p50"].get<double>(), most + 20e3);
    if (row.at("load") == "busy") {
      EXPECT_EQ(row.at("owner_slowdown_percent"), 0.0) << "the model's kernels do not compete";
      EXPECT_EQ(row.at("owner_noise_percent"), 0.0);
      EXPECT_EQ(row.at("owner_compared"), 3) << "the owner's work outlasts the reclaim";
    } else {
      EXPECT_FALSE(row.contains("owner_slowdown_percent"));
    }
  }
}

TEST(BenchReclaim, SaysWhatItDidNotTry) {
  const json result = bench("reclaim", {"--runs", "1", "--sizes", "64MiB,200GiB", "--no-owner"});
  EXPECT_EQ(result.at("owner"), "");
  EXPECT_EQ(result.at("owner_skipped"), "--no-owner");
  EXPECT_EQ(result.at("rows").size(), 2U);
  ASSERT_EQ(result.at("waived").size(), 1U);
  EXPECT_EQ(result["waived"][0].at("bytes"), 200ULL << 30);
  const Ran text =
      run_harvest({"bench", "reclaim", "--system", kSystem, "--quick", "--runs", "1", "--no-owner"});
  EXPECT_THAT(text.out, HasSubstr("SKIPPED"));
}

TEST(BenchMemory, TellsTheCostsOfTheMachine) {
  const Machine machine = *machine_from_preset(kSystem);
  const MachineCosts& costs = machine.costs;
  std::set<std::string> seen;
  const json result = bench("memory", {"--sizes", "2MiB,512MiB", "--pin-sizes", "16MiB"});
  ASSERT_EQ(result.at("rows").size(), 2U * 2U + 2U);
  for (const json& row : result["rows"]) {
    SCOPED_TRACE(row.dump());
    seen.insert(row.at("operation"));
    const auto readers = row.at("readers").get<TimeNs>();
    const auto pin_ns =
        static_cast<double>(costs.pin_ns_per_gib) * row.at("bytes").get<double>() / (1ULL << 30);
    if (row.at("device") == -1) {
      EXPECT_NEAR(row.at("do_ns").get<double>(), pin_ns, 1);
      EXPECT_NEAR(row.at("bytes_per_s").get<double>(),
                  1e9 * (1ULL << 30) / static_cast<double>(costs.pin_ns_per_gib), 1e7);
    } else {
      EXPECT_EQ(row.at("do_ns"), costs.map_ns + (1 + readers) * costs.set_access_ns);
      EXPECT_EQ(row.at("undo_ns"), costs.unmap_ns);
    }
  }
  EXPECT_EQ(seen, (std::set<std::string>{"map_segment", "register_host"}));
}

TEST(BenchLookup, CountsBesideTheBaseline) {
  const json result = bench("lookup", {"--objects", "100,1000", "--runs", "1"});
  std::set<std::string> seen;
  for (const json& row : result.at("rows")) {
    EXPECT_GT(row.at("per_s"), 1e4) << row;
    EXPECT_NEAR(row.at("ns_each").get<double>(),
                row.at("threads").get<double>() * 1e9 / row["per_s"].get<double>(), 1);
    seen.insert(row.at("operation").get<std::string>() + " " + row.at("of").get<std::string>());
  }
  EXPECT_EQ(seen.size(), 6U) << "three operations of ours and of the baseline";
  EXPECT_EQ(result["rows"].size(), seen.size() * 2 * 2) << "sizes, threads";
}

TEST(BenchTopo, ShowsMeasuredValuesBesideNominalOnes) {
  const json topo = run_for_json({"topo", "--system", kSystem, "--measure"});
  for (const json& link : topo.at("links")) {
    if (link.at("from") == link.at("to")) {
      EXPECT_TRUE(link.at("measured_bytes_per_s").is_null());
      continue;
    }
    const double nominal = link.at("bandwidth_bytes_per_s");
    EXPECT_NEAR(link.at("measured_bytes_per_s").get<double>(), nominal, nominal * .05);
  }
  EXPECT_THAT(run_harvest({"topo", "--system", kSystem, "--measure"}).out, HasSubstr("measured / nominal"));
  const json not_measured = run_for_json({"topo", "--system", kSystem});
  for (const json& link : not_measured.at("links")) EXPECT_TRUE(link.at("measured_bytes_per_s").is_null());
}

void expect_refused(const std::vector<std::string>& arguments, const std::vector<std::string>& named) {
  const Ran ran = run_harvest(arguments);
  SCOPED_TRACE(::testing::PrintToString(arguments));
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  for (const std::string& text : named) EXPECT_THAT(ran.err, HasSubstr(text));
}

TEST(BenchBadInput, NamesTheValueAndTheLimit) {
  expect_refused({"bench"}, {"link, fetch, reclaim, owner, memory, lookup or calibrate"});
  expect_refused({"bench", "lin"}, {"lin"});
  for (const std::string& name : kBenchmarks) {
    expect_refused({"bench", name, "--system", "dgx-h1000"},
                   {"harvest bench " + name, "'dgx-h1000'", "dgx-h100"});
    expect_refused({"bench", name, "--runs", "0"}, {"--runs", "'0'", "from 1 to 10000"});
    expect_refused({"bench", name, "--sytem", "x"}, {"--sytem", "harvest bench " + name + " --help"});
  }
  const auto refused = [](std::vector<std::string> words, const std::vector<std::string>& named) {
    words.insert(words.begin(), "bench");
    words.insert(words.end(), {"--system", kSystem});
    expect_refused(words, named);
  };
  refused({"link", "--sizes", "4KiB,0"}, {"--sizes", "'0'", "1 B", "64.0 GiB"});
  refused({"link", "--sizes", "4KiB,big"}, {"--sizes", "'big'", "16GiB"});
  refused({"link", "--max-bytes", "65GiB"}, {"--max-bytes", "'65GiB'", "64.0 GiB"});
  refused({"link", "--from", "2"}, {"--from", "'2'", "0 to 1"});
  refused({"link", "--to", "moon"}, {"--to", "'moon'", "host"});
  refused({"link", "--from", "host", "--to", "host"}, {"host"});
  refused({"fetch", "--consumer", "2"}, {"--consumer", "2", "0 to 1"});
  refused({"fetch", "--from", "disk"}, {"--from", "disk", "peer", "host"});
  refused({"fetch", "--sizes", "1KiB"}, {"--sizes", "'1KiB'", "4.0 KiB"});
  refused({"fetch", "--batch", "0"}, {"--batch", "'0'"});
  refused({"reclaim", "--sizes", "1MiB"}, {"--sizes", "'1MiB'", "8.0 MiB"});
  refused({"lookup", "--objects", "0"}, {"--objects", "'0'", "from 1"});
  refused({"calibrate"}, {"calibrate", kSystem, "real GPUs"});
  expect_refused({"bench", "calibrate", "--loopback"}, {"loopback", "real GPUs"});
}

TEST(BenchBadInput, WithoutAGpuItSaysWhatToDo) {
  if (has_cuda() && make_cuda_backend()) GTEST_SKIP() << "this machine has a GPU";
  for (const std::string& name : kBenchmarks) {
    const Ran ran = run_harvest({"bench", name, "--quick"});
    EXPECT_EQ(ran.exit_code, 2);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, HasSubstr("no GPU to measure"));
    EXPECT_THAT(ran.err, HasSubstr("--system: 2xh100-nvl"));
  }
}

}  // namespace
}  // namespace harvest::testing
