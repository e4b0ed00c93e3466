// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

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
constexpr float kDoubt = 1e-3F;                // nothing is surer than this
constexpr float kLeastGuess = 2e-3F;

/// P(column | row), row by row, for one layer.
class OddsTable {
 public:
  explicit OddsTable(std::uint32_t experts, float first) : row_(experts), odds_(row_ * experts, first) {}

  void learn(std::span<const std::uint32_t> causes, std::span<const std::uint32_t> effects) {
    for (const std::uint32_t cause : causes) {
      float* const row = odds_.data() + cause * row_;
      for (std::uint64_t e = 0; e < row_; ++e) row[e] *= 1.0F - kLearningRate;
      for (const std::uint32_t e : effects) row[e] += kLearningRate;
    }
  }
  void strongest(std::span<const std::uint32_t> causes, std::vector<float>& best) const {
    best.assign(row_, 0.0F);
    // Four rows at a time, so that what is best so far is loaded and stored a quarter as often.
    for (std::size_t i = 0; i < causes.size(); i += kRows) {
      std::array<const float*, kRows> rows;
      for (std::size_t j = 0; j < kRows; ++j) rows[j] = row_of(causes[std::min(i + j, causes.size() - 1)]);
      const auto& [a, b, c, d] = rows;
      for (std::uint64_t e = 0; e < row_; ++e)
        best[e] = std::max(best[e], std::max(std::max(a[e], b[e]), std::max(c[e], d[e])));
    }
  }

 private:
  static constexpr std::size_t kRows = 4;
  [[nodiscard]] const float* row_of(std::uint32_t cause) const { return odds_.data() + cause * row_; }

  std::uint64_t row_;
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
    if (number > 0 && number == last_layer_ + 1) {
      layer.after_layer_before.strongest(layers_[last_layer_].last, before_);
      join(layer.alone);
    }
    for (std::uint32_t e = 0; e < experts_; ++e)
      if (own_[e] > kLeastGuess) guesses.push_back({e, static_cast<double>(std::min(own_[e], 1.0F))});
  }

 private:
  struct Layer {
    OddsTable after_layer_before{0, 0};
    OddsTable after_step_before{0, 0};
    std::vector<float> alone;  ///< of each expert, whatever came before
    std::vector<std::uint32_t> last;
  };
  static float doubted(float odds) { return kDoubt + odds * (1.0F - 2.0F * kDoubt); }

  /// Joins what both tables say, in `own_`: with odds as ratios, p against 1 - p, each is a departure from
  /// the expert's ratio alone. Written with one division and no branch, so that compilers make vectors of it.
  void join(const std::vector<float>& alone) const {
    for (std::uint32_t e = 0; e < experts_; ++e) {
      const float own = doubted(own_[e]);
      const float before = doubted(before_[e]);
      const float usual = doubted(alone[e]);
      const float comes = own * before * (1.0F - usual);
      const float stays_away = (1.0F - own) * (1.0F - before) * usual;
      own_[e] = comes / (comes + stays_away);
    }
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
