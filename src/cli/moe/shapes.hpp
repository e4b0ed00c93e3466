// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/model.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "cli/roofline.hpp"

/// Mixtures of experts by name, as far as a benchmark must know them.
namespace harvest::cli {

/// A model's shape. Layers are those with experts; dense layers before them are left out.
struct MoeShape {
  std::string_view name;
  std::uint32_t layers = 0;
  std::uint32_t experts = 0;
  std::uint32_t top_k = 0;
  std::uint32_t hidden = 0;
  std::uint32_t intermediate = 0;         ///< of one expert
  std::uint32_t shared_intermediate = 0;  ///< of what every token goes to beside its experts
  double bits_per_weight = 16;            ///< of experts
  double attention_weights = 0;           ///< of a layer, of 8 bits where experts are, else of 16
  double kv_bytes_per_token = 0;          ///< of a layer
  std::string_view source;

  [[nodiscard]] std::uint64_t expert_bytes() const;
  [[nodiscard]] std::uint64_t pool_bytes() const { return expert_bytes() * layers * experts; }
  [[nodiscard]] moe::ModelDescription description() const;

  /// Attention, router and shared experts of one layer, for `tokens` of `sequences` that are `context` long.
  [[nodiscard]] Work attention(double tokens, double sequences, double context) const;
  /// One expert on `tokens` tokens.
  [[nodiscard]] Work expert(double tokens) const;
};

[[nodiscard]] std::span<const MoeShape> moe_shapes();
/// Errors: not_found; the message names the known models.
[[nodiscard]] Result<MoeShape> find_moe_shape(std::string_view name);

}  // namespace harvest::cli
