// SPDX-License-Identifier: Apache-2.0
#include "cli/routing_summary.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <unordered_map>

#include "cli/routing_replay.hpp"

namespace harvest::cli {
namespace {

constexpr std::array kPolicies{"lru", "lfu", "lfru", "belady"};

double ratio(double part, double whole) {
  return whole == 0 ? 0 : part / whole;
}

OverLayers over_layers(const std::vector<double>& values) {
  if (values.empty()) return {};
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  double sum = 0;
  for (const double value : values) sum += value;
  return {sum / static_cast<double>(values.size()), *least, *most};
}

/// Calls `visit(step, index, sequence)` for each sequence of a decode step that computes one token of it.
template <typename Visit>
void for_each_token(const moe::RoutingTrace& trace, Visit visit) {
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const moe::RoutingStep step = trace.step(i);
    if (step.phase() != moe::Phase::decode) continue;
    for (std::size_t s = 0; s < step.sequences().size(); ++s)
      if (step.sequences()[s].tokens == 1) visit(step, s, step.sequences()[s].id);
  }
}

void count(const moe::RoutingTrace& trace, RoutingSummary& summary) {
  std::set<std::uint32_t> sequences;
  std::array<double, moe::kPhases> distinct{};
  std::vector<std::uint32_t> experts;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const moe::RoutingStep step = trace.step(i);
    const bool decode = step.phase() == moe::Phase::decode;
    ++(decode ? summary.decode_steps : summary.prefill_steps);
    for (const moe::BatchSequence& sequence : step.sequences()) {
      sequences.insert(sequence.id);
      if (decode) summary.decode_tokens += sequence.tokens;
    }
    for (std::uint32_t layer = 0; layer < step.layers(); ++layer) {
      step.distinct_experts(layer, experts);
      distinct[decode ? 1 : 0] += static_cast<double>(experts.size());
    }
  }
  summary.sequences = sequences.size();
  const double layers = trace.shape().layers;
  summary.prefill_experts = ratio(distinct[0], static_cast<double>(summary.prefill_steps) * layers);
  summary.distinct_experts = ratio(distinct[1], static_cast<double>(summary.decode_steps) * layers);
}

OverLayers overlap(const moe::RoutingTrace& trace) {
  const moe::RoutingShape& shape = trace.shape();
  std::unordered_map<std::uint32_t, std::vector<std::uint32_t>> last;  // picks of all layers, by sequence
  std::vector<double> shared(shape.layers, 0);
  double pairs = 0;
  for_each_token(trace, [&](const moe::RoutingStep& step, std::size_t s, std::uint32_t id) {
    std::vector<std::uint32_t>& before = last[id];
    std::vector<std::uint32_t> now;
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
      const auto experts = step.experts(layer, s);
      now.insert(now.end(), experts.begin(), experts.end());
      if (before.empty()) continue;
      const auto first = before.begin() + std::ptrdiff_t{layer} * shape.top_k;
      for (const std::uint32_t expert : experts)
        shared[layer] += std::find(first, first + shape.top_k, expert) != first + shape.top_k ? 1 : 0;
    }
    pairs += before.empty() ? 0 : 1;
    before = std::move(now);
  });
  for (double& part : shared) part = ratio(part, pairs * shape.top_k);
  return over_layers(shared);
}

OverLayers next_layer(const moe::RoutingTrace& trace) {
  const moe::RoutingShape& shape = trace.shape();
  std::uint64_t tokens = 0;
  for_each_token(trace, [&](const moe::RoutingStep&, std::size_t, std::uint32_t) { ++tokens; });
  std::vector<double> right;
  const std::uint64_t learnt = tokens / 2;  // from these, what follows what
  for (std::uint32_t layer = 1; layer < shape.layers; ++layer) {
    std::vector<std::uint32_t> followed(std::size_t{shape.experts} * shape.experts, 0);
    std::vector<std::uint32_t> guesses(shape.experts, 0);
    std::uint64_t number = 0;
    double hits = 0;
    for_each_token(trace, [&](const moe::RoutingStep& step, std::size_t s, std::uint32_t) {
      const std::uint32_t before = step.experts(layer - 1, s).front();
      const std::uint32_t now = step.experts(layer, s).front();
      std::uint32_t* const row = followed.data() + std::size_t{before} * shape.experts;
      if (number++ < learnt) {
        if (++row[now] > row[guesses[before]]) guesses[before] = now;
      } else if (guesses[before] == now) {
        ++hits;
      }
    });
    right.push_back(ratio(hits, static_cast<double>(number - learnt)));
  }
  return over_layers(right);
}

