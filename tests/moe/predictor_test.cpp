// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/moe/predictor.hpp>

#include <algorithm>
#include <set>
#include <string>

#include "core/random.hpp"

namespace harvest::moe {
namespace {

using ::testing::HasSubstr;
using testing::Random;
using Experts = std::vector<std::uint32_t>;

ModelDescription model_of(std::uint32_t layers, std::uint32_t experts, std::uint32_t top_k) {
  ModelDescription model;
  model.name = "test";
  model.layers = layers;
  model.experts = experts;
  model.top_k = top_k;
  model.tensors = {{"all", 16}};
  return model;
}

std::unique_ptr<Predictor> made(std::string_view name, const ModelDescription& model) {
  auto predictor = make_predictor(name, model);
  EXPECT_TRUE(predictor) << name;
  return std::move(*predictor);
}

std::vector<Guess> guesses_of(const Predictor& predictor, std::uint32_t layer) {
  std::vector<Guess> guesses;
  predictor.predict(layer, guesses);
  return guesses;
}

double probability_of(const Predictor& predictor, std::uint32_t layer, std::uint32_t expert) {
  for (const Guess& guess : guesses_of(predictor, layer))
    if (guess.expert == expert) return guess.probability;
  return 0;
}

// --- all ------------------------------------------------------------------------------------------------

TEST(Predictors, AreMadeByName) {
  const ModelDescription model = model_of(2, 4, 1);
  for (const std::string_view name : predictor_names()) EXPECT_EQ(made(name, model)->name(), name);
  const auto unknown = make_predictor("oracle", model);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::not_found);
  EXPECT_THAT(unknown.error().message, HasSubstr("none, next_layer, sequence"));
  EXPECT_EQ(make_predictor("none", model_of(0, 4, 1)).error().code, ErrorCode::invalid_argument);
}

TEST(Predictors, RefuseTablesThatNoMachineHasRoomFor) {
  const auto huge = make_predictor("next_layer", model_of(1024, 1024, 8));
  ASSERT_FALSE(huge);
  EXPECT_EQ(huge.error().code, ErrorCode::out_of_memory);
  EXPECT_THAT(huge.error().message, HasSubstr("8589934592 bytes"));
  EXPECT_TRUE(make_predictor("sequence", model_of(1024, 1024, 8)));
}

TEST(Predictors, GuessNothingBeforeTheySawAnything) {
  for (const std::string_view name : predictor_names()) {
    const auto predictor = made(name, model_of(3, 8, 2));
    for (std::uint32_t layer = 0; layer < 3; ++layer)
      for (const Guess& guess : guesses_of(*predictor, layer))
        EXPECT_LT(guess.probability, 0.5) << name << ", layer " << layer;
  }
}

/// Whatever they are told, in whatever order: guesses are experts of the model, each once, with odds.
TEST(Predictors, GuessOddsOfExpertsThatExist) {
  for (const std::string_view name : predictor_names())
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
      Random random(seed, 7);
      const auto layers = static_cast<std::uint32_t>(random.between(1, 4));
      const auto experts = static_cast<std::uint32_t>(random.between(1, 12));
      const auto top_k = static_cast<std::uint32_t>(random.between(1, experts));
      const auto predictor = made(name, model_of(layers, experts, top_k));
      const bool in_order = random.chance(0.5);
      for (std::uint32_t i = 0; i < 400; ++i) {
        const auto layer = in_order ? i % layers : static_cast<std::uint32_t>(random.below(layers));
        std::set<std::uint32_t> came;
        for (std::uint64_t n = random.below(experts + 1); n > 0; --n)
          came.insert(
              static_cast<std::uint32_t>(random.below(random.chance(0.7) ? (experts + 1) / 2 : experts)));
        predictor->observe(layer, Experts(came.begin(), came.end()));
        std::set<std::uint32_t> guessed;
        for (const Guess& guess : guesses_of(*predictor, static_cast<std::uint32_t>(random.below(layers)))) {
          ASSERT_LT(guess.expert, experts) << name << ", seed " << seed;
          ASSERT_TRUE(guess.probability >= 0 && guess.probability <= 1)
              << name << ", seed " << seed << ": " << guess.probability;
          ASSERT_TRUE(guessed.insert(guess.expert).second) << name << ", seed " << seed;
        }
      }
    }
}

TEST(Predictors, AppendToTheGuesses) {
  for (const std::string_view name : {"next_layer", "sequence"}) {
    const auto predictor = made(name, model_of(1, 4, 4));
    for (int i = 0; i < 300; ++i) predictor->observe(0, Experts{1, 2});
    std::vector<Guess> guesses{{3, 0.125}};
    predictor->predict(0, guesses);
    ASSERT_GE(guesses.size(), 3U) << name;
    EXPECT_EQ(guesses[0].expert, 3U);
    EXPECT_EQ(guesses[0].probability, 0.125);
  }
}

TEST(Predictors, LearnWhatALayerOfItsOwnRepeats) {
  for (const std::string_view name : {"next_layer", "sequence"}) {
    const auto predictor = made(name, model_of(1, 16, 2));
    for (int i = 0; i < 500; ++i) predictor->observe(0, Experts{3, 9});
    EXPECT_GT(probability_of(*predictor, 0, 3), 0.9) << name;
    EXPECT_GT(probability_of(*predictor, 0, 9), 0.9) << name;
    EXPECT_LT(probability_of(*predictor, 0, 4), 0.1) << name;
  }
}

TEST(Predictors, NoneGuessesNothing) {
  const auto predictor = made("none", model_of(2, 4, 1));
  predictor->observe(0, Experts{1});
  EXPECT_TRUE(guesses_of(*predictor, 1).empty());
}

