// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cli/files.hpp"
#include "cli/program.hpp"

/// `harvest bench kv serve` and `turns`: servers whose blocks wait beyond the GPU, under several strategies.
namespace harvest::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::vector<std::string> words(const std::string& what, std::vector<std::string> more) {
  more.insert(more.begin(), {"bench", "kv", what});
  return more;
}

json serve(std::vector<std::string> more) {
  more.insert(more.end(), {"--requests", "120", "--local-bytes", "8GiB"});
  return run_for_json(words("serve", std::move(more)));
}

json result_of(const json& report, const std::string& strategy) {
  for (const json& result : report.at("results"))
    if (result.at("strategy") == strategy) return result;
  ADD_FAILURE() << "no result of " << strategy;
  return {};
}

TEST(BenchKvServe, EveryRequestIsServedAndBlocksAddUp) {
  const json report = serve({});
  EXPECT_EQ(report.at("benchmark"), "kv_serve");
  EXPECT_EQ(report.at("simulated"), true);
  EXPECT_EQ(report.at("clock"), "virtual");
  ASSERT_EQ(report.at("results").size(), 4U);
  const json& first = report.at("results").at(0);
  for (const json& result : report.at("results")) {
    SCOPED_TRACE(result.at("strategy").get<std::string>());
    EXPECT_EQ(result.at("completed"), 120);
    EXPECT_EQ(result.at("output_tokens"), first.at("output_tokens"));
    EXPECT_EQ(result.at("blocks"), first.at("blocks"));
    const json& hits = result.at("hits");
    EXPECT_EQ(hits.at("local").get<int>() + hits.at("peer").get<int>() + hits.at("host").get<int>() +
                  result.at("recomputed").get<int>(),
              result.at("blocks"));
    EXPECT_EQ(result.at("wrong_bytes"), 0);
    EXPECT_LE(result.at("ttft_ms").at("p50"), result.at("ttft_ms").at("p90"));
    EXPECT_LE(result.at("ttft_ms").at("p90"), result.at("ttft_ms").at("p99"));
    EXPECT_GE(result.at("exposed_stall_fraction"), 0);
    EXPECT_LT(result.at("exposed_stall_fraction"), 1);
  }
}

TEST(BenchKvServe, WhatIsKeptBelowIsReadFromThere) {
  const json report = serve({"--host-bytes", "64GiB", "--peer-bytes", "32GiB"});
  const json recompute = result_of(report, "recompute");
  const json host = result_of(report, "host");
  const json harvest = result_of(report, "harvest");
  EXPECT_EQ(recompute.at("bytes_from").at("host"), 0);
  EXPECT_EQ(host.at("bytes_from").at("peer"), 0);
  EXPECT_GT(host.at("hits").at("host"), 0);
  EXPECT_GT(harvest.at("hits").at("peer"), 0);
  EXPECT_GE(
      harvest.at("bytes_from").at("peer").get<std::uint64_t>(),
      harvest.at("hits").at("peer").get<std::uint64_t>() * report.at("block_bytes").get<std::uint64_t>());
  EXPECT_LT(harvest.at("computed_tokens"), recompute.at("computed_tokens"));
  EXPECT_LE(harvest.at("ttft_ms").at("p90"), recompute.at("ttft_ms").at("p90"));
  // Naive copies make the GPU wait; copies that come layer by layer hardly do.
  EXPECT_LT(harvest.at("exposed_stall_fraction"),
            result_of(report, "peer+host").at("exposed_stall_fraction"));
}

TEST(BenchKvServe, PeersThatHoldMoreThanTheHostAreWhereBlocksLive) {
  const json report = serve({"--host-bytes", "1GiB", "--peer-bytes", "40GiB", "--strategy", "host,harvest"});
  const json harvest = result_of(report, "harvest");
  EXPECT_GT(harvest.at("hits").at("peer"), result_of(report, "host").at("hits").at("host"));
  EXPECT_EQ(harvest.at("hits").at("host"), 0);
}

TEST(BenchKvServe, OwnersThatComeAndGoAreServedAndNoByteIsWrong) {
  const json report = serve({"--owner-activity", "bursty", "--peer-bytes", "80GiB", "--host-bytes", "8GiB",
                             "--rate", "0.05", "--strategy", "harvest"});
  const json harvest = result_of(report, "harvest");
  EXPECT_EQ(harvest.at("completed"), 120);
  EXPECT_EQ(harvest.at("wrong_bytes"), 0);
  EXPECT_EQ(harvest.at("owners").at("refused"), 0);
}

TEST(BenchKvServe, NewRequestsTakeTurnsWithThoseThatWaitOnPeers) {
  const auto serve_crowd = [](const std::string& turn_tokens) {
    return run_for_json(words("serve", {"--requests", "200", "--rate", "20", "--local-bytes", "4GiB",
                                        "--strategy", "host,harvest", "--turn-tokens", turn_tokens}));
  };
  const json with_turns = serve_crowd("128");
  const json without_turns = serve_crowd("0");
  for (const std::string strategy : {"host", "harvest"}) {
    SCOPED_TRACE(strategy);
    const json turns = result_of(with_turns, strategy);
    const json stays = result_of(without_turns, strategy);
    EXPECT_GT(turns.at("left").get<int>(), 5 * stays.at("left").get<int>());
    EXPECT_EQ(turns.at("completed"), 200);
    EXPECT_EQ(turns.at("output_tokens"), stays.at("output_tokens"));
    EXPECT_EQ(turns.at("wrong_bytes"), 0);
    EXPECT_LT(turns.at("ttft_ms").at("p90").get<double>(), stays.at("ttft_ms").at("p90").get<double>());
  }
}

