// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/moe/routing.hpp>

#include <algorithm>
#include <array>

namespace harvest::moe {
namespace {

/// Of 128 experts, 8 for a token. A random search over `*_spread` and `subject_drift` brought the largest
/// distance to 15 published figures of 256 tokens (docs/routing.md has them, and what came out) to about .02;
/// rounded since. `linked` and `common` hardly move these figures: one sequence does not tell them from
/// favourites. They are moderate, so that layers tell something of the next and sequences share something.
constexpr RoutingHabits kOf128{
    .linked = .2,
    .first_spread = 90,
    .second_spread = 15.5,
    .last_spread = 6.25,
    .common = .6,
    .subject_drift = .4,
    .popularity_drift = .02,
};

/// Of 8 experts, 2 for a token: by hand, to the published ranges of overlap and of what a layer tells of the
/// next; of the other habits as above.
constexpr RoutingHabits kOf8{
    .linked = .18,
    .first_spread = 6.5,
    .second_spread = 6.25,
    .last_spread = 4.25,
    .common = .6,
    .subject_drift = .4,
    .popularity_drift = .02,
};

/// For want of published figures: favourites that take the same part of the experts.
constexpr RoutingHabits scaled(RoutingHabits habits, double factor) {
  habits.first_spread *= factor;
  habits.second_spread *= factor;
  habits.last_spread *= factor;
  return habits;
}

constexpr std::array kModels{
    RoutingModel{"mixtral-8x7b", {32, 8, 2}, kOf8},
    RoutingModel{"phi-3.5-moe", {32, 16, 2}, scaled(kOf8, 2)},
    RoutingModel{"qwen1.5-moe-a2.7b", {24, 60, 4}, scaled(kOf128, .5)},
    RoutingModel{"qwen3-30b-a3b", {48, 128, 8}, kOf128},
    RoutingModel{"qwen3-235b-a22b", {94, 128, 8}, kOf128},
    RoutingModel{"deepseek-v3", {58, 256, 8}, scaled(kOf128, 2)},
    RoutingModel{"gpt-oss-120b", {36, 128, 4}, kOf128},
};

}  // namespace

std::span<const RoutingModel> routing_models() {
  return kModels;
}

Result<RoutingModel> find_routing_model(std::string_view name) {
  const auto found = std::find_if(kModels.begin(), kModels.end(),
                                  [&](const RoutingModel& model) { return model.name == name; });
  if (found != kModels.end()) return *found;
  std::string known;
  for (const RoutingModel& model : kModels)
    known += fmt::format("{}{}", known.empty() ? "" : ", ", model.name);
  return fail(ErrorCode::not_found, fmt::format("no model is named '{}'; known are {}", name, known));
}

}  // namespace harvest::moe
