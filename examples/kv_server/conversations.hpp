// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstdint>
#include <vector>

#include "transformer/requests.hpp"

namespace harvest::kv_server {

using namespace transformer;

/// How people talk to the server.
struct Talk {
  std::uint32_t conversations = 10;
  std::uint32_t most_turns = 4;       ///< that a conversation has
  std::uint32_t system_prompts = 3;   ///< that they begin with
  std::uint32_t longest_system = 96;  ///< tokens
  std::uint32_t longest_said = 32;    ///< tokens that a turn adds
  std::uint32_t most_new_tokens = 16;
  double arrival_us = 2'000;  ///< between two conversations, on average
  double pause_us = 10'000;   ///< between an answer and the next turn, on average

  /// Of the longest conversation.
  [[nodiscard]] std::uint32_t positions() const {
    return longest_system + most_turns * (longest_said + most_new_tokens);
  }
};

/// Conversations that begin with one of a few system prompts, and come back: each turn's prompt is all that
/// was said and answered before, and some tokens more.
class Conversations {
 public:
  /// Tokens are below `vocabulary`.
  Conversations(const Talk& talk, std::uint32_t vocabulary, std::uint64_t seed);

  /// When the next turn is due; `kNever` if all wait for an answer or are over.
  [[nodiscard]] TimeNs next_ns() const;
  [[nodiscard]] bool over() const;
  /// Turns that are due by now, as requests in the order in which they came.
  [[nodiscard]] std::vector<Request> due(TimeNs now_ns);
  /// To one of these requests.
  void hear(const Answer& answer, TimeNs now_ns);

  /// New tokens that all turns ask for.
  [[nodiscard]] std::uint64_t new_tokens() const;

 private:
  struct Turn {
    std::vector<std::uint32_t> said;
    std::uint32_t new_tokens = 0;
    TimeNs pause_ns = 0;  ///< before it
  };
  struct Conversation {
    std::vector<std::uint32_t> tokens;  ///< so far
    std::vector<Turn> turns;
    std::uint32_t next = 0;  ///< turn
    TimeNs due_ns = kNever;
  };

  std::uint32_t most_turns_;
  std::vector<Conversation> conversations_;
};

}  // namespace harvest::kv_server
