// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <harvest/moe/predictor.hpp>

#include <array>

#include "moe/predictors.hpp"

namespace harvest::moe {
namespace {

class NoPredictor final : public Predictor {
 public:
  [[nodiscard]] std::string_view name() const override { return "none"; }
  void observe(std::uint32_t, std::span<const std::uint32_t>) override {}
  void predict(std::uint32_t, std::vector<Guess>&) const override {}
};

struct Choice {
  std::string_view name;
  std::unique_ptr<Predictor> (*make)(const ModelDescription&);
  /// Of tables that are there from the start.
  std::uint64_t (*kept_bytes)(const ModelDescription&) = [](const ModelDescription&) -> std::uint64_t {
    return 0;
  };
};
constexpr std::uint64_t kMostKeptBytes = 2ULL << 30;
constexpr std::array kChoices{
    Choice{"none",
           [](const ModelDescription&) -> std::unique_ptr<Predictor> {
             return std::make_unique<NoPredictor>();
           }},
    Choice{"next_layer", make_next_layer_predictor, next_layer_predictor_bytes},
    Choice{"sequence", make_sequence_predictor},
};

constexpr auto kNames = [] {
  std::array<std::string_view, kChoices.size()> names;
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = kChoices[i].name;
  return names;
}();

}  // namespace

std::span<const std::string_view> predictor_names() {
  return kNames;
}

Result<std::unique_ptr<Predictor>> make_predictor(std::string_view name, const ModelDescription& model) {
  if (Status status = model.validate(); !status) return tl::unexpected(status.error());
  for (const Choice& choice : kChoices) {
    if (choice.name != name) continue;
    if (const std::uint64_t bytes = choice.kept_bytes(model); bytes > kMostKeptBytes)
      return fail(
          ErrorCode::out_of_memory,
          fmt::format("predictor '{}' would keep {} bytes for {} layers of {} experts, the limit is {}", name,
                      bytes, model.layers, model.experts, kMostKeptBytes));
    return choice.make(model);
  }
  return fail(ErrorCode::not_found,
              fmt::format("no predictor '{}'; known are {}", name, fmt::join(kNames, ", ")));
}

}  // namespace harvest::moe
