// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/layout.hpp>
#include <harvest/machine.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/roofline.hpp"

/// Language models without experts, by name: what their tokens compute and keep.
namespace harvest::cli {

/// A model's shape, 16 bits a number.
struct DenseModel {
  std::string_view name;
  std::uint32_t layers = 0;
  std::uint32_t hidden = 0;
  std::uint32_t heads = 0;     ///< that ask
  std::uint32_t kv_heads = 0;  ///< that answer
  std::uint32_t head_size = 0;
  std::uint32_t intermediate = 0;
  std::uint32_t vocabulary = 0;
  std::string_view source;

  [[nodiscard]] double layer_weights() const;
  [[nodiscard]] std::uint64_t weight_bytes() const;
};

/// "llama-3-8b, llama-3-70b, ..."
[[nodiscard]] std::string dense_model_names();
/// Errors: not_found; the message names the known models.
[[nodiscard]] Result<DenseModel> find_dense_model(std::string_view name);

/// What one pass over the model does: chunks of prompts and a next token for each running sequence.
struct PassWork {
  double tokens = 0;           ///< all of them
  double sampled = 0;          ///< of which a next token is drawn
  double prefill_context = 0;  ///< tokens that chunks read, summed over chunks
  double prefill_pairs = 0;    ///< of a chunk's token and one that it looks back on
  double decode_context = 0;   ///< tokens that running sequences read
  [[nodiscard]] bool empty() const { return tokens == 0; }
  /// A chunk of `tokens` tokens behind `context` others.
  void add_chunk(double tokens, double context);
  void add_next_token(double context);
};

/// One of the GPUs that serve a model together, each a part of its heads and weights.
class Rank {
 public:
  /// Errors: invalid_argument (the model cannot be split so, its part does not fit on the GPU), not_found
  /// (the machine's GPU is not known).
  [[nodiscard]] static Result<Rank> create(const DenseModel& model, const Machine& machine,
                                           std::uint32_t ranks);

  [[nodiscard]] const DenseModel& model() const { return model_; }
  [[nodiscard]] const Card& card() const { return card_; }
  [[nodiscard]] std::uint32_t ranks() const { return ranks_; }
  /// This rank's part of a layer's keys and values.
  [[nodiscard]] kv::KvLayer layer() const;
  [[nodiscard]] std::uint64_t kv_bytes_per_token() const;
  [[nodiscard]] std::uint64_t weight_bytes() const { return model_.weight_bytes() / ranks_; }
  /// What weights and the rest leave for keys and values.
  [[nodiscard]] std::uint64_t kv_room_bytes() const { return kv_room_bytes_; }

  /// How long one layer of a pass takes, exchanges between ranks included.
  [[nodiscard]] TimeNs layer_ns(const PassWork& work) const;
  /// From the last layer to the drawn tokens.
  [[nodiscard]] TimeNs head_ns(const PassWork& work) const;
  [[nodiscard]] TimeNs pass_ns(const PassWork& work) const {
    return model_.layers * layer_ns(work) + head_ns(work);
  }

 private:
  DenseModel model_;
  Card card_;
  std::uint32_t ranks_ = 1;
  double exchange_bytes_per_s_ = 0;
  std::uint64_t kv_room_bytes_ = 0;
};

inline constexpr double kMemoryUsed = 0.90;  ///< of a GPU's memory that a server takes: vLLM's default
inline constexpr std::uint64_t kActivationBytes = 4ULL << 30;  ///< estimate: activations, graphs, buffers
inline constexpr TimeNs kExchangeNs = 10'000;  ///< estimate: latency of one all-reduce within a machine

}  // namespace harvest::cli
