// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "transformer/compute.hpp"
#include "transformer/kernels.hpp"
#include "transformer/kv_memory.hpp"
#include "transformer/model.hpp"

namespace harvest::transformer {

/// Computes on the CPU, in the time of the simulated GPU whose stream `kernels` has. Weights that are not an
/// expert's lie in plain memory.
class CpuCompute : public Compute {
 public:
  /// All three outlive it.
  CpuCompute(const Model& model, Kernels& kernels, KvMemory& kv);

  void begin_step(std::span<const Row> rows) override;
  Status attend(std::uint32_t layer) override;
  Result<std::span<const Choice>> route(std::uint32_t layer) override;
  Result<std::span<const Choice>> look_ahead(std::uint32_t layer) override;
  Status run_expert(std::uint32_t expert, const std::byte* weights) override;
  Status combine() override;
  Result<std::span<const float>> logits(std::span<const std::uint32_t> rows) override;

 private:
  struct Place {
    std::size_t row, rank;
  };

  void project(std::uint32_t layer, std::size_t row);
  void attend_row(std::uint32_t layer, std::size_t row);
  void route_row(std::uint32_t layer, std::size_t row);
  void look_ahead_row(std::uint32_t layer, std::size_t row);
  /// How likely each expert is for a row that came into the layer as `normed`.
  [[nodiscard]] std::vector<float> shares_of_experts(std::uint32_t layer,
                                                     std::span<const float> normed) const;
  std::span<float> state(std::size_t row);
  std::span<float> normed(std::size_t row);
  std::span<float> result(std::size_t row, std::size_t rank);
  [[nodiscard]] std::uint64_t seen_bytes() const;

  const Model& model_;
  const Shape& shape_;
  Kernels& kernels_;
  KvMemory& kv_;

  std::vector<Row> rows_;
  std::vector<float> states_, normed_, queries_;  // by row
  std::vector<Choice> choices_;                   // by row, rank
  std::vector<Choice> likely_;                    // by decoding row, rank
  std::vector<float> results_;                    // by row, rank
  std::vector<float> logits_;
};

}  // namespace harvest::transformer
