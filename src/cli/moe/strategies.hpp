// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/machine.hpp>
#include <harvest/moe/expert_cache.hpp>
#include <harvest/moe/routing.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "cli/moe/shapes.hpp"
#include "cli/output.hpp"
#include "cli/owners.hpp"
#include "cli/roofline.hpp"

/// A server of one model, whose experts do not all fit, under several strategies; in virtual time.
namespace harvest::cli {

/// Steps of a model; the view is valid until the next call.
using RoutingSource = std::function<moe::RoutingStep()>;

struct MoeRun {
  Machine machine;
  Card card;
  MoeShape shape;
  double local_fraction = 0.5;        ///< of all experts that there are slots for on the consumer
  std::optional<moe::Phase> phase{};  ///< steps of others are skipped
  double context = 1024;              ///< tokens that a sequence looks back on
  std::uint64_t warm_up = 64;         ///< steps that are not counted
  std::uint64_t steps = 64;
  std::string predictor;   ///< one of `moe::predictor_names()`, or `kGateAhead`
  double gate_recall = 0;  ///< of `kGateAhead`
  std::string eviction;
  OwnerActivity activity = OwnerActivity::none;
  std::uint64_t seed = 1;
  /// The same steps each time that it is asked for.
  std::function<RoutingSource()> routing;
};

/// What `ExpertCacheStats` tells of the steps that count.
struct StallFigures {
  TimeNs exposed_ns = 0;
  TimeNs hidden_ns = 0;
  TimeNs unseen_ns = 0;
};

struct MoeFigures {
  std::string strategy;
  std::string absent{};  ///< why there are no figures
  double tokens_per_s = 0;
  std::array<double, kTiers> hit{};  ///< shares of the experts that steps needed
  double exposed_stall = 0;          ///< share of the time in which the GPU waited for experts
  double bound_tokens_per_s = 0;     ///< of a roofline with the same information; 0: not known
  std::uint64_t bytes_moved = 0;     ///< to the consumer
  moe::ExpertCacheStats cache{};     ///< of strategies with one
  StallFigures stall{};
  OwnerFigures owners{};
};

[[nodiscard]] std::span<const std::string_view> moe_strategy_names();

/// Errors: not_found (strategy), and what the backend and caches answer.
[[nodiscard]] Result<MoeFigures> run_strategy(const MoeRun& run, std::string_view strategy,
                                              Progress& progress);

// --- for the strategies ------------------------------------------------------------------------------------

/// What one layer of one step computes.
struct LayerWork {
  TimeNs attention_ns = 0;
  std::vector<std::pair<std::uint32_t, TimeNs>> experts;  ///< each once
  [[nodiscard]] TimeNs experts_ns() const;
};

/// Works out each layer of a step.
class StepWork {
 public:
  StepWork(const MoeRun& run) : run_(run) {}
  /// Valid until the next call.
  const LayerWork& layer(const moe::RoutingStep& step, std::uint32_t layer);
  [[nodiscard]] static double tokens_of(const moe::RoutingStep& step);

 private:
  const MoeRun& run_;
  LayerWork work_;
  std::vector<std::uint32_t> distinct_;
  std::vector<std::uint32_t> count_;
};

[[nodiscard]] Result<MoeFigures> run_with_cache(const MoeRun& run, bool with_peers, Progress& progress);
[[nodiscard]] Result<MoeFigures> run_static_peer(const MoeRun& run, Progress& progress);
[[nodiscard]] Result<MoeFigures> run_all_local(const MoeRun& run);
[[nodiscard]] Result<MoeFigures> run_expert_parallel(const MoeRun& run);

}  // namespace harvest::cli