OverLayers skew(const moe::RoutingTrace& trace) {
  const moe::RoutingShape& shape = trace.shape();
  std::vector<double> shares;
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    std::vector<double> picks(shape.experts, 0);
    double all = 0;
    for_each_token(trace, [&](const moe::RoutingStep& step, std::size_t s, std::uint32_t) {
      for (const std::uint32_t expert : step.experts(layer, s)) ++picks[expert];
      all += shape.top_k;
    });
    std::sort(picks.begin(), picks.end(), std::greater<>());
    double most = 0;
    for (std::uint32_t i = 0; i < std::max(1U, shape.experts / 8); ++i) most += picks[i];
    shares.push_back(ratio(most, all));
  }
  return over_layers(shares);
}

/// A sixteenth, an eighth, a quarter and a half of a layer.
std::vector<std::uint64_t> capacities_of(std::uint32_t experts) {
  std::set<std::uint64_t> capacities;
  for (const std::uint32_t part : {16U, 8U, 4U, 2U}) capacities.insert(std::max(1U, experts / part));
  return {capacities.begin(), capacities.end()};
}

/// A policy with one capacity, in the caches of all layers.
template <typename Simulate>
Result<double> hit_ratio(const std::vector<LayerAccesses>& layers, Simulate simulate) {
  PolicyRun sum;
  for (const LayerAccesses& layer : layers) {
    const Result<PolicyRun> run = simulate(layer);
    if (!run) return tl::unexpected(run.error());
    sum.accesses += run->accesses;
    sum.hits += run->hits;
  }
  return sum.hit_ratio();
}

Result<PolicyFigures> replay(std::string_view policy, const std::vector<LayerAccesses>& layers,
                             const RoutingSummary& summary) {
  PolicyFigures figures;
  figures.policy = policy;
  const auto whole_steps = [&](std::uint64_t capacity) {
    return hit_ratio(layers,
                     [&](const LayerAccesses& layer) { return simulate_steps(policy, layer, capacity); });
  };
  for (const std::uint64_t capacity : summary.capacities) {
    const auto hits = whole_steps(capacity);
    if (!hits) return tl::unexpected(hits.error());
    figures.hit_ratios.push_back(*hits);
  }
  const auto hits = whole_steps(summary.resident);
  const auto hits_one_by_one = hit_ratio(layers, [&](const LayerAccesses& layer) {
    return simulate_policy(policy, layer.experts, summary.resident);
  });
  if (!hits || !hits_one_by_one) return tl::unexpected(hits ? hits_one_by_one.error() : hits.error());
  figures.miss_ratio = 1 - *hits;
  figures.miss_ratio_one_by_one = 1 - *hits_one_by_one;
  return figures;
}

}  // namespace

Result<RoutingSummary> summarize(const moe::RoutingTrace& trace) {
  RoutingSummary summary;
  count(trace, summary);
  summary.overlap = overlap(trace);
  summary.next_layer = next_layer(trace);
  summary.skew = skew(trace);
  summary.capacities = capacities_of(trace.shape().experts);
  summary.resident = std::max<std::uint64_t>(1, trace.shape().experts * kResidentPercent / 100);
  std::vector<LayerAccesses> layers;
  for (std::uint32_t layer = 0; layer < trace.shape().layers; ++layer)
    layers.push_back(layer_accesses(trace, layer));
  Progress progress("policies", kPolicies.size());
  for (const char* policy : kPolicies) {
    progress.at(summary.policies.size());
    auto figures = replay(policy, layers, summary);
    if (!figures) return tl::unexpected(figures.error());
    summary.policies.push_back(std::move(*figures));
  }
  return summary;
}

}  // namespace harvest::cli
