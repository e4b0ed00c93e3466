// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cmath>

#include "policy/policies.hpp"

namespace harvest {
namespace {

using namespace policy;

template <typename Policy, typename Argument>
struct Choice {
  std::string_view name;
  std::unique_ptr<Policy> (*make)(Argument);
};

template <std::unique_ptr<EvictionPolicy> (*make_base)(std::uint64_t)>
std::unique_ptr<EvictionPolicy> make_prefix(std::uint64_t capacity_bytes) {
  return make_prefix_aware(make_base(capacity_bytes));
}

// The first of each is the default.
constexpr std::array kEviction{
    Choice<EvictionPolicy, std::uint64_t>{"adaptive_2q", make_adaptive_2q},
    Choice<EvictionPolicy, std::uint64_t>{"lru", make_lru},
    Choice<EvictionPolicy, std::uint64_t>{"fifo", make_fifo},
    Choice<EvictionPolicy, std::uint64_t>{"lfu", make_lfu},
    Choice<EvictionPolicy, std::uint64_t>{"arc", make_arc},
    Choice<EvictionPolicy, std::uint64_t>{"s3_fifo", make_s3_fifo},
    Choice<EvictionPolicy, std::uint64_t>{"lru_2", make_lru_2},
    Choice<EvictionPolicy, std::uint64_t>{"lfru", make_lfru},
    Choice<EvictionPolicy, std::uint64_t>{"gdsf", make_gdsf},
    Choice<EvictionPolicy, std::uint64_t>{"prefix_adaptive_2q", make_prefix<make_adaptive_2q>},
    Choice<EvictionPolicy, std::uint64_t>{"prefix_lru", make_prefix<make_lru>},
    Choice<EvictionPolicy, std::uint64_t>{"prefix_lru_2", make_prefix<make_lru_2>},
};

constexpr std::array kAdmission{
    Choice<AdmissionPolicy, std::uint64_t>{"always", make_always},
    Choice<AdmissionPolicy, std::uint64_t>{"second_hit", make_second_hit},
};

constexpr std::array kPlacement{
    Choice<PlacementPolicy, const PlacementWeights&>{"best_fit", make_best_fit},
    Choice<PlacementPolicy, const PlacementWeights&>{"locality", make_locality},
    Choice<PlacementPolicy, const PlacementWeights&>{"fairness", make_fairness},
    Choice<PlacementPolicy, const PlacementWeights&>{"stability", make_stability},
    Choice<PlacementPolicy, const PlacementWeights&>{"weighted", make_weighted},
};

template <std::size_t n, typename Choice>
constexpr auto names_of(const std::array<Choice, n>& choices) {
  std::array<std::string_view, n> names;
  for (std::size_t i = 0; i < n; ++i) names[i] = choices[i].name;
  return names;
}

constexpr auto kEvictionNames = names_of(kEviction);
constexpr auto kAdmissionNames = names_of(kAdmission);
constexpr auto kPlacementNames = names_of(kPlacement);

template <typename Policy, typename Argument, std::size_t n, typename Given>
Result<std::unique_ptr<Policy>> make(std::string_view kind,
                                     const std::array<Choice<Policy, Argument>, n>& choices,
                                     std::string_view name, const Given& given) {
  for (const auto& choice : choices) {
    if (choice.name == name) return choice.make(given);
  }
  return fail(ErrorCode::not_found,
              fmt::format("no {} policy '{}'; known are {}", kind, name, fmt::join(names_of(choices), ", ")));
}

}  // namespace

std::span<const std::string_view> eviction_policy_names() {
  return kEvictionNames;
}
std::span<const std::string_view> admission_policy_names() {
  return kAdmissionNames;
}
std::span<const std::string_view> placement_policy_names() {
  return kPlacementNames;
}

Result<std::unique_ptr<EvictionPolicy>> make_eviction_policy(std::string_view name,
                                                             std::uint64_t capacity_bytes) {
  return make("eviction", kEviction, name, capacity_bytes);
}

Result<std::unique_ptr<AdmissionPolicy>> make_admission_policy(std::string_view name,
                                                               std::uint64_t capacity_bytes) {
  return make("admission", kAdmission, name, capacity_bytes);
}

Result<std::unique_ptr<PlacementPolicy>> make_placement_policy(std::string_view name,
                                                               const PlacementWeights& weights) {
  for (const double weight : {weights.best_fit, weights.locality, weights.fairness, weights.stability}) {
    if (!std::isfinite(weight) || weight < 0) {
      return fail(ErrorCode::invalid_argument, fmt::format("a placement weight of {}; at least 0", weight));
    }
  }
  return make("placement", kPlacement, name, weights);
}

}  // namespace harvest
