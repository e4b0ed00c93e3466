// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "cli/files.hpp"
#include "cli/program.hpp"

/// `harvest bench moe`: a server of experts that do not all fit, under several strategies.
namespace harvest::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::vector<std::string> words(std::vector<std::string> more) {
  more.insert(more.begin(), {"bench", "moe"});
  return more;
}

json bench(std::vector<std::string> more) {
  more.insert(more.end(), {"--warm-up", "16", "--steps", "8"});
  return run_for_json(words(std::move(more)));
}

/// Of the only case.
json result_of(const json& report, const std::string& strategy) {
  for (const json& result : report.at("cases").at(0).at("results"))
    if (result.at("strategy") == strategy) return result;
  ADD_FAILURE() << "no result of " << strategy;
  return {};
}

double tokens_per_s(const json& report, const std::string& strategy) {
  return result_of(report, strategy).at("tokens_per_s").get<double>();
}

TEST(BenchMoe, RanksTheStrategies) {
  const json report = bench({"--model", "phi-3.5-moe", "--batch", "8", "--local-fraction", "0.25"});
  EXPECT_EQ(report.at("benchmark"), "moe");
  EXPECT_EQ(report.at("simulated"), true);
  EXPECT_EQ(report.at("clock"), "virtual");
  const double harvest = tokens_per_s(report, "harvest");
  EXPECT_GT(harvest, 2.5 * tokens_per_s(report, "host"));
  EXPECT_GT(harvest, tokens_per_s(report, "static_peer"));
  EXPECT_LT(harvest, tokens_per_s(report, "all_local"));
  const json result = result_of(report, "harvest");
  EXPECT_GE(harvest, .95 * result.at("bound_tokens_per_s").get<double>());
  EXPECT_LE(harvest, result.at("bound_tokens_per_s").get<double>());
  const json& hit = result.at("hit");
  EXPECT_NEAR(hit.at("local").get<double>() + hit.at("peer").get<double>() + hit.at("host").get<double>(), 1,
              1e-9);
  EXPECT_EQ(result_of(report, "host").at("hit").at("peer"), 0);
}

/// The cache tells from outside how long its stream stood still, what the bench knows of what it computed.
TEST(BenchMoe, TheCacheSeesTheStallThatTheBenchHas) {
  for (const char* model : {"phi-3.5-moe", "qwen1.5-moe-a2.7b"})
    for (const char* batch : {"1", "32"}) {
      const json report = bench({"--model", model, "--batch", batch, "--strategy", "harvest,host"});
      for (const std::string strategy : {"harvest", "host"}) {
        SCOPED_TRACE(std::string(model) + " " + batch + " " + strategy);
        const json result = result_of(report, strategy);
        const double ns = 8 * std::stod(batch) * 1e9 / result.at("tokens_per_s").get<double>();
        const double stalled = result.at("exposed_stall_fraction").get<double>();
        const auto share = [&](const char* key) { return result.at("stall").at(key).get<double>() / ns; };
        EXPECT_GT(stalled, 0);
        EXPECT_LE(share("exposed_ns"), stalled + .002);
        EXPECT_GE(share("exposed_ns") + share("unseen_ns"), stalled - .01);
        EXPECT_GT(share("hidden_ns"), 0);
        EXPECT_LT(share("unseen_ns"), .06);  // a look at either end of each wait, of which an expert has two
      }
    }
}

/// Also while the bench polls as often as it can: guesses are begun by steps, in time for the next.
TEST(BenchMoe, APredictorGainsWhereMuchIsTold) {
  const auto with = [](const std::string& predictor) {
    return tokens_per_s(
        run_for_json(words({"--model", "qwen1.5-moe-a2.7b", "--batch", "32", "--strategy", "harvest",
                            "--predictor", predictor, "--warm-up", "64", "--steps", "32"})),
        "harvest");
  };
  EXPECT_GT(with("next_layer"), 1.005 * with("none"));
}

