// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>
#include <vector>

/// Fair decoding: more sequences than the GPU has room for take turns. Who has had its turn leaves for who
/// waits longest; its keys and values wait elsewhere, on a peer for example (in a `BlockCache` with
/// `Backing::spill`, which evicts none of them), and are brought back while others compute. Nothing here
/// moves a byte or knows a GPU: an engine tells what happened, and is told what to do.
///
///     auto turns = *kv::Turns::create({.room_tokens = 500'000, .quantum_tokens = 64});
///     turns.add(request, prompt_tokens);
///     for (;;) {
///       for (const auto& move : turns.decide())        // before each step of the model
///         move.kind == kv::Turns::Move::leave ? store(move.id) : load_or_compute(move.id);
///       ...                                            // as they end: turns.left(id), turns.came(id)
///       for (const auto id : turns.running()) turns.ran(id, 1);
///     }
namespace harvest::kv {

struct TurnsConfig {
  /// Of keys and values, of all sequences together, on the GPU; at most 2^48.
  std::uint64_t room_tokens = 0;
  std::uint32_t quantum_tokens = 64;  ///< of a turn: what a sequence may generate before others go first
  std::uint32_t page_tokens = 1;      ///< room is taken in multiples of this
  std::uint32_t most_running = 1024;  ///< sequences on the GPU at a time
  /// May come, and as many leave, at a time. The more, the earlier one is brought; the fewer, the more of the
  /// room is computed with meanwhile.
  std::uint32_t most_moving = 8;
  /// Of sequences that have left and wait to come back, in whole pages: what is kept for them elsewhere. When
  /// it is used up, who has had its turn leaves only for one that comes back, and new ones wait.
  std::uint64_t away_tokens = UINT64_MAX;
  /// Who never ran goes before those that come back, of whom one goes behind eight new ones at the latest:
  /// first tokens come sooner, and others later.
  bool new_first = false;
  /// False: who runs leaves for nobody, until it is done. What a server does that knows no turns.
  bool take_turns = true;
};

/// Requires of all functions that an id is one that was added and has not finished, unless they say
/// otherwise. For one thread. Cost: of `decide` linear in the number of sequences on the GPU; of others
/// constant.
///
/// A sequence waits, comes, runs, leaves, and waits again. What always holds:
/// - room: the tokens of those that come, run and leave, each with what it may still generate and in whole
///   pages, never exceed `room_tokens`;
/// - fairness: who waits is brought in the order in which they began to wait, so that no other comes twice
///   while one waits, but for what `away_tokens` and `new_first` say. Who has had its turn leaves when its
///   room is wanted, the one that came first at first;
/// - what is kept elsewhere is within `away_tokens`, but for those that are just changing places, and for one
///   that leaves as it has no room for its next token and nobody else can go;
/// - work: nobody leaves whose room nobody wants, whoever is first in line is brought as soon as there is
///   room, and who has had its turn runs on until it is told to leave, as long as there is room for that.
/// Without turns who runs leaves only if the room is used up: the last that came, and it is first in line.
class Turns {
 public:
  using Id = std::uint64_t;

  /// What the engine is to do.
  struct Move {
    enum class Kind : std::uint8_t {
      bring,  ///< its `tokens` tokens are to be on the GPU: loaded, or computed if it never ran; then `came`
      leave,  ///< it does not run any more; when its keys and values are elsewhere, `left`
    };
    Kind kind = Kind::bring;
    Id id = 0;
    std::uint64_t tokens = 0;
  };

  /// Errors: invalid_argument (names the field, value and limit): no room or more than there can be, no
  /// quantum, no page, nobody who may run or move, a quantum that alone has no room.
  [[nodiscard]] static Result<Turns> create(const TurnsConfig& config);

  /// One more, last in line, with `tokens` tokens to begin with. Errors: invalid_argument (they and a turn
  /// have no room, ever; an id that is there).
  Status add(Id id, std::uint64_t tokens);

  /// What to do now. Good until the next call.
  [[nodiscard]] const std::vector<Move>& decide();

  /// It is on the GPU and runs. Requires: it was to be brought.
  void came(Id id);
  /// Its room is free. Requires: it was to leave.
  void left(Id id);
  /// It generated `tokens` more. Requires: it runs, and `can_run` so many. A sequence that grows until it and
  /// a turn have no room any more does not come back from elsewhere: an engine limits how long they get.
  void ran(Id id, std::uint64_t tokens);
  /// It is done, wherever it is; its room is free at once.
  void finish(Id id);

  /// Those on the GPU that compute, in the order in which they came. Good until the next call of another.
  [[nodiscard]] const std::vector<Id>& running() const { return running_; }
  /// Tokens that it has room for now; 0: it has to wait until a `decide` grants more. Requires: it runs.
  [[nodiscard]] std::uint64_t can_run(Id id) const;
  [[nodiscard]] std::size_t waiting() const { return fresh_.size() + back_.size(); }
  /// Taken, in tokens.
  [[nodiscard]] std::uint64_t room_used() const { return used_; }
  /// Of those that have left, or are leaving, and wait to come back.
  [[nodiscard]] std::uint64_t away_tokens() const { return away_; }

 private:
  enum class State : std::uint8_t { waiting, coming, running, leaving };
  struct Sequence {
    State state = State::waiting;
    std::uint64_t tokens = 0;
    std::uint64_t granted = 0;        ///< tokens that there is room for
    std::uint64_t turn_end = 0;       ///< tokens at which its turn is over
    std::uint64_t away = 0;           ///< of `away_`, until it is brought back
    std::uint64_t waits_since = 0;    ///< earlier ones are smaller
    bool has_run = false;             ///< so that it waits to come back
    std::list<Id>::iterator place{};  ///< in its line
  };

  explicit Turns(const TurnsConfig& config) : config_(config) {}
  [[nodiscard]] std::uint64_t room_for(std::uint64_t tokens) const;
  [[nodiscard]] bool grant(Sequence& sequence, std::uint64_t tokens);
  [[nodiscard]] std::optional<Id> grant_more();
  void bring_first();
  void make_room();
  [[nodiscard]] bool new_may_come() const { return !config_.take_turns || away_ <= config_.away_tokens; }
  [[nodiscard]] std::list<Id>::iterator* next_in_line(std::list<Id>::iterator& fresh,
                                                      std::list<Id>::iterator& back, bool fresh_may);
  [[nodiscard]] bool leave_first(std::uint64_t coming_back);
  void leave(Id id);
  void free_room(Sequence& sequence);

  TurnsConfig config_;
  std::unordered_map<Id, Sequence> sequences_;
  std::list<Id> fresh_;  ///< who waits and never ran, in order
  std::list<Id> back_;   ///< who waits to come back, in order
  std::vector<Id> running_;
  std::vector<Move> moves_;
  std::uint64_t used_ = 0;
  std::uint64_t leaving_room_ = 0;  ///< of `used_`
  std::uint64_t away_ = 0;          ///< in tokens: of all that have left
  std::uint64_t clock_ = 1;
  std::uint32_t coming_ = 0;
  std::uint32_t leaving_ = 0;
  std::uint32_t new_in_a_row_ = 0;  ///< brought
};

}  // namespace harvest::kv
