// SPDX-License-Identifier: Apache-2.0
#include "cli/moe/strategies.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

/// The strategies that move no expert while they run, and what all share.
namespace harvest::cli {
namespace {

constexpr std::array<std::string_view, 5> kNames{"all_local", "host", "static_peer", "expert_parallel",
                                                 "harvest"};

/// Of a card's memory for all but experts: attention, KV cache, activations.
constexpr std::uint64_t kOtherBytes = 8ULL << 30;
constexpr TimeNs kAllToAllNs = 12'000;  // estimate: latency of one exchange within a machine

std::uint64_t gpus_of(const Machine& machine) {
  return machine.devices.size() - 1;
}

}  // namespace

std::span<const std::string_view> moe_strategy_names() {
  return kNames;
}

TimeNs LayerWork::experts_ns() const {
  TimeNs sum = 0;
  for (const auto& [expert, ns] : experts) sum += ns;
  return sum;
}

double StepWork::tokens_of(const moe::RoutingStep& step) {
  double tokens = 0;
  for (const moe::BatchSequence& sequence : step.sequences()) tokens += sequence.tokens;
  return tokens;
}

const LayerWork& StepWork::layer(const moe::RoutingStep& step, std::uint32_t layer) {
  const double tokens = tokens_of(step);
  work_.attention_ns = run_.card.time_ns(
      run_.shape.attention(tokens, static_cast<double>(step.sequences().size()), run_.context));
  count_.assign(run_.shape.experts, 0);
  distinct_.clear();
  for (const std::uint32_t expert : step.experts(layer))
    if (count_[expert]++ == 0) distinct_.push_back(expert);
  // A recording names what a sequence needed, not how often: its tokens spread over that evenly.
  const double named = static_cast<double>(step.experts(layer).size());
  const double picks = tokens * run_.shape.top_k;
  work_.experts.clear();
  for (const std::uint32_t expert : distinct_)
    work_.experts.emplace_back(expert, run_.card.time_ns(run_.shape.expert(picks * count_[expert] / named)));
  return work_;
}

namespace {

/// Calls `visit(step)` for each step that counts.
template <typename Visit>
void for_each_step(const MoeRun& run, Visit visit) {
  const RoutingSource source = run.routing();
  for (std::uint64_t done = 0; done < run.warm_up + run.steps;) {
    const moe::RoutingStep step = source();
    if (run.phase && step.phase() != *run.phase) continue;
    if (done >= run.warm_up) visit(step);
    ++done;
  }
}

}  // namespace

Result<MoeFigures> run_all_local(const MoeRun& run) {
  MoeFigures figures;
  figures.strategy = "all_local";
  const std::uint64_t memory = run.machine.devices[0].info.total_bytes;
  if (run.shape.pool_bytes() + kOtherBytes > memory) {
    figures.absent = fmt::format("{} of experts do not fit on a GPU of {}",
                                 format_bytes(run.shape.pool_bytes()), format_bytes(memory));
    return figures;
  }
  StepWork work(run);
  double tokens = 0;
  TimeNs ns = 0;
  for_each_step(run, [&](const moe::RoutingStep& step) {
    tokens += StepWork::tokens_of(step);
    for (std::uint32_t layer = 0; layer < run.shape.layers; ++layer) {
      const LayerWork& one = work.layer(step, layer);
      ns += one.attention_ns + one.experts_ns();
    }
  });
  figures.tokens_per_s = figures.bound_tokens_per_s = tokens * 1e9 / static_cast<double>(ns);
  figures.hit[static_cast<std::size_t>(Tier::local)] = 1;
  return figures;
}

/// Experts are split over all GPUs, which lend their arithmetic as well as their memory; attention is the
/// consumer's. Each layer sends each token to the GPUs of its experts and collects the results.
Result<MoeFigures> run_expert_parallel(const MoeRun& run) {
  MoeFigures figures;
  figures.strategy = "expert_parallel";
  const std::uint64_t gpus = gpus_of(run.machine);
  const std::uint64_t memory = run.machine.devices[0].info.total_bytes;
  if (run.shape.pool_bytes() / gpus + kOtherBytes > memory) {
    figures.absent = fmt::format("{} of experts do not fit on {} GPUs of {}",
                                 format_bytes(run.shape.pool_bytes()), gpus, format_bytes(memory));
    return figures;
  }
  const MachineLink* const link = run.machine.find_link(0, 1);
  if (link == nullptr) {
    figures.absent = "the GPUs do not reach each other";
    return figures;
  }
  StepWork work(run);
  double tokens = 0;
  double ns = 0;
  std::vector<TimeNs> busy(gpus);
  for_each_step(run, [&](const moe::RoutingStep& step) {
    const double step_tokens = StepWork::tokens_of(step);
    tokens += step_tokens;
    const double away = static_cast<double>(gpus - 1) / static_cast<double>(gpus);
    const double bytes = step_tokens * run.shape.top_k * away * run.shape.hidden * 2;
    const double exchange_ns =
        static_cast<double>(kAllToAllNs) + bytes * 1e9 / link->info.bandwidth_bytes_per_s;
    for (std::uint32_t layer = 0; layer < run.shape.layers; ++layer) {
      const LayerWork& one = work.layer(step, layer);
      std::fill(busy.begin(), busy.end(), 0);
      for (const auto& [expert, expert_ns] : one.experts)
        busy[expert * gpus / run.shape.experts] += expert_ns;
      ns += static_cast<double>(one.attention_ns + *std::max_element(busy.begin(), busy.end())) +
            2 * exchange_ns;
    }
  });
  figures.tokens_per_s = figures.bound_tokens_per_s = tokens * 1e9 / ns;
  return figures;
}

namespace {

/// Why the experts that are to be local cannot be; empty: they can.
std::string too_large(const MoeRun& run) {
  const std::uint64_t memory = run.machine.devices[0].info.total_bytes;
  const auto local =
      static_cast<std::uint64_t>(run.local_fraction * static_cast<double>(run.shape.pool_bytes()));
  if (local + kOtherBytes <= memory) return {};
  return fmt::format("{:g} of the experts, {}, do not fit on a GPU of {}", run.local_fraction,
                     format_bytes(local), format_bytes(memory));
}

}  // namespace

Result<MoeFigures> run_strategy(const MoeRun& run, std::string_view strategy, Progress& progress) {
  if (strategy == "all_local") return run_all_local(run);
  if (strategy == "expert_parallel") return run_expert_parallel(run);
  if (std::ranges::find(kNames, strategy) == kNames.end())
    return fail(ErrorCode::not_found,
                fmt::format("no strategy '{}'; known are {}", strategy, fmt::join(kNames, ", ")));
  if (const std::string why = too_large(run); !why.empty()) {
    MoeFigures figures;
    figures.strategy = strategy;
    figures.absent = why;
    return figures;
  }
  if (strategy == "static_peer") return run_static_peer(run, progress);
  return run_with_cache(run, strategy == "harvest", progress);
}

}  // namespace harvest::cli