// --- next_layer -----------------------------------------------------------------------------------------

/// Each expert of a layer is followed by one of the next layer, `stride` further; which comes first is
/// random.
class Chain {
 public:
  Chain(Predictor& predictor, std::uint32_t stride) : predictor_(predictor), stride_(stride) {}
  /// Observes layers 0 to `last`.
  void pass(std::uint32_t last) {
    auto expert = static_cast<std::uint32_t>(random_.below(kExperts));
    for (std::uint32_t layer = 0; layer <= last; ++layer) {
      predictor_.observe(layer, Experts{expert});
      expert = (expert + stride_) % kExperts;
    }
    next_ = expert;
  }
  [[nodiscard]] std::uint32_t next() const { return next_; }
  static constexpr std::uint32_t kLayers = 4;
  static constexpr std::uint32_t kExperts = 8;

 private:
  Predictor& predictor_;
  std::uint32_t stride_;
  std::uint32_t next_ = 0;
  Random random_{5, 5};
};

TEST(NextLayerPredictor, LearnsAChainAndForgetsItAfterAChange) {
  const auto predictor = made("next_layer", model_of(Chain::kLayers, Chain::kExperts, 1));
  for (const std::uint32_t stride : {3U, 5U}) {
    Chain chain(*predictor, stride);
    for (int pass = 0; pass < 1500; ++pass) chain.pass(Chain::kLayers - 1);
    for (std::uint32_t last = 0; last + 1 < Chain::kLayers; ++last) {
      chain.pass(last);
      for (std::uint32_t expert = 0; expert < Chain::kExperts; ++expert) {
        const double probability = probability_of(*predictor, last + 1, expert);
        if (expert == chain.next())
          EXPECT_GT(probability, 0.8) << "stride " << stride << ", layer " << last + 1;
        else
          EXPECT_LT(probability, 0.2) << "stride " << stride << ", layer " << last + 1;
      }
    }
  }
}

/// Two layers ahead and across the end of a pass there is only what each layer does by itself.
TEST(NextLayerPredictor, KnowsNothingOfChainsBeyondTheNextLayer) {
  const auto predictor = made("next_layer", model_of(Chain::kLayers, Chain::kExperts, 1));
  Chain chain(*predictor, 3);
  for (int pass = 0; pass < 1000; ++pass) chain.pass(Chain::kLayers - 1);
  for (const Guess& guess : guesses_of(*predictor, 0)) EXPECT_LT(guess.probability, 0.5);
  chain.pass(0);
  for (const Guess& guess : guesses_of(*predictor, 2)) EXPECT_LT(guess.probability, 0.5);
}

// --- sequence -------------------------------------------------------------------------------------------

constexpr std::uint32_t kSequenceLayers = 5;

/// Patterns that share nothing, or only their first layer.
Experts experts_of(std::uint32_t pattern, std::uint32_t layer) {
  return {pattern * 4 + layer % 3, pattern * 4 + 3};
}

TEST(SequencePredictor, RecognisesOneOfTwoPatternsByItsFirstLayer) {
  const auto predictor = made("sequence", model_of(kSequenceLayers, 8, 2));
  for (int pass = 0; pass < 20; ++pass)
    for (std::uint32_t layer = 0; layer < kSequenceLayers; ++layer)
      predictor->observe(layer, experts_of(static_cast<std::uint32_t>(pass) % 2, layer));
  for (const std::uint32_t pattern : {1U, 0U, 0U, 1U}) {
    for (std::uint32_t layer = 0; layer < kSequenceLayers; ++layer) {
      predictor->observe(layer, experts_of(pattern, layer));
      for (std::uint32_t ahead = layer + 1; ahead < kSequenceLayers; ++ahead) {
        const Experts right = experts_of(pattern, ahead);
        for (std::uint32_t expert = 0; expert < 8; ++expert) {
          const bool comes = std::ranges::find(right, expert) != right.end();
          EXPECT_NEAR(probability_of(*predictor, ahead, expert), comes ? 1 : 0, 0.01)
              << "pattern " << pattern << ", layer " << ahead << " behind layer " << layer;
        }
      }
    }
  }
}

/// Behind the last layer nothing is known of the pass to come but what the last one did.
TEST(SequencePredictor, ExpectsTheLastPassAgainWhenTheNextBegins) {
  const auto predictor = made("sequence", model_of(kSequenceLayers, 8, 2));
  for (const std::uint32_t pattern : {0U, 0U, 0U, 1U})
    for (std::uint32_t layer = 0; layer < kSequenceLayers; ++layer)
      predictor->observe(layer, experts_of(pattern, layer));
  for (const std::uint32_t expert : experts_of(1, 0)) EXPECT_EQ(probability_of(*predictor, 0, expert), 1.0);
  EXPECT_EQ(guesses_of(*predictor, 0).size(), 2U);
}

TEST(SequencePredictor, ForgetsPatternsThatDoNotComeAnyMore) {
  const auto predictor = made("sequence", model_of(2, 8, 1));
  for (int pass = 0; pass < 70; ++pass) {  // the same beginning, another end
    predictor->observe(0, Experts{0});
    predictor->observe(1, Experts{1});
  }
  for (int pass = 0; pass < 70; ++pass) {
    predictor->observe(0, Experts{0});
    predictor->observe(1, Experts{2});
  }
  predictor->observe(0, Experts{0});
  EXPECT_EQ(probability_of(*predictor, 1, 2), 1.0);
  EXPECT_EQ(probability_of(*predictor, 1, 1), 0.0);
}

}  // namespace
}  // namespace harvest::moe
