// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/machine.hpp>

#include <string>
#include <vector>

#include "cli/program.hpp"

namespace harvest::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr std::uint64_t kBlockBytes = 512 * 131'072;  // of llama-3-8b

/// What must hold in every run of every replay.
void expect_sound(const json& replay) {
  EXPECT_EQ(replay.at("simulated"), true);
  ASSERT_EQ(replay.at("runs").size(), 2U);
  EXPECT_EQ(replay["runs"][0].at("tiers"), (json{"local", "peer", "host"}));
  EXPECT_EQ(replay["runs"][1].at("tiers"), (json{"local", "host"}));
  for (const json& run : replay["runs"]) {
    const json& hits = run.at("hits");
    const std::uint64_t local = hits.at("local"), peer = hits.at("peer"), host = hits.at("host");
    EXPECT_EQ(local + peer + host + run.at("misses").get<std::uint64_t>(), run.at("accesses"));
    EXPECT_EQ(run.at("bytes_from").at("peer"), peer * kBlockBytes);
    EXPECT_EQ(run.at("bytes_from").at("host"), host * kBlockBytes);
    const json& reload = run.at("reload_ns");
    EXPECT_LE(reload.at("p50"), reload.at("p99"));
    EXPECT_LE(reload.at("p99"), reload.at("total"));
    EXPECT_EQ(peer + host == 0, reload.at("total") == 0);
    const json& reclaims = run.at("reclaims");
    EXPECT_EQ(reclaims.at("bytes_returned"), reclaims.at("bytes_requested"));
    EXPECT_EQ(reclaims.at("late"), 0);
    EXPECT_LE(reclaims.at("ns_p50"), reclaims.at("ns_p99"));
    EXPECT_EQ(run.at("owners").at("refused"), 0);
    EXPECT_EQ(run.at("lost"), 0);
    EXPECT_EQ(run.at("wrong_bytes"), 0);
  }
  const json& baseline = replay["runs"][1];
  EXPECT_EQ(baseline.at("hits").at("peer"), 0);
  EXPECT_EQ(replay["runs"][0].at("accesses"), baseline.at("accesses"));
  if (replay["runs"][0].at("reload_ns").at("total") != 0) {
    EXPECT_DOUBLE_EQ(
        replay.at("speedup").at("reload_total").get<double>(),
        baseline["reload_ns"]["total"].get<double>() / replay["runs"][0]["reload_ns"]["total"].get<double>());
  }
  EXPECT_LE(replay["speedup"].at("ceiling_one_after_other"),
            replay["speedup"].at("ceiling_overlapping").get<double>() + 1e-9);
}

