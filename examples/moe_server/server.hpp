// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "moe_server/compute.hpp"
#include "moe_server/experts.hpp"
#include "moe_server/model.hpp"

namespace harvest::moe_server {

struct Request {
  std::uint32_t id = 0;
  TimeNs arrival_ns = 0;
  std::vector<std::uint32_t> prompt;
  std::uint32_t new_tokens = 0;  ///< how many it asks for
};

struct Answer {
  std::uint32_t id = 0;
  std::vector<std::uint32_t> tokens;
  std::vector<float> logits;  ///< that each token was chosen from, one behind the other
};

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
  std::uint64_t mixed_steps = 0;  ///< with prompts and decoding sequences
  std::uint64_t prompt_tokens = 0;
  std::uint64_t new_tokens = 0;
  std::uint64_t redone = 0;       ///< steps that were begun again
  std::uint64_t unconfirmed = 0;  ///< of those, because `confirm` said so when all was computed
};

/// Continuous batching: in each step every sequence under way takes part, with one token if it decodes, with
/// a piece of its prompt if it does not yet. Who is done leaves, and the next in the queue takes the place.
class Server {
 public:
  /// All three outlive it. Requires: limits in which each sequence has a token.
  Server(const Model& model, Compute& compute, Experts& experts, ServerLimits limits, Sampling sampling);

  /// Requires: a prompt of at least one token, each of the vocabulary; at least one new token.
  void submit(Request request) { queue_.push_back(std::move(request)); }
  [[nodiscard]] bool idle() const;

  /// One step of all sequences. Results are taken over only when `confirm` vouches for the weights; until
  /// then the step is done again. Errors: what went wrong the last of many times.
  Status step();

  /// Those that are complete, as they became it.
  [[nodiscard]] const std::vector<Answer>& answers() const { return answers_; }
  [[nodiscard]] const ServerStats& stats() const { return stats_; }

 private:
  struct Sequence {
    Request request;
    Answer answer;
    std::uint32_t computed = 0;  ///< tokens whose keys and values are there
    std::uint32_t planned = 0;   ///< tokens in the step under way
    [[nodiscard]] std::uint32_t length() const;
    [[nodiscard]] std::uint32_t token(std::uint32_t position) const;
    [[nodiscard]] bool decodes() const { return computed >= request.prompt.size(); }
  };

  void admit();
  void plan();
  Status compute_step();
  Result<std::span<const float>> forward();
  Status run_experts(std::uint32_t layer, std::span<const Choice> choices);
  void take_over(std::span<const float> logits);
  [[nodiscard]] std::uint32_t choose(const Sequence& sequence, std::span<const float> scores) const;

  const Model& model_;
  Compute& compute_;
  Experts& experts_;
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

}  // namespace harvest::moe_server
