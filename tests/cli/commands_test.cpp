// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/machine.hpp>
#include <harvest/moe/routing.hpp>
#include <harvest/policy.hpp>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "cli/program.hpp"

namespace harvest::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

TEST(Help, TeachesWithAnExampleAndNamesEveryChoice) {
  const Ran top = run_harvest({"--help"});
  EXPECT_EQ(top.exit_code, 0);
  EXPECT_EQ(top.err, "");
  for (const std::string command : {"topo", "policy", "replay", "routing", "demo"}) {
    EXPECT_THAT(top.out, HasSubstr(command));
    const Ran help = run_harvest({command, "--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, HasSubstr("Example:\n  harvest " + command));
    EXPECT_THAT(help.out, HasSubstr("--json"));
  }
  for (const auto name : machine_preset_names())
    EXPECT_THAT(run_harvest({"topo", "--help"}).out, HasSubstr(std::string(name)));
  for (const auto name : eviction_policy_names()) {
    EXPECT_THAT(run_harvest({"policy", "--help"}).out, HasSubstr(std::string(name)));
    EXPECT_THAT(run_harvest({"replay", "--help"}).out, HasSubstr(std::string(name)));
  }
  EXPECT_THAT(run_harvest({"--version"}).out, ::testing::MatchesRegex("harvest [0-9.]+\n"));
}

TEST(Topo, TellsEveryDeviceAndVerifiedLinkOfEveryPreset) {
  for (const auto name : machine_preset_names()) {
    SCOPED_TRACE(name);
    const Machine machine = *machine_from_preset(name);
    const json topo = run_for_json({"topo", "--system", std::string(name)});
    EXPECT_EQ(topo.at("backend"), "simulated");
    EXPECT_EQ(topo.at("system"), name);
    ASSERT_EQ(topo.at("devices").size(), machine.devices.size());
    for (std::size_t i = 0; i < machine.devices.size(); ++i) {
      const json& device = topo["devices"][i];
      EXPECT_EQ(device.at("id"), machine.devices[i].info.id);
      EXPECT_EQ(device.at("name"), machine.devices[i].info.name);
      EXPECT_EQ(device.at("total_bytes"), machine.devices[i].info.total_bytes);
      EXPECT_LE(device.at("free_bytes"), device.at("total_bytes"));
      EXPECT_EQ(device.at("reserve_bytes") > 0, device.at("id") != kHost);
    }
    EXPECT_EQ(topo["devices"].back().at("id"), -1);
    ASSERT_EQ(topo.at("links").size(), machine.links.size());
    for (const json& link : topo["links"]) {
      const MachineLink* known = machine.find_link(link.at("from"), link.at("to"));
      ASSERT_NE(known, nullptr);
      EXPECT_EQ(link.at("kind"), to_string(known->info.kind));
      EXPECT_EQ(link.at("peer_access"), known->info.peer_access);
      EXPECT_EQ(link.at("verified"), true) << link;
      EXPECT_DOUBLE_EQ(link.at("bandwidth_bytes_per_s"), known->info.bandwidth_bytes_per_s);
      EXPECT_EQ(link.at("latency_ns"), known->info.latency_ns);
    }
  }
}

TEST(Topo, ReadsAMachineFromAFileAndSaysWhatItShows) {
  const TemporaryFolder folder;
  Machine machine = *machine_from_preset("2xh100-nvl");
  machine.name = "two-of-mine";
  const std::string file = folder.file("machine.json", to_json(machine));
  const json own = run_for_json({"topo", "--system", file});
  EXPECT_EQ(own.at("system"), "two-of-mine");
  EXPECT_EQ(own.at("links"), run_for_json({"topo", "--system", "2xh100-nvl"}).at("links"));

  const Ran text = run_harvest({"topo", "--system", file});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_THAT(text.out, HasSubstr("Topology of two-of-mine (simulated)"));
  EXPECT_THAT(text.out, HasSubstr("nvlink"));
  EXPECT_THAT(run_harvest({"topo"}).out, HasSubstr("simulated dgx-h100"));
}

std::map<std::string, double> hit_ratios(const json& results, std::uint64_t capacity) {
  std::map<std::string, double> ratios;
  for (const json& result : results)
    if (result.at("capacity_blocks") == capacity) ratios[result.at("policy")] = result.at("hit_ratio");
  return ratios;
}

TEST(Policy, CountsWhatCanBeCountedByHand) {
  const TemporaryFolder folder;
  // a b a c a b
  const std::string text = mooncake({{0, {1, 2}}, {3000, {1, 3}}, {6000, {1, 2}}});
  for (const std::string& trace : {folder.file("t.jsonl", text), folder.file("t.gz", gzipped(text))}) {
    const json policy = run_for_json(
        {"policy", "--trace", trace, "--capacity-blocks", "2,3", "--policies", "fifo,lru,belady"});
    EXPECT_EQ(policy.at("accesses"), 6);
    EXPECT_EQ(policy.at("unique"), 3);
    EXPECT_EQ(policy.at("results").size(), 6U);
    const auto two = hit_ratios(policy["results"], 2);
    EXPECT_DOUBLE_EQ(two.at("fifo"), 1.0 / 6);
    EXPECT_DOUBLE_EQ(two.at("lru"), 2.0 / 6);
    EXPECT_DOUBLE_EQ(two.at("belady"), 3.0 / 6);
    for (const auto& [name, ratio] : hit_ratios(policy["results"], 3))
      EXPECT_DOUBLE_EQ(ratio, 3.0 / 6) << name;
  }
  const json all = run_for_json({"policy", "--trace", folder.file("t", text)});
  std::set<std::string> names;
  for (const json& result : all.at("results")) names.insert(result.at("policy"));
  EXPECT_EQ(names.size(), eviction_policy_names().size() + 1) << "by default all, and the optimum";
  EXPECT_EQ(all["results"].size(), names.size() * 5);
}

TEST(Policy, CountsUsableHitsAndPrintsLongListsDownwards) {
  const TemporaryFolder folder;
  const std::string trace = folder.file("t", mooncake({{0, {1, 2}}, {3000, {3, 2}}, {6000, {1, 2}}}));
  const json policy =
      run_for_json({"policy", "--trace", trace, "--capacity-blocks", "1..12+1", "--policies", "lru"});
  EXPECT_EQ(policy.at("requests"), 3);
  ASSERT_EQ(policy.at("results").size(), 12U);
  EXPECT_DOUBLE_EQ(policy["results"][1].at("hit_ratio"), 2.0 / 6) << "both later 2";
  EXPECT_DOUBLE_EQ(policy["results"][1].at("usable_hit_ratio"), 0) << "behind a 3 and a 1 that missed";
  EXPECT_DOUBLE_EQ(policy["results"][2].at("usable_hit_ratio"), 2.0 / 6) << "the last request";

  const Ran text = run_harvest({"policy", "--trace", trace, "--capacity-blocks", "1..12+1"});
  EXPECT_THAT(text.out, ::testing::ContainsRegex("blocks +adaptive_2q"));
  EXPECT_THAT(text.out, ::testing::ContainsRegex("\n  12 +0\\.500"));
  EXPECT_THAT(text.out, HasSubstr("Usable:"));
}

/// JSON is UTF-8, and a file's name is bytes.
TEST(Policy, PrintsJsonForAFileOfAnyName) {
  const TemporaryFolder folder;
  const std::string trace = folder.file(
      "tr\xe4"
      "ce",
      mooncake({{0, {1}}}));
  EXPECT_THAT(run_for_json({"policy", "--trace", trace}).at("trace").get<std::string>(),
              ::testing::EndsWith("tr\xef\xbf\xbd"
                                  "ce"));
}

TEST(Policy, MatchesThePublishedFiguresOfTheConversationTrace) {
  const auto trace = conversation_trace();
  if (!trace) GTEST_SKIP() << kNoConversationTrace;
  const json policy = run_for_json({"policy", "--trace", *trace, "--policies", "fifo,lru,arc,belady"});
  EXPECT_EQ(policy.at("accesses"), 288'500);
  EXPECT_EQ(policy.at("unique"), 182'790);
  struct Row {
    std::uint64_t capacity;
    double fifo, lru, arc, belady;
  };
  for (const Row& row : {Row{1'000, .044, .044, .053, .191}, Row{5'000, .107, .110, .117, .341},
                         Row{10'000, .187, .211, .225, .366}, Row{20'000, .266, .287, .289, .366},
                         Row{50'000, .340, .355, .343, .366}}) {
    SCOPED_TRACE(row.capacity);
    const auto ratios = hit_ratios(policy.at("results"), row.capacity);
    EXPECT_NEAR(ratios.at("fifo"), row.fifo, .005);
    EXPECT_NEAR(ratios.at("lru"), row.lru, .005);
    EXPECT_NEAR(ratios.at("arc"), row.arc, .005);
    EXPECT_NEAR(ratios.at("belady"), row.belady, .002);
  }
}

TEST(Demo, ShowsTheWholeStoryOnEveryMachineWithoutAWrongByte) {
  for (const std::string_view name : machine_preset_names()) {
    const std::string system(name);
    SCOPED_TRACE(system);
    const json demo = run_for_json({"demo", "--system", system});
    EXPECT_EQ(demo.at("simulated"), true);
    EXPECT_EQ(demo.at("wrong_bytes"), 0);
    EXPECT_EQ(demo.at("reclaim").at("returned_bytes"), demo["reclaim"].at("requested_bytes"));
    EXPECT_GT(demo["reclaim"].at("requested_bytes"), 0);
    EXPECT_EQ(demo["reclaim"].at("late_bytes"), 0);
    const json& steps = demo.at("steps");
    const auto from_peer = [&](std::size_t step) -> std::uint64_t {
      return steps.at(step).at("served").at("peer");
    };
    for (const json& step : steps) EXPECT_EQ(step.at("wrong_bytes"), 0) << step;
    EXPECT_EQ(from_peer(0), 0U) << "nothing has climbed yet";
    if (system != "4x4090-pcie") {  // there the way to a peer is slower than that to the host
      EXPECT_GT(from_peer(2), 0U);
      EXPECT_GT(steps.at(2).at("bandwidth_bytes_per_s"),
                2 * steps.at(3).at("bandwidth_bytes_per_s").get<double>());
      EXPECT_EQ(from_peer(steps.size() - 3), 0U) << "the owner has it all";
      EXPECT_GT(from_peer(steps.size() - 1), 0U) << "the peer is free again";
    }
  }
  const Ran text = run_harvest({"demo", "--system", "2xh100-nvl"});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_THAT(text.out, HasSubstr("(SIMULATED)"));
  EXPECT_THAT(text.out, HasSubstr("no byte was wrong"));
  EXPECT_THAT(text.out, HasSubstr("This machine is simulated"));
  const Ran any = run_harvest({"demo"});  // on whatever this machine has
  EXPECT_EQ(any.exit_code, 0) << any.err;
  EXPECT_THAT(any.out, HasSubstr("no byte was wrong"));
}

TEST(Routing, IsWrittenAndReadAgain) {
  const TemporaryFolder folder;
  const std::string path = (folder.path() / "recording.jsonl.gz").string();
  const std::vector<std::string> make{
      "routing",         "--model", "mixtral-8x7b",    "--seed", "5",       "--steps", "40", "--batch", "3",
      "--prompt-tokens", "9",       "--output-tokens", "5,12",   "--write", path};
  const Ran written = run_harvest(make);
  EXPECT_EQ(written.exit_code, 0) << written.err;
  EXPECT_EQ(written.out, "");
  std::vector<std::string> and_show = make;
  and_show.emplace_back("--summary");
  json made = run_for_json(and_show);
  for (const std::string model : {"mixtral-8x7b", "32x8x2"}) {
    json read = run_for_json({"routing", "--model", model, "--routing", path});
    EXPECT_EQ(read.at("routing"), path);
    EXPECT_EQ(read.at("model"), model);
    EXPECT_FALSE(read.contains("seed"));
    for (json* summary : {&made, &read})
      for (const char* key : {"seed", "routing", "model"}) summary->erase(key);
    EXPECT_EQ(read, made) << "a recording is not what it was made as";
  }
  EXPECT_EQ(made.at("decode_steps"), 40);
  EXPECT_EQ(made.at("decode_tokens"), 120);
  EXPECT_EQ(made.at("policies").size(), 4U);
  const auto recording = moe::read_routing(path, {32, 8, 2});
  ASSERT_TRUE(recording);
  EXPECT_EQ(recording->step(0).sequences()[0], (moe::BatchSequence{0, 9}));
}

TEST(Routing, ShowsWhatItIsLike) {
  const Ran ran = run_harvest({"routing", "--model", "qwen3-30b-a3b", "--steps", "20"});
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_THAT(ran.out,
              HasSubstr("Routing of qwen3-30b-a3b: 48 layers of 128 experts, top 8 (MADE UP, seed 1)"));
  EXPECT_THAT(ran.out, ::testing::ContainsRegex("policy +8 +16 +32 +64\n"));
  EXPECT_THAT(ran.out, ::testing::ContainsRegex("\n  belady +0\\.[0-9]+ +0"));
  for (const moe::RoutingModel& model : moe::routing_models())
    EXPECT_THAT(run_harvest({"routing", "--help"}).out, HasSubstr(std::string(model.name)));
}

}  // namespace
}  // namespace harvest::testing