std::vector<std::string> replay_of(const std::string& trace, const std::vector<std::string>& more) {
  std::vector<std::string> all{"replay", "--trace", trace, "--owner-activity", "none"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(Replay, CountsWhatCanBeCountedByHand) {
  const TemporaryFolder folder;
  // 3 blocks are new; 3 are known and 1 is new; 9 is new, and 2 behind it is worth nothing.
  const std::string trace =
      folder.file("t.jsonl", mooncake({{0, {1, 2, 3}}, {30'000, {1, 2, 3, 4}}, {60'000, {9, 2}}}));
  const json without_local = run_for_json(replay_of(trace, {"--local", "0"}));
  expect_sound(without_local);
  for (const json& run : without_local["runs"]) {
    EXPECT_EQ(run.at("accesses"), 9);
    EXPECT_EQ(run.at("misses"), 6);
    EXPECT_EQ(run.at("hits").at("local"), 0);
  }
  const json& baseline = without_local["runs"][1];
  EXPECT_EQ(baseline.at("hits").at("host"), 3);
  const Machine machine = *machine_from_preset("2xh100-nvl");
  const LinkInfo& wire = machine.find_link(kHost, 0)->info;
  const double expected_ns =
      static_cast<double>(wire.issue_ns + wire.latency_ns) + 3e9 * kBlockBytes / wire.bandwidth_bytes_per_s;
  EXPECT_NEAR(baseline.at("reload_ns").at("total").get<double>(), expected_ns, 0.01 * expected_ns);
  EXPECT_EQ(baseline["reload_ns"]["p50"], baseline["reload_ns"]["total"]) << "one request reloads";

  const json with_local = run_for_json(replay_of(trace, {"--local", "1GiB"}));
  expect_sound(with_local);
  for (const json& run : with_local["runs"]) {
    EXPECT_EQ(run.at("hits").at("local"), 3);
    EXPECT_EQ(run.at("misses"), 6);
  }
  EXPECT_EQ(with_local.at("speedup").at("reload_total"), 1.0);

  EXPECT_EQ(with_local.at("policy"), "default") << "each tier has one of its own";
  EXPECT_EQ(run_for_json(replay_of(trace, {"--policy", "fifo"})).at("policy"), "fifo");

  const json first_two = run_for_json(replay_of(trace, {"--requests", "2"}));
  EXPECT_EQ(first_two["runs"][0].at("accesses"), 7);
}

TEST(Replay, EvictsWhatDoesNotFitIntoHostMemoryAndLosesNothing) {
  const TemporaryFolder folder;
  std::vector<TraceLine> lines;
  for (std::uint64_t i = 0; i < 40; ++i)
    lines.push_back({static_cast<std::int64_t>(i) * 10'000, {i % 5 * 10, i % 5 * 10 + 1, 1000 + i}});
  const json replay = run_for_json(replay_of(folder.file("t.jsonl", mooncake(lines)),
                                             {"--local", "0", "--host", "512MiB", "--peer", "1GiB"}));
  expect_sound(replay);
  for (const json& run : replay["runs"]) {
    EXPECT_GT(run.at("evicted"), 20) << "10 blocks that come back, 40 that do not, and room for 8";
    EXPECT_GE(run.at("misses"), 50);
  }
}

/// An hour of requests of 24 blocks, each prefix asked for four times.
std::string an_hour(const TemporaryFolder& folder) {
  std::vector<TraceLine> lines;
  for (std::uint64_t i = 0; i < 240; ++i) {
    TraceLine line{static_cast<std::int64_t>(i) * 15'000, {}};
    for (std::uint64_t block = 0; block < 24; ++block)
      line.blocks.push_back((i / 40 * 10 + i % 10) * 100 + block);
    lines.push_back(std::move(line));
  }
  return folder.file("hour.jsonl", mooncake(lines));
}

TEST(Replay, OwnersGetTheirMemoryBackAndTheSameSeedGivesTheSameAnswer) {
  const TemporaryFolder folder;
  Machine machine = *machine_from_preset("dgx-a100");
  machine.name = "scarce";  // its owners use 23 GiB of 32 at the median
  for (MachineDevice& device : machine.devices)
    if (device.info.id > 0) device.info.total_bytes = 32ULL << 30;
  std::vector<std::string> arguments{"replay",
                                     "--trace",
                                     an_hour(folder),
                                     "--system",
                                     folder.file("scarce.json", to_json(machine)),
                                     "--local",
                                     "1GiB",
                                     "--peer",
                                     "32GiB",
                                     "--host",
                                     "100GiB",
                                     "--owner-activity",
                                     "bursty",
                                     "--seed",
                                     "3"};
  const json replay = run_for_json(arguments);
  expect_sound(replay);
  EXPECT_GT(replay["runs"][0].at("reclaims").at("count"), 0);
  EXPECT_GT(replay["runs"][0].at("hits").at("peer"), 0);
  EXPECT_EQ(replay["runs"][1].at("reclaims").at("count"), 0) << "nothing is asked of a cache without peers";
  EXPECT_EQ(replay, run_for_json(arguments));
  arguments.back() = "4";
  EXPECT_NE(replay.at("runs"), run_for_json(arguments).at("runs"));
}

TEST(Replay, SaysThatItIsSimulatedAndShowsBothRunsAndTheCeiling) {
  const TemporaryFolder folder;
  const std::string trace = folder.file("t.jsonl", mooncake({{0, {1, 2}}, {30'000, {1, 2}}}));
  const Ran ran =
      run_harvest(replay_of(trace, {"--local", "0", "--system", "dgx-h100", "--model", "qwen3-32b"}));
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(ran.err, "");
  EXPECT_THAT(ran.out,
              HasSubstr("Replay on dgx-h100 (simulated): 2 requests, qwen3-32b with blocks of 128.0 MiB"));
  EXPECT_THAT(ran.out, HasSubstr("local+peer+host"));
  EXPECT_THAT(ran.out, HasSubstr("The ceiling:"));
  EXPECT_THAT(ran.out, HasSubstr("What other sizes would give"));
}

struct Whole {
  const char* system;
  const char* peer;
  double speedup;  ///< at least
};

class WholeConversation : public ::testing::TestWithParam<Whole> {};

TEST_P(WholeConversation, ReloadsFasterWithPeersAndLosesNothing) {
  const auto trace = conversation_trace();
  if (!trace) GTEST_SKIP() << kNoConversationTrace;
  const json replay = run_for_json({"replay", "--trace", *trace, "--system", GetParam().system, "--model",
                                    "llama-3-8b", "--local", "16GiB", "--peer", GetParam().peer, "--host",
                                    "400GiB", "--owner-activity", "bursty"});
  expect_sound(replay);
  EXPECT_EQ(replay["runs"][0].at("accesses"), 288'500);
  EXPECT_GE(replay.at("speedup").at("reload_total"), GetParam().speedup);
  EXPECT_LE(replay["speedup"]["reload_total"], replay["speedup"].at("ceiling_overlapping"));
}

INSTANTIATE_TEST_SUITE_P(Systems, WholeConversation,
                         ::testing::Values(Whole{"2xh100-nvl", "60GiB", 1.35},
                                           Whole{"dgx-h100", "50GiB", 4.5}),
                         [](const auto& whole) { return whole.index == 0 ? "TwoH100Nvl" : "DgxH100"; });

}  // namespace
}  // namespace harvest::testing
