// SPDX-License-Identifier: Apache-2.0
#include "cli/models.hpp"

#include <fmt/format.h>

#include <array>

namespace harvest::cli {
namespace {

// By the models' published configurations. Latent attention (MLA) keeps one latent of 512 and the rotary 64.
constexpr kv::KvLayer kEightHeads{.heads = 8, .head_size = 128};
constexpr std::array kModels{
    Model{"llama-3-8b", 32, kEightHeads},
    Model{"llama-3-70b", 80, kEightHeads},
    Model{"mistral-7b", 32, kEightHeads},
    Model{"qwen3-32b", 64, kEightHeads},
    Model{"qwen3-30b-a3b", 48, {.heads = 4, .head_size = 128}},
    Model{"deepseek-v3", 61, {.heads = 1, .head_size = 512 + 64, .parts = 1}},
    Model{"mistral-large-2", 88, kEightHeads},
};

}  // namespace

std::span<const Model> known_models() {
  return kModels;
}

std::string model_names() {
  std::string names;
  for (const Model& model : kModels) names += fmt::format("{}{}", names.empty() ? "" : ", ", model.name);
  return names;
}

Result<Model> find_model(std::string_view name) {
  for (const Model& model : kModels)
    if (model.name == name) return model;
  return fail(ErrorCode::not_found, fmt::format("no model is named '{}'; known are {}", name, model_names()));
}

}  // namespace harvest::cli
