// SPDX-License-Identifier: Apache-2.0
#include "mixtral_file.hpp"

#include <fmt/format.h>

#include <cstddef>
#include <deque>
#include <random>
#include <vector>

#include "safetensors.hpp"

namespace harvest::examples {
namespace {

constexpr std::uint64_t kBf16Bytes = 2;

/// Bytes in which a wrong place shows: no two tensors are alike.
std::vector<std::byte> random_bytes(std::uint64_t bytes, std::mt19937& random) {
  std::vector<std::byte> content(bytes);
  for (std::byte& each : content) each = static_cast<std::byte>(random());
  return content;
}

}  // namespace

std::string mixtral_expert_tensor(std::uint32_t layer, std::uint32_t expert, const std::string& matrix) {
  return fmt::format("model.layers.{}.block_sparse_moe.experts.{}.{}.weight", layer, expert, matrix);
}

Status generate_mixtral_file(const std::string& path, const MixtralShape& shape) {
  std::mt19937 random(1);  // the same file each time
  std::deque<std::vector<std::byte>> contents;
  Tensors tensors;
  const auto add = [&](const std::string& name, std::uint64_t rows, std::uint64_t columns) {
    contents.push_back(random_bytes(rows * columns * kBf16Bytes, random));
    tensors[name] = {.dtype = "BF16", .shape = {rows, columns}, .bytes = contents.back()};
  };
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    add(fmt::format("model.layers.{}.block_sparse_moe.gate.weight", layer), shape.experts, shape.hidden);
    for (std::uint32_t expert = 0; expert < shape.experts; ++expert) {
      add(mixtral_expert_tensor(layer, expert, "w1"), shape.intermediate, shape.hidden);
      add(mixtral_expert_tensor(layer, expert, "w2"), shape.hidden, shape.intermediate);
      add(mixtral_expert_tensor(layer, expert, "w3"), shape.intermediate, shape.hidden);
    }
  }
  return write_safetensors(path, tensors);
}

}  // namespace harvest::examples
