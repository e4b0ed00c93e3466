// SPDX-License-Identifier: Apache-2.0
#include <harvest/kv/turns.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/assert.hpp"

namespace harvest::kv {
namespace {

constexpr std::uint32_t kMostNewInARow = 8;            // as turns.hpp says
constexpr std::uint64_t kMostRoomTokens = 1ULL << 48;  // sums with a turn and a page do not overflow

}  // namespace

Result<Turns> Turns::create(const TurnsConfig& config) {
  const auto positive = [](const char* name, std::uint64_t value) -> Status {
    if (value > 0) return {};
    return fail(ErrorCode::invalid_argument, fmt::format("{} is 0, the least is 1", name));
  };
  for (const auto& [name, value] : {std::pair<const char*, std::uint64_t>{"room_tokens", config.room_tokens},
                                    {"quantum_tokens", config.quantum_tokens},
                                    {"page_tokens", config.page_tokens},
                                    {"most_running", config.most_running},
                                    {"most_moving", config.most_moving}})
    if (Status status = positive(name, value); !status) return tl::unexpected(status.error());
  if (config.room_tokens > kMostRoomTokens)
    return fail(ErrorCode::invalid_argument,
                fmt::format("room_tokens is {}, the most is {}", config.room_tokens, kMostRoomTokens));
  Turns turns(config);
  if (turns.room_for(config.quantum_tokens) > config.room_tokens)
    return fail(ErrorCode::invalid_argument,
                fmt::format("quantum_tokens is {} in pages of {}, room_tokens allows {}",
                            config.quantum_tokens, config.page_tokens, config.room_tokens));
  return turns;
}

Status Turns::add(Id id, std::uint64_t tokens) {
  if (tokens > config_.room_tokens || room_for(tokens + config_.quantum_tokens) > config_.room_tokens)
    return fail(ErrorCode::invalid_argument,
                fmt::format("sequence {} has {} tokens and a turn of {}, room_tokens is {}", id, tokens,
                            config_.quantum_tokens, config_.room_tokens));
  const auto [added, is_new] = sequences_.try_emplace(id);
  if (!is_new) return fail(ErrorCode::invalid_argument, fmt::format("sequence {} is there already", id));
  added->second.tokens = tokens;
  added->second.waits_since = clock_++;
  added->second.place = fresh_.insert(fresh_.end(), id);
  return {};
}

std::uint64_t Turns::room_for(std::uint64_t tokens) const {
  return (tokens + config_.page_tokens - 1) / config_.page_tokens * config_.page_tokens;
}

/// Room for `tokens` tokens in all, if there is that much.
bool Turns::grant(Sequence& sequence, std::uint64_t tokens) {
  const std::uint64_t more = room_for(tokens) - room_for(sequence.granted);
  if (used_ + more > config_.room_tokens) return false;
  used_ += more;
  sequence.granted = tokens;
  return true;
}

const std::vector<Turns::Move>& Turns::decide() {
  moves_.clear();
  const std::optional<Id> stuck = grant_more();
  bring_first();
  if (config_.take_turns) {
    make_room();
    // Who leaves does not run any more, and there may have been room for one more, but not a place.
    bring_first();
  }
  // The room is used up by those who run: one has to go for the others. Of turns, one that has had its; else
  // the last that came, which lost least.
  if (stuck && leaving_ == 0 && coming_ == 0 && running_.size() > 1)
    leave(config_.take_turns ? *stuck : running_.back());
  return moves_;
}

/// Who has generated all that there was room for. While others wait it gets one page at a time: it leaves
/// soon, and what it takes is theirs. Answers the last that got nothing, if any did.
std::optional<Turns::Id> Turns::grant_more() {
  const bool wanted = config_.take_turns && waiting() > 0;
  std::optional<Id> stuck;
  for (const Id id : running_) {
    Sequence& sequence = sequences_.at(id);
    if (sequence.tokens < sequence.granted) continue;
    const bool turn = !wanted && grant(sequence, sequence.granted + config_.quantum_tokens);
    if (!turn && !grant(sequence, sequence.granted + config_.page_tokens)) stuck = id;
    if (!wanted) sequence.turn_end = sequence.granted;
  }
  return stuck;
}

/// Of two lines, from these places on, whose first goes next; null if nobody may.
std::list<Turns::Id>::iterator* Turns::next_in_line(std::list<Id>::iterator& fresh,
                                                    std::list<Id>::iterator& back, bool fresh_may) {
  const bool any_fresh = fresh_may && fresh != fresh_.end();
  if (back == back_.end()) return any_fresh ? &fresh : nullptr;
  if (!any_fresh) return &back;
  if (config_.take_turns && config_.new_first) return new_in_a_row_ < kMostNewInARow ? &fresh : &back;
  return sequences_.at(*fresh).waits_since < sequences_.at(*back).waits_since ? &fresh : &back;
}

void Turns::bring_first() {
  while (coming_ < config_.most_moving && running_.size() + coming_ < config_.most_running) {
    auto fresh = fresh_.begin();
    auto back = back_.begin();
    // Who left for one that comes back left its room to that one.
    const auto* next = next_in_line(fresh, back, new_may_come());
    if (next == nullptr) return;
    const Id id = **next;
    Sequence& sequence = sequences_.at(id);
    if (!grant(sequence, sequence.tokens + config_.quantum_tokens)) return;
    const bool is_new = next == &fresh;
    new_in_a_row_ = is_new ? new_in_a_row_ + 1 : 0;
    (is_new ? fresh_ : back_).erase(*next);
    sequence.state = State::coming;
    sequence.turn_end = sequence.granted;
    away_ -= std::exchange(sequence.away, 0);
    ++coming_;
    moves_.push_back({Move::Kind::bring, id, sequence.tokens});
  }
}

/// For those who are next in line, as many as may come.
void Turns::make_room() {
  std::uint64_t wanted = 0;
  std::uint64_t coming_back = 0;
  std::uint32_t heads = 0;
  bool fresh_may = new_may_come();
  auto fresh = fresh_.begin();
  auto back = back_.begin();
  while (auto* const next = next_in_line(fresh, back, fresh_may)) {
    if (coming_ + heads + 1 > config_.most_moving) return;
    const Sequence& sequence = sequences_.at(**next);
    const std::uint64_t room = room_for(sequence.tokens + config_.quantum_tokens);
    const std::uint64_t away = coming_back + sequence.away;
    const auto has_room = [&] {
      return used_ - leaving_room_ + wanted + room <= config_.room_tokens &&
             running_.size() + coming_ + heads + 1 <= config_.most_running;
    };
    bool may = true;
    while (may && !has_room()) {
      if (leaving_ == config_.most_moving) return;
      may = leave_first(away);
    }
    if (!may) {
      if (next != &fresh || back == back_.end()) return;
      fresh_may = false;
      continue;
    }
    wanted += room;
    coming_back = away;
    ++heads;
    ++*next;
  }
}

/// The first that came of those who have had their turn and can be kept elsewhere when so many tokens are
/// back; false if there is none.
bool Turns::leave_first(std::uint64_t coming_back) {
  const std::uint64_t others = away_ - coming_back;
  if (others > config_.away_tokens) return false;
  const auto may = std::ranges::find_if(running_, [&](Id id) {
    const Sequence& sequence = sequences_.at(id);
    return sequence.tokens >= sequence.turn_end && room_for(sequence.tokens) <= config_.away_tokens - others;
  });
  if (may == running_.end()) return false;
  leave(*may);
  return true;
}

void Turns::leave(Id id) {
  Sequence& sequence = sequences_.at(id);
  std::erase(running_, id);
  sequence.state = State::leaving;
  leaving_room_ += room_for(sequence.granted);
  sequence.away = room_for(sequence.tokens);
  away_ += sequence.away;
  ++leaving_;
  moves_.push_back({Move::Kind::leave, id, sequence.tokens});
}

void Turns::came(Id id) {
  Sequence& sequence = sequences_.at(id);
  HARVEST_ASSERT(sequence.state == State::coming, "came, and was not to be brought");
  --coming_;
  sequence.state = State::running;
  running_.push_back(id);
}

void Turns::left(Id id) {
  Sequence& sequence = sequences_.at(id);
  HARVEST_ASSERT(sequence.state == State::leaving, "left, and was not to leave");
  free_room(sequence);
  sequence.state = State::waiting;
  sequence.has_run = true;
  sequence.waits_since = config_.take_turns ? clock_++ : 0;
  sequence.place = back_.insert(config_.take_turns ? back_.end() : back_.begin(), id);
}

void Turns::ran(Id id, std::uint64_t tokens) {
  Sequence& sequence = sequences_.at(id);
  HARVEST_ASSERT(sequence.state == State::running, "ran, and was not running");
  HARVEST_ASSERT(sequence.tokens + tokens <= sequence.granted, "ran beyond its room");
  sequence.tokens += tokens;
}

void Turns::finish(Id id) {
  Sequence& sequence = sequences_.at(id);
  switch (sequence.state) {
    case State::waiting: (sequence.has_run ? back_ : fresh_).erase(sequence.place); break;
    case State::running: std::erase(running_, id); break;
    case State::coming: --coming_; break;
    case State::leaving: break;  // counted by its room
  }
  free_room(sequence);
  away_ -= sequence.away;
  sequences_.erase(id);
}

void Turns::free_room(Sequence& sequence) {
  const std::uint64_t room = room_for(sequence.granted);
  if (sequence.state == State::leaving) {
    --leaving_;
    leaving_room_ -= room;
  }
  used_ -= room;
  sequence.granted = 0;
}

std::uint64_t Turns::can_run(Id id) const {
  const Sequence& sequence = sequences_.at(id);
  return sequence.granted - sequence.tokens;
}

}  // namespace harvest::kv
