// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "backend/backend_trial.hpp"

namespace harvest::test {
namespace {

constexpr std::uint64_t kBytes = 2 * kMiB;

/// Each piece of work on a stream sees what the one before it left, and not what the next one does.
void a_stream_keeps_its_order(Trial& t) {
  const StreamId s = t.stream();
  std::byte* a = t.segment(0, kBytes);
  std::byte* b = t.segment(1, kBytes);
  for (std::uint64_t round = 1; round <= 8; ++round) {
    const std::uint64_t bytes = round % 2 == 0 ? kBytes : 3'001;  // long before short, short before long
    std::byte* target = t.host().allocate(bytes);
    t.copy(s, {kHost, 0}, a, t.content(bytes, round), bytes);
    t.copy(s, {0, 1}, b, a, bytes);
    t.require(t.backend().fill(s, 0, a, bytes, 0xFF), "fill");
    t.copy(s, {1, kHost}, target, b, bytes);
    t.require(t.backend().fill(s, 1, b, bytes, 0xFE), "fill");
    t.finish(s);
    t.expect(t.host().holds(target, bytes, round), "work of one stream did not run in order");
  }
}

/// At the moment at which an event says complete, the bytes are there.
void an_event_is_not_early(Trial& t) {
  const StreamId s = t.stream();
  std::byte* a = t.segment(0, kBytes);
  for (std::uint64_t round = 1; round <= 8; ++round) {
    std::byte* target = t.host().allocate(kBytes);
    t.copy(s, {kHost, 0}, a, t.content(kBytes, round), kBytes);
    t.copy(s, {0, kHost}, target, a, kBytes);
    const EventId event = t.record(s);
    EventState state = t.backend().query_event(event);
    for (int i = 0; i < 1'000'000 && state == EventState::pending; ++i) {
      t.backend().sleep_until(t.backend().now_ns() + 5'000);
      state = t.backend().query_event(event);
    }
    t.require(state == EventState::complete, "an event never completes");
    t.expect(t.host().holds(target, kBytes, round), "an event was complete before its work");
    t.backend().release_event(event);
  }
}

void an_event_of_an_idle_stream_is_complete(Trial& t) {
  const StreamId s = t.stream(1);
  const EventId event = t.record(s);
  t.expect(t.backend().wait_event(event, kNever) == EventState::complete, "nothing to do, and not complete");
  t.expect(t.backend().query_event(event) == EventState::complete,
           "an event's state changed after it was complete");
  t.expect(t.backend().wait_event(event, 0) == EventState::complete,
           "a past deadline hides a complete event");
  t.backend().release_event(event);
}

/// Read after write over two streams; the event is released as soon as the wait was given.
void streams_wait_for_events(Trial& t) {
  const StreamId writer = t.stream(0), reader = t.stream(1);
  std::byte* a = t.segment(0, 8 * kBytes);
  std::byte* b = t.segment(1, 8 * kBytes);
  for (std::uint64_t round = 1; round <= 8; ++round) {
    std::byte* target = t.host().allocate(kBytes);
    std::byte* from = a + (round - 1) * kBytes;
    std::byte* to = b + (round - 1) * kBytes;
    t.copy(writer, {kHost, 0}, from, t.content(kBytes, round), kBytes);
    t.copy(writer, {0, 1}, to, from, kBytes);
    const EventId written = t.record(writer);
    t.require(t.backend().stream_wait(reader, written), "stream_wait");
    t.backend().release_event(written);
    t.copy(reader, {1, kHost}, target, to, kBytes);
    t.finish(reader);
    t.expect(t.host().holds(target, kBytes, round), "work after stream_wait ran before the event");
  }
}

/// Write after read over two streams: a slot is overwritten only when its reader is done.
void a_source_can_be_used_again_after_its_event(Trial& t) {
  const StreamId reader = t.stream(0), writer = t.stream(1);
  std::byte* a = t.segment(0, kBytes);
  for (std::uint64_t round = 1; round <= 8; ++round) {
    std::byte* target = t.host().allocate(kBytes);
    t.copy(reader, {kHost, 0}, a, t.content(kBytes, round), kBytes);
    t.copy(reader, {0, kHost}, target, a, kBytes);
    const EventId read = t.record(reader);
    t.require(t.backend().stream_wait(writer, read), "stream_wait");
    t.require(t.backend().fill(writer, 0, a, kBytes, 0x11), "fill");
    const EventId written = t.record(writer);
    t.require(t.backend().stream_wait(reader, written), "stream_wait");
    t.finish(reader);
    t.expect(t.host().holds(target, kBytes, round), "a source was overwritten while it was read");
    t.backend().release_event(read);
    t.backend().release_event(written);
  }
}

void waits_form_chains(Trial& t) {
  constexpr std::uint64_t kPiece = 100'000;
  std::vector<StreamId> streams;
  for (int i = 0; i < 6; ++i) streams.push_back(t.stream(i % 2));
  std::byte* a = t.segment(0, 7 * kPiece);
  t.copy(streams[0], {kHost, 0}, a, t.content(kPiece, 44), kPiece);
  for (std::size_t i = 0; i < 6; ++i) {
    if (i > 0) {
      const EventId before = t.record(streams[i - 1]);
      t.require(t.backend().stream_wait(streams[i], before), "stream_wait");
      t.backend().release_event(before);
    }
    t.copy(streams[i], {0, 0}, a + (i + 1) * kPiece, a + i * kPiece, kPiece);
  }
  std::byte* target = t.host().allocate(kPiece);
  t.copy(streams[5], {0, kHost}, target, a + 6 * kPiece, kPiece);
  t.finish(streams[5]);
  t.expect(t.host().holds(target, kPiece, 44), "a chain of waits broke");
}

void streams_are_told_apart(Trial& t) {
  Backend& backend = t.backend();
  std::set<StreamId> seen;
  for (int i = 0; i < 20; ++i) {
    const StreamId s = t.stream(i % 2);
    t.expect(s != StreamId::none && seen.insert(s).second, "a stream's id was used again");
    const Result<DeviceId> device = backend.stream_device(s);
    t.expect(device && *device == i % 2, "a stream is of another device");
    if (i % 3 != 0) continue;
    t.require(backend.destroy_stream(s), "destroy_stream");
    t.expect_error(backend.stream_device(s), ErrorCode::not_found, "the device of a destroyed stream");
    t.expect_error(backend.record_event(s), ErrorCode::not_found, "an event of a destroyed stream");
  }
  t.expect_error(backend.create_stream(77), ErrorCode::not_found, "a stream of an unknown device");
  t.expect_error(backend.create_stream(kHost), ErrorCode::not_found, "a stream of the host");
}

void a_destroyed_stream_finishes_its_work(Trial& t) {
  std::byte* a = t.segment(0, kBytes);
  std::byte* target = t.host().allocate(kBytes);
  const StreamId s = t.stream();
  t.copy(s, {kHost, 0}, a, t.content(kBytes, 6), kBytes);
  t.copy(s, {0, kHost}, target, a, kBytes);
  const EventId event = t.record(s);
  t.require(t.backend().destroy_stream(s), "destroy_stream");
  t.expect(t.backend().wait_event(event, kNever) == EventState::complete,
           "a destroyed stream's event never completes");
  t.expect(t.host().holds(target, kBytes, 6), "a destroyed stream's work was lost");
  t.backend().release_event(event);
}

void time_goes_forward(Trial& t) {
  Backend& backend = t.backend();
  const StreamId s = t.stream();
  std::byte* a = t.segment(0, kBytes);
  const std::byte* source = t.content(kBytes, 1);
  const TimeNs start = backend.now_ns();
  TimeNs last = start;
  for (int i = 0; i < 20; ++i) {
    t.copy(s, {kHost, 0}, a, source, kBytes);
    const EventId event = t.record(s);
    const TimeNs given = backend.now_ns();
    t.expect(given >= last, "the clock went back");
    const EventState state = backend.wait_event(event, given + 1'000);
    t.expect(state != EventState::pending || backend.now_ns() >= given + 1'000,
             "a wait ended before its deadline");
    t.expect(backend.wait_event(event, kNever) == EventState::complete, "a copy failed");
    t.expect(backend.now_ns() >= given, "the clock went back");
    last = backend.now_ns();
    backend.release_event(event);
  }
  t.expect(last > start, "work took no time at all");
  backend.sleep_until(last + 100'000);
  t.expect(backend.now_ns() >= last + 100'000, "a sleep ended early");
  const TimeNs woken = backend.now_ns();
  backend.sleep_until(last);
  t.expect(backend.now_ns() >= woken, "a sleep until the past turned the clock back");
}

}  // namespace

std::vector<Law> order_laws() {
  return {
      {"a_stream_keeps_its_order", a_stream_keeps_its_order},
      {"an_event_is_not_early", an_event_is_not_early},
      {"an_event_of_an_idle_stream_is_complete", an_event_of_an_idle_stream_is_complete},
      {"streams_wait_for_events", streams_wait_for_events},
      {"a_source_can_be_used_again_after_its_event", a_source_can_be_used_again_after_its_event},
      {"waits_form_chains", waits_form_chains},
      {"streams_are_told_apart", streams_are_told_apart},
      {"a_destroyed_stream_finishes_its_work", a_destroyed_stream_finishes_its_work},
      {"time_goes_forward", time_goes_forward},
  };
}

}  // namespace harvest::test
