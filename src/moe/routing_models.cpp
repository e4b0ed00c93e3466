// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/moe/routing.hpp>

#include <algorithm>
#include <array>

namespace harvest::moe {
namespace {

constexpr RoutingHabits kFine{
    .linked = .2,
    .first_spread = 70,
    .second_spread = 16,
    .last_spread = 6.5,
    .common = .3,
    .subject_drift = .24,
    .popularity_drift = .01,
};

constexpr RoutingHabits kCoarse{
    .linked = .22,
    .first_spread = 8,
    .second_spread = 8,
    .last_spread = 8,
    .common = .3,
    .subject_drift = .03,
    .popularity_drift = .01,
};

constexpr std::array kModels{
    RoutingModel{"mixtral-8x7b", {32, 8, 2}, kCoarse},     RoutingModel{"phi-3.5-moe", {32, 16, 2}, kCoarse},
    RoutingModel{"qwen1.5-moe-a2.7b", {24, 60, 4}, kFine}, RoutingModel{"qwen3-30b-a3b", {48, 128, 8}, kFine},
    RoutingModel{"qwen3-235b-a22b", {94, 128, 8}, kFine},  RoutingModel{"deepseek-v3", {58, 256, 8}, kFine},
    RoutingModel{"gpt-oss-120b", {36, 128, 4}, kFine},
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
