// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstdint>
#include <string>

namespace harvest::examples {

struct MixtralShape {
  std::uint32_t layers = 4;
  std::uint32_t experts = 8;
  std::uint64_t hidden = 128;
  std::uint64_t intermediate = 256;
};

/// "model.layers.0.block_sparse_moe.experts.3.w1.weight"
[[nodiscard]] std::string mixtral_expert_tensor(std::uint32_t layer, std::uint32_t expert,
                                                const std::string& matrix);

/// Writes a file with the experts and routers of a model that nobody trained, named and shaped as those of
/// Mixtral are. Errors: unavailable.
Status generate_mixtral_file(const std::string& path, const MixtralShape& shape);

}  // namespace harvest::examples
