// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/layout.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace harvest::cli {

/// A language model, as far as its KV cache matters.
struct Model {
  std::string_view name;
  std::uint32_t layers = 0;
  kv::KvLayer layer;  ///< all are alike; bf16

  [[nodiscard]] std::uint64_t kv_bytes_per_token() const { return layers * layer.bytes_per_token(); }
};

[[nodiscard]] std::span<const Model> known_models();
/// "llama-3-8b, llama-3-70b, ..."
[[nodiscard]] std::string model_names();
/// Errors: not_found; the message names the known models.
[[nodiscard]] Result<Model> find_model(std::string_view name);

}  // namespace harvest::cli
