// SPDX-License-Identifier: Apache-2.0
#include "core/ordering.hpp"

namespace harvest::core {
namespace {

constexpr TimeNs kPatienceNs = 1'000'000'000;
constexpr TimeNs kPauseNs = 100'000;

}  // namespace

void order_after(Backend& backend, StreamId stream, EventId event) {
  if (!backend.stream_wait(stream, event)) backend.wait_event(event, kNever);
}

Result<EventId> record_surely(Backend& backend, StreamId stream) {
  const TimeNs give_up_ns = backend.now_ns() + kPatienceNs;
  while (true) {
    auto event = backend.record_event(stream);
    const bool may_come = !event && event.error().code == ErrorCode::out_of_memory;
    if (!may_come || backend.now_ns() >= give_up_ns) return event;
    backend.sleep_until(backend.now_ns() + kPauseNs);
  }
}

}  // namespace harvest::core
