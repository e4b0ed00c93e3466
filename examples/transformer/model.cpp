// SPDX-License-Identifier: Apache-2.0
#include "transformer/model.hpp"

#include <fmt/format.h>

#include <cmath>
#include <span>

#include "transformer/math.hpp"
#include "transformer/random.hpp"

namespace harvest::transformer {
namespace {

/// Evenly from -deviation * sqrt(3) to its opposite.
void draw(std::span<float> values, double deviation, Random& random) {
  for (float& value : values)
    value = static_cast<float>((random.uniform() * 2 - 1) * deviation * std::sqrt(3.0));
}

/// Weights that keep the size of what they multiply.
std::vector<float> draw_matrix(std::size_t rows, std::size_t columns, Random& random) {
  std::vector<float> matrix(rows * columns);
  draw(matrix, 1 / std::sqrt(static_cast<double>(columns)), random);
  return matrix;
}

std::vector<float> draw_vector(std::size_t size, double mean, double deviation, Random& random) {
  std::vector<float> vector(size);
  draw(vector, deviation, random);
  for (float& value : vector) value += static_cast<float>(mean);
  return vector;
}

LayerWeights draw_layer(const Shape& shape, Random& random) {
  LayerWeights layer;
  layer.attention_norm = draw_vector(shape.hidden, 1, 0.1, random);
  layer.query = draw_matrix(shape.hidden, shape.hidden, random);
  layer.key = draw_matrix(shape.kv_size(), shape.hidden, random);
  layer.value = draw_matrix(shape.kv_size(), shape.hidden, random);
  layer.output = draw_matrix(shape.hidden, shape.hidden, random);
  layer.expert_norm = draw_vector(shape.hidden, 1, 0.1, random);
  layer.router = draw_matrix(shape.experts, shape.hidden, random);
  layer.router_bias = draw_vector(shape.experts, 0, shape.skew, random);
  return layer;
}

Status check(const char* name, std::uint64_t value, std::uint64_t low, std::uint64_t high,
             std::uint64_t multiple_of = 1) {
  if (value >= low && value <= high && value % multiple_of == 0) return {};
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is {}, it must be from {} to {}{}", name, value, low, high,
                          multiple_of == 1 ? "" : fmt::format(" and a multiple of {}", multiple_of)));
}

}  // namespace

Status Shape::validate() const {
  for (const Status& status :
       {check("layers", layers, 1, 1024), check("experts", experts, 1, 1024),
        check("top_k", top_k, 1, experts), check("hidden", hidden, kLanes, 1 << 14, kLanes),
        check("intermediate", intermediate, kLanes, 1 << 16, kLanes), check("kv_heads", kv_heads, 1, 1024),
        check("heads", heads, kv_heads, 1024), check("vocabulary", vocabulary, 2, 1 << 20)})
    if (!status) return status;
  if (heads % kv_heads != 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("heads is {}, it must be a multiple of kv_heads, {}", heads, kv_heads));
  if (hidden % (heads * kLanes) != 0)
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("hidden is {}, it must be a multiple of {} x heads, {}", hidden, kLanes, heads * kLanes));
  if (!(skew >= 0 && skew <= 100))
    return fail(ErrorCode::invalid_argument, fmt::format("skew is {}, it must be from 0 to 100", skew));
  return description().validate();
}

moe::ModelDescription Shape::description() const {
  const std::uint64_t bytes = std::uint64_t{hidden} * intermediate * sizeof(float);
  return {.name = "drawn",
          .layers = layers,
          .experts = experts,
          .top_k = top_k,
          .tensors = {{"gate", bytes}, {"up", bytes}, {"down", bytes}}};
}

Model::Model(const Shape& shape, std::uint64_t seed) : shape_(shape), description_(shape.description()) {
  Random random(seed_of(seed, 0));
  embedding_ = draw_vector(std::size_t{shape.vocabulary} * shape.hidden, 0, 1, random);
  final_norm_ = draw_vector(shape.hidden, 1, 0.1, random);
  unembedding_ = draw_matrix(shape.vocabulary, shape.hidden, random);
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) layers_.push_back(draw_layer(shape, random));

  experts_.resize(all_expert_bytes() / sizeof(float));
  const std::size_t matrix = std::size_t{shape.hidden} * shape.intermediate;
  for (std::size_t at = 0; at < experts_.size(); at += matrix) {
    const bool is_down = at / matrix % 3 == 2;
    const double inputs = is_down ? shape.intermediate : shape.hidden;
    draw({experts_.data() + at, matrix}, 1 / std::sqrt(inputs), random);
  }
}

std::uint64_t Model::all_expert_bytes() const {
  return expert_bytes() * shape_.layers * shape_.experts;
}

const std::byte* Model::expert(std::uint32_t layer, std::uint32_t expert) const {
  const std::uint64_t number = std::uint64_t{layer} * shape_.experts + expert;
  return reinterpret_cast<const std::byte*>(experts_.data()) + number * expert_bytes();
}

}  // namespace harvest::transformer
