// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <harvest/kv/keys.hpp>

#include "base/assert.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace harvest::kv {
namespace {

Key to_key(XXH128_hash_t hash) {
  return {hash.high64, hash.low64};
}

/// The beginning that all sequences of one salt share.
Key root_of(std::uint64_t salt) {
  return to_key(XXH3_128bits_withSeed(nullptr, 0, salt));
}

/// All 128 bits of the parent count, half of them as the seed.
Key child_of(const Key& parent, std::span<const Token> tokens) {
  XXH3_state_t state{};  // a reset compares with what was there
  XXH3_128bits_reset_withSeed(&state, parent.low);
  XXH3_128bits_update(&state, &parent.high, sizeof parent.high);
  XXH3_128bits_update(&state, tokens.data(), tokens.size_bytes());
  return to_key(XXH3_128bits_digest(&state));
}

}  // namespace

BlockKeys::BlockKeys(std::uint32_t block_tokens, std::uint64_t salt)
    : block_tokens_(block_tokens), parent_(root_of(salt)) {
  HARVEST_ASSERT(block_tokens > 0, "a block has at least one token");
}

void BlockKeys::append(std::span<const Token> tokens) {
  tokens_ += tokens.size();
  const auto close = [&](std::span<const Token> block) {
    parent_ = child_of(parent_, block);
    keys_.push_back(parent_);
  };
  if (!open_.empty()) {
    const std::size_t missing = std::min<std::size_t>(block_tokens_ - open_.size(), tokens.size());
    open_.insert(open_.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(missing));
    tokens = tokens.subspan(missing);
    if (open_.size() < block_tokens_) return;
    close(open_);
  }
  for (; tokens.size() >= block_tokens_; tokens = tokens.subspan(block_tokens_))
    close(tokens.first(block_tokens_));
  open_.assign(tokens.begin(), tokens.end());
}

std::vector<Key> block_keys(std::span<const Token> tokens, std::uint32_t block_tokens, std::uint64_t salt) {
  BlockKeys keys(block_tokens, salt);
  keys.append(tokens);
  return {keys.keys().begin(), keys.keys().end()};
}

}  // namespace harvest::kv
