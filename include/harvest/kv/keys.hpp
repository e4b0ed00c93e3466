// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace harvest::kv {

using Token = std::uint32_t;

/// Names the blocks of one sequence as it grows. A block's key is a hash of everything up to its end, so
/// equal prefixes meet under equal keys, and a block is never mistaken for the same tokens behind another
/// beginning. The hash is XXH3's of 128 bits: two of a billion blocks are equal by chance once in 10^20
/// times, but who may choose tokens freely can make it collide on purpose. What must not be shared (tenants
/// that do not trust each other, adapters of a model) has a `salt` of its own.
/// For one thread. Cost: about 0.2 ns a token.
class BlockKeys {
 public:
  /// Requires: `block_tokens` > 0.
  explicit BlockKeys(std::uint32_t block_tokens, std::uint64_t salt = 0);

  /// More tokens of the sequence. Tokens that do not fill a block wait for more.
  void append(std::span<const Token> tokens);

  /// Of all blocks that are full. Good until the next `append`.
  [[nodiscard]] std::span<const Key> keys() const { return keys_; }
  [[nodiscard]] std::uint64_t tokens() const { return tokens_; }

 private:
  std::uint32_t block_tokens_;
  std::uint64_t tokens_ = 0;
  Key parent_;
  std::vector<Key> keys_;
  std::vector<Token> open_;
};

/// The keys of the full blocks of `tokens`.
[[nodiscard]] std::vector<Key> block_keys(std::span<const Token> tokens, std::uint32_t block_tokens,
                                          std::uint64_t salt = 0);

}  // namespace harvest::kv
