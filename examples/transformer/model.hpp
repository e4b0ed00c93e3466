// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/model.hpp>
#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

/// A mixture-of-experts transformer that nobody trained: its arithmetic is real, its weights are drawn.
namespace harvest::transformer {

/// All in float32. Attention has rotary positions, and `kv_heads` that are shared by `heads`.
struct Shape {
  std::uint32_t layers = 12;
  std::uint32_t experts = 16;  ///< of each layer
  std::uint32_t top_k = 2;     ///< that a token is sent to
  std::uint32_t hidden = 256;
  std::uint32_t intermediate = 512;  ///< between an expert's matrices
  std::uint32_t heads = 8;
  std::uint32_t kv_heads = 4;
  std::uint32_t vocabulary = 1024;
  double skew = 1;  ///< how much routers prefer some experts: the deviation of what they add to their scores

  [[nodiscard]] std::uint32_t head_size() const { return hidden / heads; }
  [[nodiscard]] std::uint32_t kv_size() const { return kv_heads * head_size(); }
  /// Errors: invalid_argument (names the field, value and limit).
  [[nodiscard]] Status validate() const;
  /// As Harvest sees it: experts of the tensors gate, up and down.
  [[nodiscard]] moe::ModelDescription description() const;
};

/// What every token needs of a layer. Matrices are stored by rows, a row for each output.
struct LayerWeights {
  std::vector<float> attention_norm;
  std::vector<float> query, key, value, output;
  std::vector<float> expert_norm;
  std::vector<float> router, router_bias;
};

class Model {
 public:
  /// The same weights for the same shape and seed, on every machine. Requires: the shape is valid.
  Model(const Shape& shape, std::uint64_t seed);

  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] const moe::ModelDescription& description() const { return description_; }
  [[nodiscard]] const std::vector<float>& embedding() const { return embedding_; }
  [[nodiscard]] const LayerWeights& layer(std::uint32_t layer) const { return layers_[layer]; }
  [[nodiscard]] const std::vector<float>& final_norm() const { return final_norm_; }
  [[nodiscard]] const std::vector<float>& unembedding() const { return unembedding_; }

  /// An expert's weights in host memory, as they lie in a slot: gate, up, down.
  [[nodiscard]] const std::byte* expert(std::uint32_t layer, std::uint32_t expert) const;
  [[nodiscard]] std::uint64_t expert_bytes() const { return description_.expert_bytes(); }
  [[nodiscard]] std::uint64_t all_expert_bytes() const;

 private:
  Shape shape_;
  moe::ModelDescription description_;
  std::vector<float> embedding_, final_norm_, unembedding_;
  std::vector<LayerWeights> layers_;
  std::vector<float> experts_;
};

}  // namespace harvest::transformer
