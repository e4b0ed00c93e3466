// SPDX-License-Identifier: Apache-2.0
// kv_server as a whole: conversations, and worlds in which what leaves the pages comes back. Campaigns are
// `example.kv_server`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "kv_server/conversations.hpp"
#include "kv_server/world.hpp"

namespace harvest::kv_server {
namespace {

using ::testing::HasSubstr;

const ProgressReport kSilent = [](std::uint64_t) {};
constexpr const char* kHow = "with the cache off";

Options small_options() {
  Options options;
  options.shape = {.layers = 3,
                   .experts = 4,
                   .hidden = 32,
                   .intermediate = 40,
                   .heads = 4,
                   .kv_heads = 2,
                   .vocabulary = 40};
  options.talk = {.conversations = 8,
                  .most_turns = 4,
                  .system_prompts = 3,
                  .longest_system = 24,
                  .longest_said = 8,
                  .most_new_tokens = 6,
                  .arrival_us = 200,
                  .pause_us = 1'000};
  options.page_tokens = 4;
  return options;
}

// --- conversations -----------------------------------------------------------------------------------------

TEST(ConversationsTest, ComeBackWithAllThatWasSaid) {
  Conversations conversations({.conversations = 1, .most_turns = 3, .system_prompts = 1}, 10, 4);
  std::vector<std::uint32_t> before;
  TimeNs now_ns = 0;
  std::uint32_t turns = 0;
  for (; !conversations.over(); ++turns) {
    ASSERT_GE(conversations.next_ns(), now_ns);
    now_ns = conversations.next_ns();
    EXPECT_TRUE(now_ns == 0 || conversations.due(now_ns - 1).empty());
    const auto requests = conversations.due(now_ns);
    ASSERT_EQ(requests.size(), 1U);
    const auto& prompt = requests[0].prompt;
    EXPECT_EQ(requests[0].id, turns);
    EXPECT_EQ(requests[0].arrival_ns, now_ns);
    ASSERT_GT(prompt.size(), before.size());
    EXPECT_TRUE(std::equal(before.begin(), before.end(), prompt.begin()));
    EXPECT_LT(*std::ranges::max_element(prompt), 10U);
    EXPECT_EQ(conversations.next_ns(), kNever) << "it waits for the answer";
    before = prompt;
    before.insert(before.end(), {9, 8, 7});
    conversations.hear({.id = turns, .tokens = {9, 8, 7}, .logits = {}}, now_ns);
  }
  EXPECT_GE(turns, 2U);
}

TEST(ConversationsTest, ShareTheirBeginnings) {
  const Talk talk{.conversations = 12, .system_prompts = 2, .longest_system = 50, .longest_said = 5};
  Conversations conversations(talk, 100, 4);
  const auto requests = conversations.due(kNever - 1);
  ASSERT_EQ(requests.size(), 12U);
  std::set<std::vector<std::uint32_t>> beginnings;
  for (const Request& request : requests) {
    ASSERT_GE(request.prompt.size(), 26U);
    EXPECT_LE(request.prompt.size() + request.new_tokens, talk.positions());
    beginnings.emplace(request.prompt.begin(), request.prompt.begin() + 25);
  }
  EXPECT_EQ(beginnings.size(), 2U);
}

// --- worlds ------------------------------------------------------------------------------------------------

Result<Outcome> serve(const Options& options) {
  const Model model(options.shape, options.seed);
  return World::create(options, model).value()->serve(kSilent);
}

std::string compare_with_alone(const Options& options, const Outcome& outcome) {
  return compare(outcome.answers, serve_alone(options, Model(options.shape, options.seed), kSilent), kHow);
}

std::uint64_t loaded(const Outcome& outcome, Tier tier) {
  return outcome.blocks.loaded[static_cast<std::size_t>(tier)];
}

TEST(KvWorldTest, PromptsComeFromPagesPeersAndHost) {
  Options options = small_options();
  options.pages = options.least_pages();
  options.kernel_us = 50;
  const auto on_peers = serve(options);
  ASSERT_TRUE(on_peers) << on_peers.error().message;
  EXPECT_EQ(compare_with_alone(options, *on_peers), "");
  EXPECT_GT(on_peers->pages.shared_tokens, 0U);
  EXPECT_GT(on_peers->pages.dropped_blocks, 0U);
  EXPECT_GT(loaded(*on_peers, Tier::peer), 0U);
  EXPECT_EQ(on_peers->pages.lost_blocks, 0U);
  EXPECT_EQ(on_peers->server.prompt_tokens,
            on_peers->prompt_tokens - on_peers->pages.shared_tokens - on_peers->pages.promised_tokens)
      << "what was found was computed all the same, or something else was not";

  options.peer_bytes = 0;
  const auto on_host = serve(options);
  ASSERT_TRUE(on_host) << on_host.error().message;
  EXPECT_EQ(compare_with_alone(options, *on_host), "");
  EXPECT_GT(loaded(*on_host, Tier::host), 0U);
  EXPECT_EQ(loaded(*on_host, Tier::peer), 0U);
}

TEST(KvWorldTest, WhatIsComputedSoonerIsNotLoaded) {
  Options options = small_options();
  options.pages = options.least_pages();
  options.recompute_us = 0.001;
  const auto outcome = serve(options);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(compare_with_alone(options, *outcome), "");
  EXPECT_GT(outcome->pages.declined_loads, 0U);
  EXPECT_EQ(outcome->blocks.loads, 0U);
}

TEST(KvWorldTest, WithoutTheCacheAllIsComputed) {
  Options options = small_options();
  options.cache = false;
  const auto outcome = serve(options);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(compare_with_alone(options, *outcome), "");
  EXPECT_EQ(outcome->server.prompt_tokens, outcome->prompt_tokens);
}

TEST(KvWorldTest, WhatIsLostUnderwayIsRecomputed) {
  Options options = small_options();
  options.pages = options.least_pages();
  options.backing = "lossy";
  options.fault_rate = 0.03;
  options.kernel_us = 3'000;  // peers come back into service meanwhile
  options.talk.pause_us = 500'000;
  std::uint64_t lost = 0;
  for (options.seed = 1; options.seed <= 6; ++options.seed) {
    const auto outcome = serve(options);
    ASSERT_TRUE(outcome) << outcome.error().message;
    EXPECT_EQ(compare_with_alone(options, *outcome), "") << "seed " << options.seed;
    EXPECT_EQ(outcome->server.missing_tokens, outcome->pages.lost_blocks * options.page_tokens);
    lost += outcome->pages.lost_blocks;
  }
  EXPECT_GT(lost, 0U);
}

TEST(KvWorldTest, ServesUnderOwnersAndFaultsWhatItServesWithout) {
  Options options = small_options();
  options.pages = options.least_pages();
  options.bursty_owners = true;
  options.owner_period_us = 100;
  options.backing = "spill";
  options.fault_rate = 0.01;
  const auto first = serve(options);
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_EQ(compare_with_alone(options, *first), "");
  EXPECT_GT(first->owners.reclaims, 0U);
  EXPECT_EQ(first->owners.refused, 0U);
  const auto second = serve(options);
  ASSERT_TRUE(second);
  EXPECT_EQ(first->duration_ns, second->duration_ns) << "a seed is not repeatable";
}

TEST(KvWorldTest, ARouterHearsOfWhatComesAndGoes) {
  Options options = small_options();
  options.backing = "lossy";
  options.bursty_owners = true;
  options.owner_period_us = 200;
  const auto outcome = serve(options);
  ASSERT_TRUE(outcome) << outcome.error().message;
  const auto told = [&](kv::BlockEvent::Kind kind) {
    return outcome->events[static_cast<std::size_t>(kind)];
  };
  EXPECT_EQ(told(kv::BlockEvent::Kind::stored), outcome->blocks.stored);
  EXPECT_GT(told(kv::BlockEvent::Kind::removed), 0U);
  EXPECT_LE(told(kv::BlockEvent::Kind::removed), outcome->blocks.stored);
}

TEST(KvWorldTest, SaysWhyThereCanBeNone) {
  const Options options = small_options();
  const Model model(options.shape, options.seed);
  const auto complaint = [&](auto change) {
    Options changed = options;
    change(changed);
    const auto world = World::create(changed, model);
    return world ? "nothing" : world.error().message;
  };
  EXPECT_EQ(complaint([](Options&) {}), "nothing");
  EXPECT_THAT(complaint([](Options& changed) { changed.system = "nope"; }), HasSubstr("'nope'"));
  EXPECT_THAT(complaint([](Options& changed) { changed.store_buffers = 0; }),
              HasSubstr("store_buffers is 0"));
  EXPECT_THAT(complaint([](Options& changed) { changed.group_layers = 4; }), HasSubstr("group_layers is 4"));
}

TEST(KvOptionsTest, SayWhatCannotBe) {
  const auto complaint = [](auto change) {
    Options options = small_options();
    change(options);
    const Status status = options.validate();
    return status ? "nothing" : status.error().message;
  };
  EXPECT_EQ(complaint([](Options&) {}), "nothing");
  EXPECT_EQ(complaint([](Options& options) { options.pages = 19; }),
            "pages is 19, it must be from 20 to 1000000");  // 24 + 4 x 14 tokens
  EXPECT_EQ(complaint([](Options& options) { options.block_pages = 16'385; }),
            "block_pages is 16385, it must be from 1 to 16384");
  EXPECT_EQ(complaint([](Options& options) { options.limits.tokens_per_step = 3; }),
            "tokens_per_step is 3, it must be from 4 to 100000");
  EXPECT_EQ(complaint([](Options& options) { options.backing = "external_host"; }),
            "no backing for blocks is named 'external_host'; known are managed_host, spill, lossy");
  EXPECT_THAT(complaint([](Options& options) { options.arrangement = "upside_down"; }),
              HasSubstr("'upside_down'"));
  EXPECT_EQ(complaint([](Options& options) { options.fault_rate = std::nan(""); }),
            "fault_rate is nan, it must be from 0 to 0.5");
}

}  // namespace
}  // namespace harvest::kv_server
