// SPDX-License-Identifier: Apache-2.0
#include "cli/models.hpp"

#include <fmt/format.h>

#include <array>

namespace harvest::cli {
namespace {

// Bytes a token = layers x 2 (K, V) x KV heads x head size x 2 (bf16), by the models' published
// configurations; with latent attention (MLA) layers x (latent + rotary) x 2.
constexpr std::array kModels{
    Model{"llama-3-8b", 131'072, "32 layers x 2 x 8 heads x 128 x 2 B"},
    Model{"llama-3-70b", 327'680, "80 layers x 2 x 8 heads x 128 x 2 B"},
    Model{"mistral-7b", 131'072, "32 layers x 2 x 8 heads x 128 x 2 B"},
    Model{"qwen3-32b", 262'144, "64 layers x 2 x 8 heads x 128 x 2 B"},
    Model{"qwen3-30b-a3b", 98'304, "48 layers x 2 x 4 heads x 128 x 2 B"},
    Model{"deepseek-v3", 70'272, "61 layers x (512 + 64) x 2 B"},
    Model{"mistral-large-2", 360'448, "88 layers x 2 x 8 heads x 128 x 2 B"},
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
