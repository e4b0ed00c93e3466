// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/trace.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <string>
#include <vector>

/// What a server is asked for: recorded, or made up.
namespace harvest::cli {

/// Tokens of a block, which is a page, which is what a recording names.
inline constexpr std::uint32_t kServedBlockTokens = kMooncakeBlockTokens;

struct ServedRequest {
  TimeNs arrival_ns = 0;
  std::uint64_t input_tokens = 0;   ///< at least 1
  std::uint64_t output_tokens = 0;  ///< at least 1
  std::vector<Key> keys;            ///< of the full blocks of the prompt
};

/// The first `most` requests of a recording, `rate` times as fast. A block that is not full has no name: no
/// engine can use it again.
[[nodiscard]] std::vector<ServedRequest> requests_of(const Trace& trace, double rate, std::uint64_t most);

/// Conversations of several turns: each turn's prompt is all that was said before and something new. They
/// begin with one of four instructions of 1,024 tokens, one conversation every 4 s. Turns: 4 on average, 60 s
/// apart; what is new: 1,500 tokens; answers: 250. All are exponential. The same seed gives the same.
[[nodiscard]] Trace synthetic_conversations(std::uint64_t requests, std::uint64_t seed);

/// Prompts that share nothing, `per_s` a second by chance, with so many tokens on average, exponential:
/// prompts and answers of 16 to 8 times as many. The same seed gives the same.
struct Crowd {
  std::uint64_t sequences = 200;
  double per_s = 20;
  std::uint64_t prompt_tokens = 1024;
  std::uint64_t output_tokens = 512;
};
[[nodiscard]] std::vector<ServedRequest> crowd_of(const Crowd& crowd, std::uint64_t seed);

}  // namespace harvest::cli
