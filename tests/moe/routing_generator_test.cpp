// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/moe/routing.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

/// The generator's steps are what a model's could be. How they are distributed is in routing_fit_test.cpp.
namespace harvest::moe {
namespace {

using ::testing::HasSubstr;

RoutingGenerator generator_of(std::string_view model, const RoutingTraffic& traffic) {
  auto generator = RoutingGenerator::create(*find_routing_model(model), traffic);
  EXPECT_TRUE(generator);
  return std::move(*generator);
}

/// FNV-1a.
std::uint64_t hash_of(RoutingGenerator& generator, int steps) {
  std::uint64_t hash = 0xcbf2'9ce4'8422'2325;
  const auto fold = [&](std::uint64_t value) { hash = (hash ^ value) * 0x100'0000'01b3; };
  for (int i = 0; i < steps; ++i) {
    const RoutingStep step = generator.next();
    fold(step.phase() == Phase::prefill ? 1 : 0);
    for (const BatchSequence& sequence : step.sequences()) {
      fold(sequence.id);
      fold(sequence.tokens);
    }
    for (std::uint32_t layer = 0; layer < step.layers(); ++layer)
      for (std::size_t s = 0; s < step.sequences().size(); ++s) {
        fold(step.experts(layer, s).size());
        for (const std::uint32_t expert : step.experts(layer, s)) fold(expert);
      }
  }
  return hash;
}

TEST(RoutingGenerator, GivesTheSameForASeedOnEveryPlatform) {
  const RoutingTraffic traffic{4, {1, 80}, {1, 20}, 42};
  auto one = generator_of("qwen3-30b-a3b", traffic);
  EXPECT_EQ(hash_of(one, 40), 61'638'847'157'147'449U);
  auto two = generator_of("qwen3-30b-a3b", {4, {1, 80}, {1, 20}, 43});
  auto again = generator_of("qwen3-30b-a3b", traffic);
  const std::uint64_t first = hash_of(again, 40);
  EXPECT_NE(hash_of(two, 40), first);
  // The rest of the stream goes with a generator that moves.
  RoutingGenerator moved = std::move(again);
  EXPECT_EQ(hash_of(moved, 10), hash_of(one, 10));
}

/// A trace takes a step only if each of its lines is right.
TEST(RoutingGenerator, GivesStepsOfItsModel) {
  for (const RoutingModel& model : routing_models()) {
    for (const TokenRange prompt : {TokenRange{1, 3}, TokenRange{16, 18}, TokenRange{300, 600}}) {
      auto generator = generator_of(model.name, {5, prompt, {1, 4}, 9});
      RoutingTrace trace(model.shape);
      for (int i = 0; i < 20; ++i) {
        const Status added = trace.add(generator.next());
        ASSERT_TRUE(added) << model.name << ": " << added.error().message;
      }
    }
  }
}

TEST(RoutingGenerator, WorksAtTheEdgesOfAShape) {
  constexpr RoutingHabits kFlat{.linked = 1,
                                .first_spread = 512,
                                .second_spread = 1,
                                .last_spread = 512,
                                .common = 1,
                                .subject_drift = 1,
                                .popularity_drift = 1};
  constexpr RoutingHabits kSteep{.linked = 0, .first_spread = 1, .second_spread = 1, .last_spread = 1};
  for (const RoutingShape shape : {RoutingShape{1, 1, 1}, RoutingShape{2, 2, 1}, RoutingShape{3, 5, 5},
                                   RoutingShape{2, 1024, 1024}, RoutingShape{1, 1024, 1}})
    for (const RoutingHabits& habits : {kFlat, kSteep}) {
      auto generator = RoutingGenerator::create({"edge", shape, habits}, {2, {1, 70}, {1, 3}, 1});
      ASSERT_TRUE(generator);
      RoutingTrace trace(shape);
      for (int i = 0; i < 6; ++i) ASSERT_TRUE(trace.add(generator->next()));
    }
}

TEST(RoutingGenerator, ReplacesSequencesThatAreDone) {
  constexpr std::uint32_t kBatch = 6;
  auto generator = generator_of("mixtral-8x7b", {kBatch, {10, 20}, {2, 30}, 3});
  std::map<std::uint32_t, std::uint32_t> decoded;  // tokens, by sequence
  std::set<std::uint32_t> running;
  std::map<std::uint32_t, int> lengths;
  Phase last = Phase::decode;
  for (int i = 0; i < 2000; ++i) {
    const RoutingStep step = generator.next();
    if (step.phase() == Phase::prefill) {
      EXPECT_NE(last, Phase::prefill) << "all new prompts are read in one step";
      for (const auto [id, tokens] : step.sequences()) {
        EXPECT_TRUE(decoded.emplace(id, 1).second) << "a sequence is read twice";
        EXPECT_GE(tokens, 10U);
        EXPECT_LE(tokens, 20U);
      }
    } else {
      std::set<std::uint32_t> now;
      for (const auto [id, tokens] : step.sequences()) {
        EXPECT_EQ(tokens, 1U);
        ASSERT_TRUE(decoded.contains(id)) << "a sequence decodes before its prompt is read";
        EXPECT_LE(++decoded[id], 30U);
        now.insert(id);
      }
      EXPECT_EQ(now.size(), kBatch);
      for (const std::uint32_t id : running)
        if (!now.contains(id)) ++lengths[decoded[id]];
      running = now;
    }
    last = step.phase();
  }
  EXPECT_EQ(lengths.size(), 29U) << "each length from 2 to 30 is drawn";
  for (const auto& [tokens, count] : lengths) EXPECT_GE(count, 1) << tokens;
}

/// With answers of one token there is nothing to decode.
TEST(RoutingGenerator, ReadsPromptsAloneWhereAnswersAreOneToken) {
  auto generator = generator_of("mixtral-8x7b", {2, {7, 7}, {1, 1}, 3});
  for (std::uint32_t i = 0; i < 5; ++i) {
    const RoutingStep step = generator.next();
    EXPECT_EQ(step.phase(), Phase::prefill);
    EXPECT_EQ(step.sequences()[0], (BatchSequence{2 * i, 7}));
  }
}

/// The share of a layer that prompts of one length need.
double needed_share(std::uint32_t tokens) {
  auto generator = generator_of("qwen3-30b-a3b", {8, {tokens, tokens}, {1, 1}, 7});
  double experts = 0;
  double layers = 0;
  for (int i = 0; i < 4; ++i) {
    const RoutingStep step = generator.next();
    for (std::uint32_t layer = 0; layer < step.layers(); ++layer)
      experts += static_cast<double>(step.experts(layer).size());
    layers += step.layers() * 8.0;
  }
  return experts / layers / 128;
}

TEST(RoutingGenerator, NeedsNearlyAllExpertsForALongPrompt) {
  EXPECT_DOUBLE_EQ(needed_share(1), 8.0 / 128);
  const double of_16 = needed_share(16);  // token by token
  const double of_17 = needed_share(17);  // the first of them at once
  EXPECT_GT(of_16, .25);
  EXPECT_NEAR(of_17, of_16 * 17 / 16, .03);
  EXPECT_GT(needed_share(64), of_17);
  EXPECT_GT(needed_share(2000), .9);
}

TEST(RoutingGenerator, RefusesWhatCannotBeMeant) {
  const auto complaint = [](const RoutingModel& model, const RoutingTraffic& traffic) -> std::string {
    const auto made = RoutingGenerator::create(model, traffic);
    if (made) return "made";
    EXPECT_EQ(made.error().code, ErrorCode::invalid_argument);
    return made.error().message;
  };
  const RoutingModel good = *find_routing_model("mixtral-8x7b");
  EXPECT_EQ(complaint(good, {}), "made");
  EXPECT_EQ(complaint(good, {.batch = 0}), "batch is 0, the limits are 1 and 4096");
  EXPECT_EQ(complaint(good, {.batch = 4097}), "batch is 4097, the limits are 1 and 4096");
  EXPECT_EQ(complaint(good, {.prompt_tokens = {0, 5}}),
            "prompt_tokens.least is 0, the limits are 1 and 1048576");
  EXPECT_EQ(complaint(good, {.output_tokens = {1, 1'048'577}}),
            "output_tokens.most is 1048577, the limits are 1 and 1048576");
  EXPECT_EQ(complaint(good, {.prompt_tokens = {6, 5}}),
            "prompt_tokens.least is 6, more than prompt_tokens.most, 5");
  EXPECT_EQ(complaint({"wide", {1024, 1024, 8}, good.habits}, {.batch = 257}),
            "batch x layers x experts is 269484032, the limits are 1 and 268435456");
  EXPECT_THAT(complaint({"flat", {0, 8, 2}, good.habits}, {}), HasSubstr("layers is 0"));

  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto with = [&](double RoutingHabits::*field, double value) {
    RoutingModel model = good;
    model.habits.*field = value;
    return complaint(model, {});
  };
  EXPECT_EQ(with(&RoutingHabits::linked, 1.5), "linked is 1.5, the limits are 0 and 1");
  EXPECT_EQ(with(&RoutingHabits::common, -.1), "common is -0.1, the limits are 0 and 1");
  EXPECT_EQ(with(&RoutingHabits::subject_drift, nan), "subject_drift is nan, the limits are 0 and 1");
  EXPECT_EQ(with(&RoutingHabits::popularity_drift, 2), "popularity_drift is 2, the limits are 0 and 1");
  EXPECT_EQ(with(&RoutingHabits::first_spread, .5), "first_spread is 0.5, the limits are 1 and 512");
  EXPECT_EQ(with(&RoutingHabits::second_spread, 513), "second_spread is 513, the limits are 1 and 512");
  EXPECT_EQ(with(&RoutingHabits::last_spread, nan), "last_spread is nan, the limits are 1 and 512");
}

TEST(RoutingModels, AreFoundByName) {
  std::set<std::string_view> names;
  for (const RoutingModel& model : routing_models()) {
    EXPECT_TRUE(names.insert(model.name).second);
    EXPECT_EQ(find_routing_model(model.name)->shape, model.shape);
  }
  const auto none = find_routing_model("gpt-5");
  EXPECT_EQ(none.error().code, ErrorCode::not_found);
  EXPECT_THAT(none.error().message,
              HasSubstr("no model is named 'gpt-5'; known are mixtral-8x7b, phi-3.5-moe"));
}

}  // namespace
}  // namespace harvest::moe
