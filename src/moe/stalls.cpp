// SPDX-License-Identifier: Apache-2.0
#include "moe/stalls.hpp"

#include <algorithm>

namespace harvest::moe {
namespace {

void raise(FlightNumbers& numbers, const FlightNumbers& others) {
  for (std::size_t lane = 0; lane < kLanes; ++lane) numbers[lane] = std::max(numbers[lane], others[lane]);
}

}  // namespace

Stalls::~Stalls() {
  for (Watch& watch : watches_)
    if (watch.used) forget(watch);
}

std::uint32_t Stalls::open() {
  if (free_.empty()) {
    free_.push_back(static_cast<std::uint32_t>(watches_.size()));
    watches_.emplace_back();
  }
  const std::uint32_t number = free_.back();
  free_.pop_back();
  Watch& watch = watches_[number];
  watch.used = true;
  watch.closed = watch.blind = false;
  watch.state = State::over;
  watch.coming = {};
  return number;
}

void Stalls::expect(std::uint32_t number, const FlightNumbers& flights) {
  Watch& watch = watches_[number];
  raise(watch.coming, flights);
  if (watch.state != State::over) return;
  watch.seen_ns = backend_.now_ns();
  watch.state = state_of(watch);
}

void Stalls::wait(std::uint32_t number, StreamId stream, const FlightNumbers& flights, bool joined) {
  Watch& watch = watches_[number];
  if (lanes_.ended(flights) || watch.blind) return;
  if (joined && !watch.waits.empty()) {
    raise(watch.waits.back().flights, flights);
    return;
  }
  if (const auto event = backend_.record_event(stream))
    watch.waits.push_back({*event, flights});
  else
    watch.blind = true;
  look(watch, backend_.now_ns());  // a stream without work stands there already
}

void Stalls::close(std::uint32_t number) {
  Watch& watch = watches_[number];
  watch.closed = true;
  look(watch, backend_.now_ns());
}

void Stalls::look() {
  const TimeNs now = backend_.now_ns();
  for (Watch& watch : watches_)
    if (watch.used) look(watch, now);
}

void Stalls::look(Watch& watch, TimeNs now) {
  const State before = watch.state;
  const std::size_t reached = watch.reached;
  while (watch.reached < watch.waits.size() &&
         backend_.query_event(watch.waits[watch.reached].reached) != EventState::pending)
    backend_.release_event(watch.waits[watch.reached++].reached);
  watch.state = state_of(watch);
  const TimeNs passed = now - watch.seen_ns;
  watch.seen_ns = now;
  if (before != State::over) {
    const bool same = watch.state == before && watch.reached == reached;
    TimeNs& times = !same                       ? times_.unseen_ns
                    : before == State::stands   ? times_.exposed_ns
                    : before == State::computes ? times_.hidden_ns
                                                : times_.unseen_ns;
    times += passed;
  }
  if (watch.closed && watch.state == State::over) forget(watch);
}

Stalls::State Stalls::state_of(const Watch& watch) const {
  if (lanes_.ended(watch.coming)) return State::over;
  if (watch.blind) return State::not_known;
  const bool stands = watch.reached > 0 && !lanes_.ended(watch.waits[watch.reached - 1].flights);
  return stands ? State::stands : State::computes;
}

void Stalls::forget(Watch& watch) {
  for (std::size_t i = watch.reached; i < watch.waits.size(); ++i)
    backend_.release_event(watch.waits[i].reached);
  watch.waits.clear();
  watch.reached = 0;
  watch.used = false;
  free_.push_back(static_cast<std::uint32_t>(&watch - watches_.data()));
}

}  // namespace harvest::moe
