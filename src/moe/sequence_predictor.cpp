// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <deque>

#include "moe/predictors.hpp"

/// Remembers recent passes over the model as activation patterns, layer by layer, and compares the pass under
/// way with each. What the most similar passes needed next is the guess, each weighed by its likeness: the
/// idea of MoE-Infinity's activation-aware prefetching (arXiv 2401.14361), over passes instead of whole
/// sequences.
namespace harvest::moe {
namespace {

constexpr std::size_t kPasses = 64;
constexpr double kSharpness = 8;  // a pass that is twice as alike counts this power of two times as much

class SequencePredictor final : public Predictor {
 public:
  explicit SequencePredictor(const ModelDescription& model) : model_(model), under_way_(model.layers) {}

  [[nodiscard]] std::string_view name() const override { return "sequence"; }

  void observe(std::uint32_t layer, std::span<const std::uint32_t> experts) override {
    if (layer == 0 && layers_seen_ > 0) remember();
    std::vector<std::uint32_t>& seen = under_way_[layer];
    seen.assign(experts.begin(), experts.end());
    std::sort(seen.begin(), seen.end());
    layers_seen_ = layer + 1;
    needed_ += static_cast<double>(seen.size());
    for (Pass& pass : passes_) pass.in_common += common(pass.layers[layer], seen);
  }

  void predict(std::uint32_t layer, std::vector<Guess>& guesses) const override {
    // A layer that was observed already is asked for as of the next pass, of which nothing is known but the
    // last ones.
    const bool ahead = layer >= layers_seen_;
    odds_.assign(model_.experts, 0.0);
    double weights = 0;
    const auto count = [&](const std::vector<std::uint32_t>& experts, double weight) {
      for (const std::uint32_t e : experts) odds_[e] += weight;
      weights += weight;
    };
    for (const Pass& pass : passes_) {
      const double likeness = needed_ > 0 ? pass.in_common / needed_ : 0;
      count(pass.layers[layer], ahead ? std::pow(likeness, kSharpness) : 0);
    }
    if (!ahead) count(under_way_[layer], 1);
    if (weights <= 0) return;
    for (std::uint32_t e = 0; e < model_.experts; ++e)
      if (odds_[e] > 0) guesses.push_back({e, odds_[e] / weights});
  }

 private:
  struct Pass {
    std::vector<std::vector<std::uint32_t>> layers;  ///< sorted
    double in_common = 0;                            ///< with the pass under way
  };

  void remember() {
    Pass pass;
    if (passes_.size() == kPasses) {  // its vectors have the room
      pass = std::move(passes_.front());
      passes_.pop_front();
    }
    pass.layers.resize(model_.layers);
    for (std::uint32_t layer = 0; layer < model_.layers; ++layer)
      pass.layers[layer].assign(under_way_[layer].begin(), under_way_[layer].end());
    passes_.push_back(std::move(pass));
    for (Pass& one : passes_) one.in_common = 0;
    needed_ = 0;
    layers_seen_ = 0;
  }

  static double common(const std::vector<std::uint32_t>& a, const std::vector<std::uint32_t>& b) {
    std::size_t count = 0;
    for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
      if (a[i] == b[j]) ++count;
      const bool step_a = a[i] <= b[j];
      const bool step_b = b[j] <= a[i];
      i += step_a ? 1 : 0;
      j += step_b ? 1 : 0;
    }
    return static_cast<double>(count);
  }

  ModelDescription model_;
  std::vector<std::vector<std::uint32_t>> under_way_;
  std::uint32_t layers_seen_ = 0;
  double needed_ = 0;
  std::deque<Pass> passes_;
  mutable std::vector<double> odds_;
};

}  // namespace

std::unique_ptr<Predictor> make_sequence_predictor(const ModelDescription& model) {
  return std::make_unique<SequencePredictor>(model);
}

}  // namespace harvest::moe
