// SPDX-License-Identifier: Apache-2.0
#include <harvest/kv/turns.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/random.hpp"

namespace harvest::kv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Id = Turns::Id;

Turns make(const TurnsConfig& config) {
  return *Turns::create(config);
}

std::vector<Id> ids(const std::vector<Turns::Move>& moves, Turns::Move::Kind kind) {
  std::vector<Id> found;
  for (const Turns::Move& move : moves)
    if (move.kind == kind) found.push_back(move.id);
  return found;
}

std::vector<Id> brought(Turns& turns) {
  return ids(turns.decide(), Turns::Move::Kind::bring);
}

TEST(Turns, BringsInTheOrderOfArrivalWhatHasRoom) {
  Turns turns = make({.room_tokens = 100, .quantum_tokens = 10});
  ASSERT_TRUE(turns.add(1, 40));
  ASSERT_TRUE(turns.add(2, 60));
  ASSERT_TRUE(turns.add(3, 10));
  EXPECT_THAT(brought(turns), ElementsAre(1)) << "3 would fit, and 2 was there first";
  EXPECT_EQ(turns.room_used(), 50U);
  turns.came(1);
  EXPECT_THAT(turns.running(), ElementsAre(1));
  EXPECT_EQ(turns.can_run(1), 10U);
}

TEST(Turns, NobodyLeavesBeforeItsTurnIsOverOrForNobody) {
  Turns turns = make({.room_tokens = 30, .quantum_tokens = 10});
  ASSERT_TRUE(turns.add(1, 10));
  EXPECT_THAT(brought(turns), ElementsAre(1));
  turns.came(1);
  turns.ran(1, 10);
  EXPECT_THAT(turns.decide(), IsEmpty());
  EXPECT_EQ(turns.can_run(1), 10U) << "nobody waits: another turn";
  ASSERT_TRUE(turns.add(2, 10));
  turns.ran(1, 9);
  EXPECT_THAT(turns.decide(), IsEmpty());
  turns.ran(1, 1);
  EXPECT_THAT(ids(turns.decide(), Turns::Move::Kind::leave), ElementsAre(1));
  EXPECT_THAT(turns.running(), IsEmpty());
  EXPECT_THAT(turns.decide(), IsEmpty()) << "its room is not free before it has left";
  turns.left(1);
  EXPECT_THAT(brought(turns), ElementsAre(2));
  EXPECT_EQ(turns.waiting(), 1U);
}

TEST(Turns, WithoutTurnsTheLastLeavesOnlyWhenTheRoomIsUsedUp) {
  Turns turns = make({.room_tokens = 40, .quantum_tokens = 10, .take_turns = false});
  ASSERT_TRUE(turns.add(1, 10));
  ASSERT_TRUE(turns.add(2, 10));
  ASSERT_TRUE(turns.add(3, 10));
  EXPECT_THAT(brought(turns), ElementsAre(1, 2));
  turns.came(1);
  turns.came(2);
  turns.ran(1, 10);
  EXPECT_THAT(ids(turns.decide(), Turns::Move::Kind::leave), ElementsAre(2));
  turns.left(2);
  EXPECT_THAT(turns.decide(), IsEmpty()) << "2 is first in line, and 1 has taken room to go on";
  EXPECT_EQ(turns.can_run(1), 10U);
  turns.finish(1);
  EXPECT_THAT(brought(turns), ElementsAre(2, 3));
}

void run_a_turn_of_two(Turns& turns) {
  for (const Id id : {1, 2}) EXPECT_TRUE(turns.add(id, 10));
  EXPECT_THAT(brought(turns), ElementsAre(1, 2));
  for (const Id id : {1, 2}) {
    turns.came(id);
    turns.ran(id, 10);
  }
}

/// 1 and 2 have had their turn and left, 1 for 3, and then 2 for 1, as there is room elsewhere for one. 4
/// waits.
Turns one_elsewhere(bool new_first) {
  Turns turns = make({.room_tokens = 52, .quantum_tokens = 10, .away_tokens = 20, .new_first = new_first});
  run_a_turn_of_two(turns);
  EXPECT_TRUE(turns.add(3, 10));
  EXPECT_THAT(ids(turns.decide(), Turns::Move::Kind::leave), ElementsAre(1));
  turns.left(1);
  const auto moves = turns.decide();
  EXPECT_THAT(ids(moves, Turns::Move::Kind::bring), ElementsAre(3));
  EXPECT_THAT(ids(moves, Turns::Move::Kind::leave), ElementsAre(2)) << "for 1";
  turns.came(3);
  turns.left(2);
  EXPECT_TRUE(turns.add(4, 10));
  EXPECT_EQ(turns.away_tokens(), 40U) << "until 1 is brought";
  EXPECT_THAT(brought(turns), ElementsAre(1)) << "not 4: 2 left its room to 1";
  turns.came(1);
  EXPECT_EQ(turns.away_tokens(), 20U);
  return turns;
}