/// What the next layer's router tells one layer early gains more than a roofline without it allows.
TEST(BenchMoe, ARouterAskedEarlyBeatsTheBoundWithoutAPredictor) {
  const std::vector<std::string> some{"--model", "qwen1.5-moe-a2.7b", "--batch",
                                      "1",       "--strategy",        "harvest"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), some.begin(), some.end());
    return run_for_json(words(std::move(more)));
  };
  const json none = with({});
  const json ahead = with({"--predictor", "gate_ahead"});
  EXPECT_EQ(ahead.at("predictor"), "gate_ahead");
  EXPECT_EQ(ahead.at("assumed").at("gate_recall"), .788);
  EXPECT_FALSE(none.contains("assumed"));
  const double bound = result_of(none, "harvest").at("bound_tokens_per_s").get<double>();
  EXPECT_EQ(result_of(ahead, "harvest").at("bound_tokens_per_s"), bound) << "it knows no predictor";
  EXPECT_LT(tokens_per_s(none, "harvest"), bound);
  EXPECT_GT(tokens_per_s(ahead, "harvest"), bound);
  EXPECT_LT(tokens_per_s(with({"--predictor", "gate_ahead", "--gate-recall", "0.6"}), "harvest"),
            tokens_per_s(ahead, "harvest"));
}

TEST(BenchMoe, KnowsTheModels) {
  const std::map<std::string, std::uint64_t> expert_bytes{
      {"mixtral-8x7b", 352'321'536}, {"phi-3.5-moe", 157'286'400},    {"qwen1.5-moe-a2.7b", 17'301'504},
      {"qwen3-30b-a3b", 9'437'184},  {"qwen3-235b-a22b", 37'748'736}, {"deepseek-v3", 44'040'192},
      {"gpt-oss-120b", 13'219'200}};
  for (const auto& [model, bytes] : expert_bytes) {
    const json report = bench({"--model", model, "--strategy", "all_local"});
    EXPECT_EQ(report.at("expert_bytes"), bytes) << model;
  }
}

TEST(BenchMoe, SaysWhatDoesNotFit) {
  const json report = bench({"--system", "dgx-h100", "--model", "qwen3-235b-a22b"});
  for (const json& result : report.at("cases").at(0).at("results")) {
    if (result.at("strategy") == "expert_parallel") continue;
    EXPECT_THAT(result.at("absent").get<std::string>(), HasSubstr("do not fit on a GPU of 80.0 GiB"));
  }
}

TEST(BenchMoe, OwnersThatComeAndGoAreServed) {
  const json report = bench({"--owner-activity", "bursty", "--strategy", "harvest", "--batch", "32"});
  EXPECT_EQ(result_of(report, "harvest").at("owners").at("refused"), 0);
  EXPECT_EQ(result_of(report, "harvest").at("owners").at("late"), 0);
}

TEST(BenchMoe, ServesARecording) {
  const TemporaryFolder folder;
  const std::string recording = folder.path() / "routing.jsonl.gz";
  ASSERT_EQ(
      run_harvest({"routing", "--model", "phi-3.5-moe", "--batch", "4", "--steps", "6", "--write", recording})
          .exit_code,
      0);
  const json report = bench({"--model", "phi-3.5-moe", "--routing", recording, "--strategy", "harvest"});
  EXPECT_GT(tokens_per_s(report, "harvest"), 0);
  const Ran other = run_harvest(words({"--model", "mixtral-8x7b", "--routing", recording}));
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_THAT(other.err, HasSubstr("--routing: "));
}

TEST(BenchMoe, TheSameSeedGivesTheSameReport) {
  const std::vector<std::string> some{"--model", "qwen1.5-moe-a2.7b", "--predictor", "next_layer", "--seed",
                                      "3"};
  EXPECT_EQ(bench(some), bench(some));
}

TEST(BenchMoe, HelpTeachesWithExamples) {
  const Ran help = run_harvest(words({"--help"}));
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Example:\n  harvest bench moe"));
  EXPECT_THAT(run_harvest({"bench", "--help"}).out, HasSubstr("  moe "));
}

}  // namespace
}  // namespace harvest::testing
