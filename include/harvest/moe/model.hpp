// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

/// Words that everything about mixtures of experts shares.
namespace harvest::moe {

/// What a layer step is for. Prefill reads many tokens of one prompt at once and touches nearly every expert;
/// decode makes one token for each sequence and has favourites.
enum class Phase : std::uint8_t { prefill, decode };
inline constexpr std::size_t kPhases = 2;
[[nodiscard]] std::string_view to_string(Phase phase);

/// One tensor of an expert.
struct TensorSpec {
  std::string name;
  std::uint64_t bytes = 0;
};

/// Parts of an expert begin at multiples of this in a slot, as the widest loads of a GPU ask for.
inline constexpr std::uint64_t kTensorAlignment = 16;

/// The experts of a model, as far as a cache of them cares. Layers are those that have experts, counted from
/// 0.
struct ModelDescription {
  std::string name;
  std::uint32_t layers = 0;
  std::uint32_t experts = 0;        ///< of each layer
  std::uint32_t top_k = 0;          ///< that a token is sent to
  std::vector<TensorSpec> tensors;  ///< of each expert, in the order in which they lie in a slot

  /// Of one expert's tensors as they lie in a slot.
  [[nodiscard]] std::uint64_t expert_bytes() const;
  /// Of a slot: `expert_bytes`, rounded up to a multiple of 256.
  [[nodiscard]] std::uint64_t slot_bytes() const;
  /// Where a tensor begins in its expert's slot.
  [[nodiscard]] std::uint64_t tensor_offset(std::size_t tensor) const;
  /// Errors: invalid_argument (names the field, value and limit): 1 to 1,024 layers, 1 to 1,024 experts,
  /// top_k from 1 to experts, 1 to 1,024 tensors, an expert of at most 16 GiB.
  [[nodiscard]] Status validate() const;
};

}  // namespace harvest::moe