TEST(Turns, WhoHasNoRoomElsewhereLeavesForNobodyNew) {
  for (const bool new_first : {false, true}) {
    Turns turns = one_elsewhere(new_first);
    turns.ran(3, 10);
    EXPECT_THAT(ids(turns.decide(), Turns::Move::Kind::leave), ElementsAre(3)) << "for 2, which comes back";
    turns.left(3);
    turns.ran(1, 10);
    EXPECT_THAT(brought(turns), IsEmpty()) << "2 has no room yet, and 4 is not to take it";
  }
}

TEST(Turns, NewOnesGoFirstOnlyIfTheyAreTo) {
  for (const bool new_first : {false, true}) {
    Turns turns = one_elsewhere(new_first);
    turns.finish(3);
    const auto came = brought(turns);
    if (new_first)
      EXPECT_THAT(came, ElementsAre(4));
    else
      EXPECT_THAT(came, IsEmpty()) << "2 waits for more room";
  }
}

/// Nobody may leave, and nobody can go on: then somebody has to.
TEST(Turns, NobodyStandsStillForWantOfRoomElsewhere) {
  Turns turns = make({.room_tokens = 40, .quantum_tokens = 10, .away_tokens = 0});
  run_a_turn_of_two(turns);
  ASSERT_TRUE(turns.add(3, 10));
  EXPECT_THAT(ids(turns.decide(), Turns::Move::Kind::leave), ElementsAre(2));
  turns.left(2);
  EXPECT_THAT(brought(turns), IsEmpty());
  EXPECT_EQ(turns.can_run(1), 1U);
  turns.finish(1);
  EXPECT_THAT(brought(turns), ElementsAre(2)) << "3 would add to what is elsewhere";
}

TEST(Turns, OneComesBackBehindEightNewOnes) {
  Turns turns = make({.room_tokens = 30, .quantum_tokens = 10, .new_first = true});
  ASSERT_TRUE(turns.add(1, 10));
  ASSERT_THAT(brought(turns), ElementsAre(1));
  Id running = 1;
  std::vector<Id> order;
  for (Id next = 2; next < 14; ++next) {
    ASSERT_TRUE(turns.add(next, 10));
    turns.came(running);
    turns.ran(running, 10);
    ASSERT_THAT(ids(turns.decide(), Turns::Move::Kind::leave), ElementsAre(running));
    turns.left(running);
    const auto came = brought(turns);
    ASSERT_EQ(came.size(), 1U);
    order.push_back(running = came.front());
  }
  EXPECT_THAT(order, ElementsAre(2, 3, 4, 5, 6, 7, 8, 1, 9, 10, 11, 12)) << "1 was the first of eight";
}

TEST(Turns, NewFirstMeansNothingWithoutTurns) {
  Turns turns = make({.room_tokens = 40, .quantum_tokens = 10, .new_first = true, .take_turns = false});
  for (const Id id : {1, 2}) ASSERT_TRUE(turns.add(id, 10));
  EXPECT_THAT(brought(turns), ElementsAre(1, 2));
  for (const Id id : {1, 2}) turns.came(id);
  turns.ran(1, 10);
  ASSERT_TRUE(turns.add(3, 1));
  EXPECT_THAT(ids(turns.decide(), Turns::Move::Kind::leave), ElementsAre(2));
  turns.left(2);
  turns.finish(1);
  EXPECT_THAT(brought(turns), ElementsAre(2, 3));
}

/// Nothing of it is elsewhere, and it is in the line of those that come back all the same.
TEST(Turns, WhoLeavesWithoutATokenMayFinish) {
  Turns turns = make({.room_tokens = 20, .quantum_tokens = 10, .take_turns = false});
  for (const Id id : {1, 2}) ASSERT_TRUE(turns.add(id, 0));
  EXPECT_THAT(brought(turns), ElementsAre(1, 2));
  for (const Id id : {1, 2}) turns.came(id);
  turns.ran(1, 10);
  EXPECT_THAT(ids(turns.decide(), Turns::Move::Kind::leave), ElementsAre(2));
  turns.left(2);
  turns.finish(2);
  EXPECT_EQ(turns.waiting(), 0U);
  ASSERT_TRUE(turns.add(3, 1));
  EXPECT_EQ(turns.waiting(), 1U);
}

