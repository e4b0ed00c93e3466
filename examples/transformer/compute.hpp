// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/model.hpp>
#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

/// What computes. A server on GPUs implements this with kernels on the stream that its experts are ordered
/// in: every call gives work to that stream and returns, but for the two that say that they wait.
namespace harvest::transformer {

/// One token of a step.
struct Row {
  std::uint32_t sequence = 0;  ///< whose keys and values it sees, and adds to
  std::uint32_t position = 0;  ///< in its sequence, from 0
  std::uint32_t token = 0;
  moe::Phase phase = moe::Phase::decode;
};

/// An expert that a row is sent to, and its share of the result.
struct Choice {
  std::uint32_t expert = 0;
  float weight = 0;
};

/// A step goes through its layers in order: begin_step, for each layer attend, route, run_expert for each
/// expert that is in a choice, combine, and at the end logits. What a row computes depends on its own
/// sequence alone, so a step that went wrong is simply begun again.
class Compute {
 public:
  Compute() = default;
  Compute(const Compute&) = delete;
  Compute& operator=(const Compute&) = delete;
  virtual ~Compute() = default;

  /// Forgets what is left of the step before. Rows of one sequence have rising positions, and what is before
  /// each was computed before or is in the step.
  virtual void begin_step(std::span<const Row> rows) = 0;

  /// Adds attention's result to each row; keeps keys and values.
  virtual Status attend(std::uint32_t layer) = 0;

  /// Waits, as the host has to ask for the experts. Answers `top_k` choices for each row, the largest share
  /// first.
  virtual Result<std::span<const Choice>> route(std::uint32_t layer) = 0;

  /// Waits too. Applies a layer's router to what decoding rows are now, before the layers in between: answers
  /// `top_k` choices for each of them, whose weights are how likely they are. Later calls compute what they
  /// would have computed without it.
  virtual Result<std::span<const Choice>> look_ahead(std::uint32_t layer) = 0;

  /// Runs one expert on the rows that chose it. `weights` are read when the stream comes to it.
  virtual Status run_expert(std::uint32_t expert, const std::byte* weights) = 0;

  /// Adds the experts' results to each row, always in the order of its choices, whoever was ready first.
  virtual Status combine() = 0;

  /// Waits. Answers the scores of all tokens for each of these rows.
  virtual Result<std::span<const float>> logits(std::span<const std::uint32_t> rows) = 0;
};

}  // namespace harvest::transformer
