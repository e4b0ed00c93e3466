// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moe/lanes.hpp"

/// How long the streams of layer steps stand still for experts, and how long experts are on their way behind
/// computing. Events tell whether something has ended and not when, and nobody here waits: so what is known
/// is known as of two looks, and what changed between them counts for neither side.
namespace harvest::moe {

struct StallTimes {
  TimeNs exposed_ns = 0;  ///< at both looks the stream stood at the same wait
  TimeNs hidden_ns = 0;   ///< at both looks it was on the same way to a wait, and experts were coming
  TimeNs unseen_ns = 0;   ///< between the looks it came to a wait, or went on from one
};

class Stalls {
 public:
  Stalls(Backend& backend, const Lanes& lanes) : backend_(backend), lanes_(lanes) {}
  ~Stalls();
  Stalls(const Stalls&) = delete;
  Stalls& operator=(const Stalls&) = delete;

  /// A step began whose experts are not all here. Answers its number, good until `close`.
  [[nodiscard]] std::uint32_t open();
  /// The step asked for what these flights bring.
  void expect(std::uint32_t watch, const FlightNumbers& flights);
  /// Its stream is about to be ordered behind these flights. `joined`: nothing was given to the stream since
  /// the wait before.
  void wait(std::uint32_t watch, StreamId stream, const FlightNumbers& flights, bool joined);
  /// The step waits for nothing more. What it waits for is watched until it is there.
  void close(std::uint32_t watch);

  [[nodiscard]] bool any() const { return free_.size() < watches_.size(); }
  /// Requires: the lanes have settled.
  void look();
  [[nodiscard]] const StallTimes& times() const { return times_; }

 private:
  enum class State : std::uint8_t {
    over,       ///< nothing is coming
    computes,   ///< or is idle, for want of work: experts are coming, and the stream waits for none of them
    stands,     ///< the stream waits
    not_known,  ///< the driver had no event to tell
  };
  struct Wait {
    EventId reached = EventId::none;  ///< all that the stream was given before the wait has run
    FlightNumbers flights{};
  };
  /// The first `reached` of the waits have been reached, as last seen; their events are given back.
  struct Watch {
    bool used = false;
    bool closed = false;
    bool blind = false;
    State state = State::over;
    TimeNs seen_ns = 0;
    FlightNumbers coming{};
    std::vector<Wait> waits;
    std::size_t reached = 0;
  };
  void look(Watch& watch, TimeNs now);
  [[nodiscard]] State state_of(const Watch& watch) const;
  void forget(Watch& watch);

  Backend& backend_;
  const Lanes& lanes_;
  std::vector<Watch> watches_;
  std::vector<std::uint32_t> free_;
  StallTimes times_;
};

}  // namespace harvest::moe