TEST(Turns, RefusesWhatCannotBeMeant) {
  EXPECT_THAT(Turns::create({}).error().message, HasSubstr("room_tokens is 0"));
  EXPECT_THAT(Turns::create({.room_tokens = 10, .quantum_tokens = 11}).error().message,
              HasSubstr("quantum_tokens is 11 in pages of 1, room_tokens allows 10"));
  EXPECT_THAT(Turns::create({.room_tokens = 10, .quantum_tokens = 9, .page_tokens = 16}).error().message,
              HasSubstr("quantum_tokens is 9 in pages of 16, room_tokens allows 10"));
  EXPECT_THAT(Turns::create({.room_tokens = UINT64_MAX}).error().message,
              HasSubstr("room_tokens is 18446744073709551615, the most is 281474976710656"));
  EXPECT_THAT(Turns::create({.room_tokens = 99, .most_moving = 0}).error().message,
              HasSubstr("most_moving is 0"));
  Turns turns = make({.room_tokens = 100, .quantum_tokens = 10});
  EXPECT_THAT(turns.add(1, 91).error().message, HasSubstr("91 tokens and a turn of 10, room_tokens is 100"));
  ASSERT_TRUE(turns.add(1, 90));
  EXPECT_THAT(turns.add(1, 1).error().message, HasSubstr("is there already"));
}

/// An engine of random speed: moves end late and out of order, sequences come and finish at any time. It
/// keeps its own books of all that the header promises.
class Life {
 public:
  explicit Life(std::uint64_t seed) : random_(seed) {
    config_.quantum_tokens = 1 + random_.next_below(20);
    config_.page_tokens = 1 + random_.next_below(8);
    config_.room_tokens = 200 + config_.quantum_tokens + random_.next_below(600);
    config_.most_moving = 1 + random_.next_below(4);
    config_.most_running = 1 + random_.next_below(12);
    config_.take_turns = random_.next_below(4) != 0;
    config_.new_first = random_.next_below(2) == 0;
    if (random_.next_below(2) == 0) config_.away_tokens = random_.next_below(600);
    turns_.emplace(make(config_));
  }

  void step() {
    if (added_ < kSequences && random_.next_below(3) == 0) add();
    check_decision(turns_->decide());
    end_moves();
    run();
    check_room();
  }

