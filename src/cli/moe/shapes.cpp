// SPDX-License-Identifier: Apache-2.0
#include "cli/moe/shapes.hpp"

#include <fmt/format.h>

#include <array>

namespace harvest::cli {
namespace {

/// Of grouped queries: heads that ask, heads that answer, and their size.
constexpr double attention_weights(double hidden, double heads, double kv_heads, double head) {
  return hidden * heads * head + 2 * hidden * kv_heads * head + heads * head * hidden;
}

constexpr double kv_bytes(double kv_heads, double head) {
  return 2 * kv_heads * head * 2;
}

/// Latent attention of DeepSeek-V3: queries by a rank of 1,536, keys and values by one of 512 and 64 with
/// positions.
constexpr double kDeepSeekAttention =
    7168.0 * 1536 + 1536.0 * 128 * 192 + 7168.0 * 576 + 512.0 * 128 * 256 + 128.0 * 128 * 7168;

constexpr std::array<MoeShape, 7> kShapes{{
    {"mixtral-8x7b", 32, 8, 2, 4096, 14336, 0, 16, attention_weights(4096, 32, 8, 128), kv_bytes(8, 128),
     "mistralai/Mixtral-8x7B-v0.1 config.json"},
    {"phi-3.5-moe", 32, 16, 2, 4096, 6400, 0, 16, attention_weights(4096, 32, 8, 128), kv_bytes(8, 128),
     "microsoft/Phi-3.5-MoE-instruct config.json"},
    {"qwen1.5-moe-a2.7b", 24, 60, 4, 2048, 1408, 5632, 16, attention_weights(2048, 16, 16, 128),
     kv_bytes(16, 128), "Qwen/Qwen1.5-MoE-A2.7B config.json"},
    {"qwen3-30b-a3b", 48, 128, 8, 2048, 768, 0, 16, attention_weights(2048, 32, 4, 128), kv_bytes(4, 128),
     "Qwen/Qwen3-30B-A3B config.json"},
    {"qwen3-235b-a22b", 94, 128, 8, 4096, 1536, 0, 16, attention_weights(4096, 64, 4, 128), kv_bytes(4, 128),
     "Qwen/Qwen3-235B-A22B config.json"},
    {"deepseek-v3", 58, 256, 8, 7168, 2048, 2048, 8, kDeepSeekAttention, 576 * 2,
     "deepseek-ai/DeepSeek-V3 config.json, weights of 8 bits"},
    {"gpt-oss-120b", 36, 128, 4, 2880, 2880, 0, 4.25, attention_weights(2880, 64, 8, 64), kv_bytes(8, 64),
     "openai/gpt-oss-120b config.json, experts in MXFP4"},
}};

}  // namespace

std::uint64_t MoeShape::expert_bytes() const {
  return static_cast<std::uint64_t>(3.0 * hidden * intermediate * bits_per_weight / 8);
}

moe::ModelDescription MoeShape::description() const {
  moe::ModelDescription model;
  model.name = name;
  model.layers = layers;
  model.experts = experts;
  model.top_k = top_k;
  for (const char* tensor : {"gate", "up", "down"}) model.tensors.push_back({tensor, expert_bytes() / 3});
  return model;
}

Work MoeShape::attention(double tokens, double sequences, double context) const {
  const double weights = attention_weights + 3.0 * hidden * shared_intermediate;
  Work work;
  work.bytes = weights * (bits_per_weight == 8 ? 1 : 2) + sequences * context * kv_bytes_per_token;
  work.flops = 2 * tokens * weights + 4 * tokens * context * hidden;
  work.kernels = 6;  // norm and projection, rotation, attention, projection, norm and router, sum
  work.eight_bits = bits_per_weight == 8;
  return work;
}

Work MoeShape::expert(double tokens) const {
  Work work;
  work.bytes = static_cast<double>(expert_bytes());
  work.flops = 2 * tokens * 3.0 * hidden * intermediate;
  work.kernels = 1;
  work.eight_bits = bits_per_weight == 8;
  return work;
}

std::span<const MoeShape> moe_shapes() {
  return kShapes;
}

Result<MoeShape> find_moe_shape(std::string_view name) {
  std::string known;
  for (const MoeShape& shape : kShapes) {
    if (shape.name == name) return shape;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", shape.name);
  }
  return fail(ErrorCode::not_found, fmt::format("no model '{}' with experts; known are {}", name, known));
}

}  // namespace harvest::cli
