// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "transformer/compute.hpp"
#include "transformer/model.hpp"

namespace harvest::transformer {

/// The keys, or the values, that one layer has of one token: `Shape::kv_size` of them, head after head.
struct KvRow {
  float* first = nullptr;
  std::size_t stride = 1;  ///< from one to the next
  float& operator[](std::size_t i) const { return first[i * stride]; }
};

/// Tokens of a sequence, by their positions.
struct KvRange {
  std::uint32_t sequence = 0;
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

/// Where sequences have their keys and values, and who takes care that they are there. As it stands here it
/// has room for every sequence and knows nothing but what is computed.
class KvMemory {
 public:
  KvMemory() = default;
  KvMemory(const KvMemory&) = delete;
  KvMemory& operator=(const KvMemory&) = delete;
  virtual ~KvMemory() = default;

  /// Of a sequence that is here. Keys of a head are one after the other: their stride is 1.
  virtual KvRow keys(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) = 0;
  virtual KvRow values(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) = 0;

  /// A sequence comes that begins with `prompt` and will have at most `positions` tokens. Answers how many of
  /// its first tokens need not be computed, always fewer than the prompt has; nothing: no room for now.
  virtual Result<std::optional<std::uint32_t>> enter(std::uint32_t /*sequence*/,
                                                     std::span<const std::uint32_t> /*prompt*/,
                                                     std::uint32_t /*positions*/) {
    return std::optional<std::uint32_t>(0);
  }
  /// What these rows see of this layer is there for work that is given to the stream from now on.
  virtual Status order_behind(std::uint32_t /*layer*/, std::span<const Row> /*rows*/) { return {}; }
  /// Waits. Answers what these rows saw without its being there, of each sequence in order: it must be
  /// computed, and what the sequence's rows have computed means nothing.
  virtual std::vector<KvRange> confirm(std::span<const Row> /*rows*/) { return {}; }
  /// These are a sequence's first tokens, and their keys and values are computed and confirmed.
  virtual Status keep(std::uint32_t /*sequence*/, std::span<const std::uint32_t> /*tokens*/) { return {}; }
  virtual void leave(std::uint32_t /*sequence*/) {}
};

/// Plain memory with as much room as there can be need for.
class PlainKv : public KvMemory {
 public:
  /// For `sequences` sequences of `positions` tokens.
  PlainKv(const Shape& shape, std::uint32_t sequences, std::uint32_t positions)
      : sequences_(sequences),
        positions_(positions),
        size_(shape.kv_size()),
        keys_(std::size_t{shape.layers} * sequences * positions * size_),
        values_(keys_.size()) {}

  KvRow keys(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) override {
    return {&keys_[place(layer, sequence, position)]};
  }
  KvRow values(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) override {
    return {&values_[place(layer, sequence, position)]};
  }

 private:
  [[nodiscard]] std::size_t place(std::uint32_t layer, std::uint32_t sequence, std::uint32_t position) const {
    return ((std::size_t{layer} * sequences_ + sequence) * positions_ + position) * size_;
  }

  std::uint32_t sequences_, positions_;
  std::size_t size_;
  std::vector<float> keys_, values_;
};

}  // namespace harvest::transformer