  void live() {
    for (int i = 0; i < 40'000 && finished_ < kSequences; ++i) step();
    EXPECT_EQ(finished_, kSequences) << "somebody waits for ever";
    EXPECT_EQ(turns_->room_used(), 0U);
  }

 private:
  struct Known {
    std::uint64_t tokens = 0;
    std::uint64_t goal = 0;
    std::uint64_t waits_since = 0;
    std::uint64_t turn_end = 0;
    bool on_gpu = false;
    bool has_run = false;
  };

  void add() {
    const Id id = added_++;
    Known known{1 + random_.next_below(90), 0, ++clock_};
    known.goal = known.tokens + 1 + random_.next_below(90);
    ASSERT_TRUE(turns_->add(id, known.tokens));
    known_[id] = known;
  }

  void check_decision(const std::vector<Turns::Move>& moves) {
    for (const Turns::Move& move : moves) {
      Known& known = known_.at(move.id);
      EXPECT_EQ(move.tokens, known.tokens);
      if (move.kind == Turns::Move::Kind::bring) {
        for (const auto& [id, other] : known_)
          if (id != move.id && !other.on_gpu) {
            if (!config_.take_turns)
              EXPECT_TRUE(known.has_run || !other.has_run) << "who had to leave is first in line";
            else if (!may_overtake(known, other))
              EXPECT_LT(known.waits_since, other.waits_since) << "somebody was overtaken";
            else
              EXPECT_TRUE(known.has_run || !other.has_run || new_in_a_row_ < 8) << "nobody comes back";
          }
        new_in_a_row_ = known.has_run ? 0 : new_in_a_row_ + 1;
        known.on_gpu = true;
        known.turn_end = known.tokens + config_.quantum_tokens;
        coming_.push_back(move.id);
      } else {
        // Somebody waits for it, or nobody has room to go on.
        if (config_.take_turns && known.tokens < known.turn_end) {
          EXPECT_EQ(turns_->waiting(), 0U);
        }
        leaving_.push_back(move.id);
      }
    }
    EXPECT_LE(coming_.size(), config_.most_moving);
    EXPECT_LE(leaving_.size(), config_.most_moving);
    EXPECT_LE(turns_->running().size() + coming_.size(), config_.most_running);
    check_work();
  }

  /// New ones go first, if they are to; and wait when there is no more room elsewhere for whom they replace.
  [[nodiscard]] bool may_overtake(const Known& one, const Known& other) const {
    if (one.has_run == other.has_run) return false;
    return config_.new_first || (one.has_run && config_.away_tokens != UINT64_MAX);
  }

  [[nodiscard]] const Known* next_in_line() const {
    const bool new_ones_first = new_in_a_row_ < 8;
    const auto rank = [&](const Known& known) {
      return std::pair(config_.new_first && known.has_run == new_ones_first, known.waits_since);
    };
    const bool new_ones_may = turns_->away_tokens() <= config_.away_tokens;
    const Known* first = nullptr;
    for (const auto& [id, known] : known_)
      if (!known.on_gpu && (known.has_run || new_ones_may) &&
          (first == nullptr || rank(known) < rank(*first)))
        first = &known;
    return first;
  }

  /// Is there room, and somebody who would fit?
  void check_work() {
    const Known* const first = next_in_line();
    if (first == nullptr || !config_.take_turns) return;
    const bool seats = turns_->running().size() + coming_.size() < config_.most_running &&
                       coming_.size() < config_.most_moving;
    EXPECT_FALSE(seats &&
                 turns_->room_used() + pages(first->tokens + config_.quantum_tokens) <= config_.room_tokens)
        << "room, and somebody waits";
  }

  [[nodiscard]] std::uint64_t pages(std::uint64_t tokens) const {
    return (tokens + config_.page_tokens - 1) / config_.page_tokens * config_.page_tokens;
  }

  void end_moves() {
    if (!coming_.empty() && random_.next_below(2) == 0) turns_->came(take_any(coming_));
    if (!leaving_.empty() && random_.next_below(2) == 0) {
      const Id id = take_any(leaving_);
      known_.at(id).on_gpu = false;
      known_.at(id).has_run = true;
      known_.at(id).waits_since = ++clock_;
      turns_->left(id);
    }
  }

  Id take_any(std::vector<Id>& from) {
    const auto at = from.begin() + random_.next_below(static_cast<std::uint32_t>(from.size()));
    const Id id = *at;
    from.erase(at);
    return id;
  }

  void run() {
    const std::vector<Id> running = turns_->running();
    bool ran = running.empty() || !leaving_.empty() || !coming_.empty();
    for (const Id id : running) {
      Known& known = known_.at(id);
      const std::uint64_t tokens = std::min(turns_->can_run(id), known.goal - known.tokens);
      ran = ran || tokens > 0;
      turns_->ran(id, tokens);
      known.tokens += tokens;
      if (known.tokens < known.goal) continue;
      turns_->finish(id);
      known_.erase(id);
      ++finished_;
    }
    idle_ = ran ? 0 : idle_ + 1;
    EXPECT_LT(idle_, 2) << "nobody moves and nobody runs";
  }

  void check_room() {
    std::uint64_t used = 0;
    std::uint64_t away = 0;
    for (const auto& [id, known] : known_) {
      if (known.on_gpu) used += pages(known.tokens);
      if ((known.has_run && !known.on_gpu) || std::ranges::find(leaving_, id) != leaving_.end())
        away += pages(known.tokens);
    }
    EXPECT_EQ(away, turns_->away_tokens());
    EXPECT_LE(used, turns_->room_used());
    EXPECT_LE(turns_->room_used(), config_.room_tokens);
  }

  static constexpr std::uint64_t kSequences = 60;
  Random random_;
  TurnsConfig config_;
  std::optional<Turns> turns_;
  std::map<Id, Known> known_;
  std::vector<Id> coming_;
  std::vector<Id> leaving_;
  std::uint64_t added_ = 0;
  std::uint64_t finished_ = 0;
  std::uint64_t clock_ = 0;
  int new_in_a_row_ = 0;
  int idle_ = 0;
};

TEST(Turns, RandomLivesAreFairAndFit) {
  for (std::uint64_t seed = 1; seed <= 300 && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Life(seed).live();
  }
}

}  // namespace
}  // namespace harvest::kv
