// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <harvest/moe/expert_cache.hpp>

#include <algorithm>
#include <array>

/// How much an expert in a slot is worth: the policies of eviction, as pure functions.
namespace harvest::moe {
namespace {

/// Odds below this are not told apart: such an expert has not been needed for hundreds of passes.
constexpr double kLeastOdds = 1e-3;

/// That an expert is needed when its layer comes next. Experts come back: of those that the last step of a
/// layer needed, a good part is needed again, whatever their frequency.
double odds(const SlotFacts& facts) {
  constexpr double kComeback = 0.2;
  const double comeback = kComeback / (1.0 + static_cast<double>(facts.passes_since_use));
  return std::clamp(facts.frequency + comeback * (1.0 - facts.frequency), kLeastOdds, 1.0);
}

/// The layer comes after a pass; if the expert is not needed then, a pass later, and so on.
double next_use(const SlotFacts& facts) {
  return -(static_cast<double>(facts.step) + static_cast<double>(facts.layers) / odds(facts));
}

double lfru(const SlotFacts& facts) {
  return facts.frequency / (1.0 + static_cast<double>(facts.passes_since_use));
}

double lfu(const SlotFacts& facts) {
  return facts.frequency;
}

double lru(const SlotFacts& facts) {
  return static_cast<double>(facts.last_use_step);
}

/// Among experts of one layer the older use loses; a pass tells layers apart by much more.
double least_stale(const SlotFacts& facts) {
  return -static_cast<double>(facts.step) - 1e-6 * static_cast<double>(facts.step - facts.last_use_step);
}

struct Choice {
  std::string_view name;
  double (*value)(const SlotFacts&);
};
constexpr std::array kChoices{Choice{"next_use", next_use}, Choice{"lfru", lfru}, Choice{"lru", lru},
                              Choice{"lfu", lfu}, Choice{"least_stale", least_stale}};

constexpr auto kNames = [] {
  std::array<std::string_view, kChoices.size()> names;
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = kChoices[i].name;
  return names;
}();

}  // namespace

std::span<const std::string_view> expert_eviction_names() {
  return kNames;
}

Result<SlotValue> make_slot_value(std::string_view name) {
  for (const Choice& choice : kChoices)
    if (choice.name == name) return choice.value;
  return fail(ErrorCode::not_found,
              fmt::format("no eviction of experts '{}'; known are {}", name, fmt::join(kNames, ", ")));
}

}  // namespace harvest::moe
