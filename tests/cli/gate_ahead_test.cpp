// SPDX-License-Identifier: Apache-2.0
#include "cli/moe/gate_ahead.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

/// The bench's stand-in for a router that is asked one layer early.
namespace harvest::cli {
namespace {

constexpr std::uint32_t kLayers = 20;
constexpr std::uint32_t kExperts = 16;
constexpr std::uint32_t kNeeded = 4;

/// A step of one sequence: layer l needs the experts from l on.
class Step {
 public:
  Step() {
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      for (std::uint32_t i = 0; i < kNeeded; ++i) experts_.push_back((layer + i) % kExperts);
      ends_.push_back(static_cast<std::uint32_t>(experts_.size()));
    }
  }
  [[nodiscard]] moe::RoutingStep view() const { return {moe::Phase::decode, sequences_, ends_, experts_}; }
  [[nodiscard]] bool needs(std::uint32_t layer, std::uint32_t expert) const {
    return (expert + kExperts - layer % kExperts) % kExperts < kNeeded;
  }

 private:
  std::vector<moe::BatchSequence> sequences_{{}};
  std::vector<std::uint32_t> ends_;
  std::vector<std::uint32_t> experts_;
};

std::vector<moe::Guess> guesses_behind(GateAhead& gate, std::uint32_t layer) {
  gate.observe(layer, {});
  std::vector<moe::Guess> guesses;
  gate.predict((layer + 1) % kLayers, guesses);
  return guesses;
}

TEST(GateAhead, NamesSoManyOfWhatTheNextLayerNeedsAndOthersForTheRest) {
  const Step step;
  GateAhead gate(kExperts, .75, 1);
  std::size_t right = 0, all = 0;
  for (int pass = 0; pass < 100; ++pass) {
    gate.enter(step.view());
    for (std::uint32_t layer = 0; layer + 1 < kLayers; ++layer) {
      std::set<std::uint32_t> named;
      for (const moe::Guess& guess : guesses_behind(gate, layer)) {
        EXPECT_EQ(guess.probability, .75);
        EXPECT_TRUE(named.insert(guess.expert).second);
        right += step.needs(layer + 1, guess.expert) ? 1 : 0;
      }
      EXPECT_EQ(named.size(), kNeeded);
      all += kNeeded;
    }
  }
  EXPECT_NEAR(static_cast<double>(right) / static_cast<double>(all), .75, .02);
}

TEST(GateAhead, KnowsNothingOfTheNextToken) {
  const Step step;
  GateAhead gate(kExperts, 1, 1);
  EXPECT_TRUE(guesses_behind(gate, 0).empty()) << "no step was entered";
  gate.enter(step.view());
  EXPECT_EQ(guesses_behind(gate, kLayers - 2).size(), kNeeded);
  EXPECT_TRUE(guesses_behind(gate, kLayers - 1).empty());
  std::vector<moe::Guess> far;
  gate.observe(3, {});
  gate.predict(5, far);
  EXPECT_TRUE(far.empty());
}

TEST(GateAhead, NamesNoWrongOneWhereALayerNeedsAll) {
  const std::vector<moe::BatchSequence> sequences{{}};
  const std::vector<std::uint32_t> ends{2, 4}, experts{0, 1, 0, 1};
  GateAhead gate(2, 0, 1);
  gate.enter({moe::Phase::decode, sequences, ends, experts});
  gate.observe(0, {});
  std::vector<moe::Guess> guesses;
  gate.predict(1, guesses);
  EXPECT_TRUE(guesses.empty());
}

}  // namespace
}  // namespace harvest::cli
