// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "moe/predictors.hpp"

/// Counts which experts of a layer were needed after which of the layer before, and after which of its own
/// step before: two tables of odds for each layer, kept as moving averages, so that they forget slowly.
///
/// For an expert e, each expert a that came tells P(e | a). The experts of a step come together, so they
/// repeat each other's evidence: the strongest of them speaks for the step, and the two tables' answers are
/// joined as if they were independent departures from the expert's own odds.
namespace harvest::moe {
namespace {

constexpr float kLearningRate = 1.0F / 64.0F;  // half of what was learnt is forgotten in 44 steps
constexpr float kLeastOdds = 1e-3F;

/// P(column | row), row by row, for one layer.
class OddsTable {
 public:
  explicit OddsTable(std::uint32_t experts, float first)
      : experts_(experts), odds_(static_cast<std::size_t>(experts) * experts, first) {}

  void learn(std::span<const std::uint32_t> causes, std::span<const std::uint32_t> effects) {
    for (const std::uint32_t cause : causes) {
      float* const row = &odds_[static_cast<std::size_t>(cause) * experts_];
      for (std::uint32_t e = 0; e < experts_; ++e) row[e] -= kLearningRate * row[e];
      for (const std::uint32_t e : effects) row[e] += kLearningRate;
    }
  }
  void strongest(std::span<const std::uint32_t> causes, std::vector<float>& best) const {
    best.assign(experts_, 0.0F);
    for (const std::uint32_t cause : causes) {
      const float* const row = &odds_[static_cast<std::size_t>(cause) * experts_];
      for (std::uint32_t e = 0; e < experts_; ++e) best[e] = std::max(best[e], row[e]);
    }
  }

 private:
  std::uint32_t experts_;
  std::vector<float> odds_;
};

class NextLayerPredictor final : public Predictor {
 public:
  explicit NextLayerPredictor(const ModelDescription& model)
      : experts_(model.experts), layers_(model.layers) {
    const float first = static_cast<float>(model.top_k) / static_cast<float>(model.experts);
    for (Layer& layer : layers_) {
      layer.after_layer_before = OddsTable(experts_, first);
      layer.after_step_before = OddsTable(experts_, first);
      layer.alone.assign(experts_, first);
    }
  }

  [[nodiscard]] std::string_view name() const override { return "next_layer"; }

  void observe(std::uint32_t number, std::span<const std::uint32_t> experts) override {
    Layer& layer = layers_[number];
    if (number > 0 && number == last_layer_ + 1)
      layer.after_layer_before.learn(layers_[last_layer_].last, experts);
    layer.after_step_before.learn(layer.last, experts);
    for (float& odds : layer.alone) odds -= kLearningRate * odds;
    for (const std::uint32_t e : experts) layer.alone[e] += kLearningRate;
    layer.last.assign(experts.begin(), experts.end());
    last_layer_ = number;
  }

  void predict(std::uint32_t number, std::vector<Guess>& guesses) const override {
    const Layer& layer = layers_[number];
    layer.after_step_before.strongest(layer.last, own_);
    const bool follows = number > 0 && number == last_layer_ + 1;
    if (follows) layer.after_layer_before.strongest(layers_[last_layer_].last, before_);
    for (std::uint32_t e = 0; e < experts_; ++e) {
      const double alone = std::max(layer.alone[e], kLeastOdds);
      double ratio = against(own_[e]);
      if (follows) ratio *= against(before_[e]) / against(static_cast<float>(alone));
      const double probability = ratio / (1.0 + ratio);
      if (probability > kLeastOdds) guesses.push_back({e, probability});
    }
  }

 private:
  struct Layer {
    OddsTable after_layer_before{0, 0};
    OddsTable after_step_before{0, 0};
    std::vector<float> alone;  ///< of each expert, whatever came before
    std::vector<std::uint32_t> last;
  };
  /// Odds as a ratio, "p against 1 - p".
  static double against(float probability) {
    const double bounded = std::clamp(probability, kLeastOdds, 1.0F - kLeastOdds);
    return bounded / (1.0 - bounded);
  }

  std::uint32_t experts_;
  std::uint32_t last_layer_ = 0;
  std::vector<Layer> layers_;
  mutable std::vector<float> own_;
  mutable std::vector<float> before_;
};

}  // namespace

/// Of its tables of odds, two for each layer.
std::uint64_t next_layer_predictor_bytes(const ModelDescription& model) {
  return 2 * sizeof(float) * model.layers * model.experts * model.experts;
}

std::unique_ptr<Predictor> make_next_layer_predictor(const ModelDescription& model) {
  return std::make_unique<NextLayerPredictor>(model);
}

}  // namespace harvest::moe
