// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "transformer/compute.hpp"
#include "transformer/experts.hpp"
#include "transformer/kv_memory.hpp"
#include "transformer/model.hpp"
#include "transformer/requests.hpp"

namespace harvest::transformer {

struct ServerLimits {
  std::uint32_t sequences = 8;  ///< served at once
  std::uint32_t tokens_per_step =
      32;  ///< decoding sequences first, the rest is for prompts; at least `sequences`
};

struct Sampling {
  double temperature = 0;  ///< 0: always the likeliest token
  std::uint64_t seed = 0;
};

struct ServerStats {
  std::uint64_t steps = 0;
  std::uint64_t mixed_steps = 0;    ///< with prompts and decoding sequences
  std::uint64_t prompt_tokens = 0;  ///< computed, what had to be computed again included
  std::uint64_t new_tokens = 0;
  std::uint64_t missing_tokens = 0;  ///< whose keys and values turned out not to be there
  std::uint64_t redone = 0;          ///< steps that were begun again
  std::uint64_t unconfirmed = 0;     ///< of those, because `confirm` said so when all was computed
};

/// Continuous batching: in each step every sequence under way takes part, with one token if it decodes, with
/// a piece of its prompt if it does not yet. Who is done leaves, and the next in the queue takes the place,
/// as soon as there is room for its keys and values.
class Server {
 public:
  /// All four outlive it. Requires: limits in which each sequence has a token.
  Server(const Model& model, Compute& compute, Experts& experts, KvMemory& kv, ServerLimits limits,
         Sampling sampling);

  /// Requires: a prompt of at least one token, each of the vocabulary; at least one new token.
  void submit(Request request) { queue_.push_back(std::move(request)); }
  [[nodiscard]] bool idle() const;

  /// One step of all sequences. Results are taken over only when `Experts::confirm` vouches for the weights,
  /// until then the step is done again; and of each sequence only when `KvMemory::confirm` has nothing to
  /// say. Errors: what went wrong the last of many times.
  Status step();

  /// Those that are complete, as they became it.
  [[nodiscard]] const std::vector<Answer>& answers() const { return answers_; }
  [[nodiscard]] const ServerStats& stats() const { return stats_; }

 private:
  struct Sequence {
    Answer answer;
    std::vector<std::uint32_t> tokens;  ///< prompt and answer
    std::uint32_t prompt_tokens = 0;
    std::uint32_t new_tokens = 0;        ///< that are asked for
    std::uint32_t computed = 0;          ///< tokens whose keys and values are there
    std::vector<std::uint32_t> missing;  ///< but for these, in order
    std::uint32_t planned = 0;           ///< tokens in the step under way
    [[nodiscard]] std::uint32_t to_compute() const;
    /// The i-th position that is to be computed.
    [[nodiscard]] std::uint32_t next(std::uint32_t i) const;
    [[nodiscard]] bool decodes() const { return missing.empty() && computed >= prompt_tokens; }
    void advance();
  };

  Status admit();
  Status enter(std::uint32_t place, bool& entered);
  void plan();
  Status compute_step();
  Result<std::span<const float>> forward();
  Result<std::span<const Choice>> look_ahead(std::uint32_t layer);
  Status run_experts(std::uint32_t layer, std::span<const Choice> choices);
  Status take_over(std::span<const float> logits);
  void note_missing();
  void add_token(std::uint32_t place, std::span<const float> scores);
  [[nodiscard]] std::uint32_t choose(const Sequence& sequence, std::span<const float> scores) const;

  const Model& model_;
  Compute& compute_;
  Experts& experts_;
  KvMemory& kv_;
  ServerLimits limits_;
  Sampling sampling_;

  std::deque<Request> queue_;
  std::vector<std::optional<Sequence>> places_;
  std::vector<Row> rows_;              // of the step under way
  std::vector<std::uint32_t> ends_;    // rows that a token is chosen from
  std::vector<std::uint32_t> end_of_;  // and whose place that is
  std::vector<Answer> answers_;
  ServerStats stats_;
};

}  // namespace harvest::transformer
