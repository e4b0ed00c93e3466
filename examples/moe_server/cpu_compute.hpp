// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moe_server/compute.hpp"
#include "moe_server/kernels.hpp"
#include "moe_server/model.hpp"

namespace harvest::moe_server {

/// Computes on the CPU, in the time of the simulated GPU whose stream `kernels` has. What is not an expert
/// lies in plain memory.
class CpuCompute : public Compute {
 public:
  /// Has room for `sequences` sequences of `positions` tokens.
  CpuCompute(const Model& model, Kernels& kernels, std::uint32_t sequences, std::uint32_t positions);

  void begin_step(std::span<const Row> rows) override;
  Status attend(std::uint32_t layer) override;
  Result<std::span<const Choice>> route(std::uint32_t layer) override;
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
  /// Keys or values of all heads at one position of a sequence.
  std::span<float> cached(std::vector<float>& cache, std::uint32_t layer, const Row& row,
                          std::uint32_t position);
  std::span<float> state(std::size_t row);
  std::span<float> normed(std::size_t row);
  std::span<float> result(std::size_t row, std::size_t rank);
  [[nodiscard]] std::uint64_t cached_bytes() const;

  const Model& model_;
  const Shape& shape_;
  Kernels& kernels_;
  std::uint32_t sequences_;
  std::uint32_t positions_;
  std::vector<float> keys_, values_;  // by layer, sequence, position

  std::vector<Row> rows_;
  std::vector<float> states_, normed_, queries_;  // by row
  std::vector<Choice> choices_;                   // by row, rank
  std::vector<float> results_;                    // by row, rank
  std::vector<float> logits_;
};

}  // namespace harvest::moe_server
