// SPDX-License-Identifier: Apache-2.0
#include "kv_server/conversations.hpp"

#include <algorithm>

#include "transformer/random.hpp"

namespace harvest::kv_server {
namespace {

std::vector<std::uint32_t> draw_tokens(std::uint32_t least, std::uint32_t most, std::uint32_t vocabulary,
                                       Random& random) {
  std::vector<std::uint32_t> tokens(random.between(least, most));
  for (std::uint32_t& token : tokens) token = static_cast<std::uint32_t>(random.below(vocabulary));
  return tokens;
}

TimeNs draw_ns(double mean_us, Random& random) {
  return static_cast<TimeNs>(random.exponential() * mean_us * 1e3);
}

}  // namespace

Conversations::Conversations(const Talk& talk, std::uint32_t vocabulary, std::uint64_t seed)
    : most_turns_(talk.most_turns), conversations_(talk.conversations) {
  Random random(seed);
  std::vector<std::vector<std::uint32_t>> systems(talk.system_prompts);
  for (auto& system : systems)
    system = draw_tokens((talk.longest_system + 1) / 2, talk.longest_system, vocabulary, random);
  TimeNs arrival_ns = 0;
  for (Conversation& conversation : conversations_) {
    conversation.tokens = systems[random.below(systems.size())];
    conversation.turns.resize(random.between((talk.most_turns + 1) / 2, talk.most_turns));
    for (Turn& turn : conversation.turns)
      turn = {.said = draw_tokens(1, talk.longest_said, vocabulary, random),
              .new_tokens = static_cast<std::uint32_t>(random.between(1, talk.most_new_tokens)),
              .pause_ns = draw_ns(talk.pause_us, random)};
    conversation.due_ns = arrival_ns;
    arrival_ns += draw_ns(talk.arrival_us, random);
  }
}

TimeNs Conversations::next_ns() const {
  TimeNs next_ns = kNever;
  for (const Conversation& conversation : conversations_) next_ns = std::min(next_ns, conversation.due_ns);
  return next_ns;
}

bool Conversations::over() const {
  return std::ranges::all_of(conversations_, [](const Conversation& conversation) {
    return conversation.next == conversation.turns.size();
  });
}

std::vector<Request> Conversations::due(TimeNs now_ns) {
  std::vector<Request> requests;
  for (std::uint32_t number = 0; number < conversations_.size(); ++number) {
    Conversation& conversation = conversations_[number];
    if (conversation.due_ns > now_ns) continue;
    const Turn& turn = conversation.turns[conversation.next];
    conversation.tokens.insert(conversation.tokens.end(), turn.said.begin(), turn.said.end());
    requests.push_back({.id = number * most_turns_ + conversation.next,
                        .arrival_ns = conversation.due_ns,
                        .prompt = conversation.tokens,
                        .new_tokens = turn.new_tokens});
    conversation.due_ns = kNever;
  }
  std::ranges::stable_sort(requests, {}, &Request::arrival_ns);
  return requests;
}

void Conversations::hear(const Answer& answer, TimeNs now_ns) {
  Conversation& conversation = conversations_[answer.id / most_turns_];
  conversation.tokens.insert(conversation.tokens.end(), answer.tokens.begin(), answer.tokens.end());
  if (++conversation.next == conversation.turns.size()) return;
  conversation.due_ns = now_ns + conversation.turns[conversation.next].pause_ns;
}

std::uint64_t Conversations::new_tokens() const {
  std::uint64_t tokens = 0;
  for (const Conversation& conversation : conversations_)
    for (const Turn& turn : conversation.turns) tokens += turn.new_tokens;
  return tokens;
}

}  // namespace harvest::kv_server
