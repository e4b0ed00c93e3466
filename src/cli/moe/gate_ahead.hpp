// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/predictor.hpp>
#include <harvest/moe/routing.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/random.hpp"

/// A predictor of the caller's own: the next layer's router, applied to what goes into this layer.
namespace harvest::cli {

/// Of the experts that routers really name one layer early: Fate, arXiv 2502.12224, section 3.
inline constexpr std::string_view kGateAhead = "gate_ahead";
inline constexpr double kGateRecall = .788;

/// SIMULATED: there is no model here whose routers could be asked, so the step itself answers, and some of it
/// is made wrong. Of the experts that the next layer needs each is named with probability `recall`, and for
/// each that is not, one that the layer does not need, if there is such a one. All are as likely: `recall`.
/// Behind the last layer nothing is known, since the next token is not.
class GateAhead final : public moe::Predictor {
 public:
  /// Of layers of `experts` experts each. Requires: 0 <= `recall` <= 1.
  GateAhead(std::uint32_t experts, double recall, std::uint64_t seed)
      : experts_(experts), recall_(recall), random_(seed) {}

  /// What is observed from now on belongs to this step, which lives until the next call.
  void enter(const moe::RoutingStep& step) { step_ = step; }

  [[nodiscard]] std::string_view name() const override { return kGateAhead; }
  void observe(std::uint32_t layer, std::span<const std::uint32_t> experts) override;
  void predict(std::uint32_t layer, std::vector<moe::Guess>& guesses) const override;

 private:
  std::uint32_t experts_;
  double recall_;
  Random random_;
  std::optional<moe::RoutingStep> step_;
  std::uint32_t layer_ = 0;  ///< that is named
  std::vector<std::uint32_t> named_;
  std::vector<std::uint32_t> needed_;
};

}  // namespace harvest::cli
