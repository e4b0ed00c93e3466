// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/predictor.hpp>

#include <cstdint>
#include <memory>

namespace harvest::moe {

[[nodiscard]] std::unique_ptr<Predictor> make_next_layer_predictor(const ModelDescription& model);
[[nodiscard]] std::uint64_t next_layer_predictor_bytes(const ModelDescription& model);
[[nodiscard]] std::unique_ptr<Predictor> make_sequence_predictor(const ModelDescription& model);

}  // namespace harvest::moe