TEST(BenchKvServe, SplitsAModelOverGpus) {
  const json report = run_for_json(words("serve", {"--system", "dgx-h100", "--model", "llama-3-70b",
                                                   "--requests", "20", "--strategy", "harvest"}));
  EXPECT_EQ(report.at("tensor_parallel"), 4);
  EXPECT_EQ(report.at("peers"), json::array({4}));
  EXPECT_EQ(report.at("block_bytes"), 512 * 327'680 / 4);
}

TEST(BenchKvServe, ServesARecording) {
  const TemporaryFolder folder;
  const std::string trace = folder.file("trace.jsonl", mooncake({{0, {1, 2, 3}}, {3000, {1, 2, 4}}}));
  const json report =
      run_for_json(words("serve", {"--trace", trace, "--strategy", "recompute", "--rate", "2"}));
  EXPECT_EQ(report.at("requests"), 2);
  EXPECT_GT(result_of(report, "recompute").at("hits").at("local"), 0);
}

TEST(BenchKvServe, TheSameSeedGivesTheSameReport) {
  const std::vector<std::string> some{"--seed", "3", "--owner-activity", "bursty"};
  EXPECT_EQ(serve(some), serve(some));
  EXPECT_NE(serve(some), serve({"--seed", "4", "--owner-activity", "bursty"}));
}

TEST(BenchKvServe, SaysWhatCannotBeMeant) {
  const auto complaint = [](std::vector<std::string> more) {
    const Ran ran = run_harvest(words("serve", std::move(more)));
    EXPECT_EQ(ran.exit_code, 2);
    EXPECT_EQ(ran.out, "");
    return ran.err;
  };
  EXPECT_THAT(complaint({"--strategy", "magic"}),
              HasSubstr("no strategy 'magic'; known are recompute, host"));
  EXPECT_THAT(complaint({"--model", "gpt-2"}),
              HasSubstr("--model: no model without experts is named 'gpt-2'"));
  EXPECT_THAT(complaint({"--model", "llama-3-70b", "--tensor-parallel", "1"}),
              HasSubstr("--tensor-parallel"));
  EXPECT_THAT(complaint({"--tensor-parallel", "2"}), HasSubstr("leave no peer for each"));
  EXPECT_THAT(complaint({"--tensor-parallel", "3"}), HasSubstr("cannot be split over 3 GPUs"));
  EXPECT_THAT(complaint({"--local-bytes", "1TiB"}), HasSubstr("--local-bytes: 1.0 TiB do not fit"));
  EXPECT_THAT(complaint({"--local-bytes", "256MiB"}), HasSubstr("local memory of 256.0 MiB has 4"));
  EXPECT_THAT(complaint({"--rate", "0"}), HasSubstr("'0' is not a number above 0"));
  EXPECT_THAT(complaint({"--trace", "/no/such/file"}), HasSubstr("--trace: "));
  EXPECT_THAT(complaint({"--owner-activity", "wild"}), HasSubstr("--owner-activity: "));
}

TEST(BenchKvServe, TheConversationTraceIsServed) {
  const auto trace = conversation_trace();
  if (!trace) GTEST_SKIP() << kNoConversationTrace;
  const json report = run_for_json(words(
      "serve", {"--trace", *trace, "--rate", "0.3", "--requests", "1000", "--strategy", "host,harvest"}));
  const json harvest = result_of(report, "harvest");
  const json host = result_of(report, "host");
  EXPECT_EQ(harvest.at("completed"), 1000);
  EXPECT_GE(harvest.at("tokens_per_s").get<double>(), .999 * host.at("tokens_per_s").get<double>());
  EXPECT_LE(harvest.at("ttft_ms").at("p90").get<double>(), 1.01 * host.at("ttft_ms").at("p90").get<double>());
}

TEST(BenchKvTurns, NobodyWaitsLongForAFirstTokenAndLittleIsLost) {
  const json report = run_for_json(words("turns", {"--sequences", "120", "--local-bytes", "4GiB"}));
  EXPECT_EQ(report.at("benchmark"), "kv_turns");
  ASSERT_EQ(report.at("results").size(), 3U);
  const json& completion = report.at("results").at(0);
  EXPECT_EQ(completion.at("mode"), "run_to_completion");
  for (const json& result : report.at("results")) {
    EXPECT_EQ(result.at("completed"), 120);
    EXPECT_EQ(result.at("output_tokens"), completion.at("output_tokens"));
    EXPECT_EQ(result.at("wrong_bytes"), 0);
  }
  const json& peer = report.at("results").at(2);
  EXPECT_EQ(peer.at("mode"), "turns_over_peer");
  EXPECT_GT(peer.at("left"), 0);
  EXPECT_GT(peer.at("bytes_from").at("peer"), 0);
  EXPECT_LT(peer.at("ttft_ms").at("p99").get<double>(),
            .5 * completion.at("ttft_ms").at("p99").get<double>());
  EXPECT_GT(peer.at("tokens_per_s").get<double>(), .9 * completion.at("tokens_per_s").get<double>());
}

TEST(BenchKvTurns, HelpTeachesWithExamples) {
  for (const std::string what : {"serve", "turns"}) {
    const Ran help = run_harvest(words(what, {"--help"}));
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, HasSubstr("Example:\n  harvest bench kv " + what));
  }
  EXPECT_THAT(run_harvest({"bench", "--help"}).out, HasSubstr("  kv "));
}

}  // namespace
}  // namespace harvest::testing
