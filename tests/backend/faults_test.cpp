// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <thread>
#include <vector>

#include "backend/simulation.hpp"

namespace harvest::test {
namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
constexpr std::uint64_t kBytes = 2 * kMiB;
constexpr DeviceId kReaders[] = {0, 1};

/// A stamped host range, a slot on GPU 1, and a stream.
struct Bench {
  explicit Bench(FaultPlan plan, std::uint64_t seed = 1)
      : backend(phantom("2xh100-nvl", std::move(plan), seed)) {
    backend->stamp(source, kBytes, 42);
  }
  EventState copy() {
    if (!copy_one(*backend, stream, {kHost, 1}, slot, source, kBytes)) return EventState::failed;
    return finish(*backend, stream);
  }
  bool arrived() { return backend->stamp_of(slot, kBytes) == 42u; }
  TimeNs timed_copy() {
    const TimeNs start = backend->now_ns();
    copy();
    return backend->now_ns() - start;
  }

  std::unique_ptr<SimulatedBackend> backend;
  StreamId stream = backend->create_stream(0).value();
  std::byte* source = backend->reserve_host_range(kBytes).value();
  std::byte* slot = backend->map_segment(1, kBytes, kReaders).value();
};

TEST(Faults, ARefusedCopyGivesNothing) {
  Bench bench({.refuse_copy = {.at = 1}});
  EXPECT_EQ(copy_one(*bench.backend, bench.stream, {kHost, 1}, bench.slot, bench.source, kBytes).error().code,
            ErrorCode::copy_failed);
  EXPECT_EQ(finish(*bench.backend, bench.stream), EventState::complete);
  EXPECT_EQ(bench.copy(), EventState::complete);
  EXPECT_TRUE(bench.arrived());
  EXPECT_EQ(bench.backend->counters().copy_batches_failed, 1u);
}

TEST(Faults, AFailureInFlightIsToldByTheNextEventAlone) {
  Bench bench({.fail_copy = {.at = 2}});
  EXPECT_EQ(bench.copy(), EventState::complete);
  ASSERT_TRUE(copy_one(*bench.backend, bench.stream, {kHost, 1}, bench.slot, bench.source, kBytes));
  ASSERT_TRUE(bench.backend->submit_kernel(bench.stream, 100));  // goes well, and does not hide it
  const EventId first = bench.backend->record_event(bench.stream).value();
  const EventId second = bench.backend->record_event(bench.stream).value();
  EXPECT_EQ(bench.backend->wait_event(second, kNever), EventState::complete);
  EXPECT_EQ(bench.backend->query_event(first), EventState::failed);
  EXPECT_FALSE(bench.arrived()) << "the destination is poison";
  EXPECT_EQ(bench.copy(), EventState::complete) << "the stream goes on";
  EXPECT_TRUE(bench.arrived());
}

TEST(Faults, ACorruptCopySaysNothing) {
  Bench bench({.corrupt_copy = {.at = 1}});
  EXPECT_EQ(bench.copy(), EventState::complete);
  EXPECT_FALSE(bench.arrived());
  EXPECT_EQ(bench.copy(), EventState::complete);
  EXPECT_TRUE(bench.arrived());
}

TEST(Faults, ASlowCopyRunsAtAFractionOfItsBandwidth) {
  Bench bench({.slow_copy = {.at = 2}, .slow_copy_factor = 8});
  const LinkInfo& link = bench.backend->machine().find_link(kHost, 1)->info;
  const double flow_ns = static_cast<double>(kBytes) / link.bandwidth_bytes_per_s * 1e9;
  const TimeNs normal = bench.timed_copy(), slow = bench.timed_copy();
  EXPECT_NEAR(static_cast<double>(slow - normal), 7 * flow_ns, 10);
  EXPECT_EQ(bench.timed_copy(), normal);
}

TEST(Faults, ALateEventHoldsUpTheEventsBehindItAndNotTheWork) {
  Bench bench({.late_event = {.at = 1}, .late_event_ns = 5'000'000});
  const EventId late = bench.backend->record_event(bench.stream).value();
  const TimeNs start = bench.backend->now_ns();
  ASSERT_TRUE(copy_one(*bench.backend, bench.stream, {kHost, 1}, bench.slot, bench.source, kBytes));
  const EventId behind = bench.backend->record_event(bench.stream).value();
  bench.backend->sleep_until(start + 1'000'000);
  EXPECT_TRUE(bench.arrived());
  EXPECT_EQ(bench.backend->query_event(late), EventState::pending);
  EXPECT_EQ(bench.backend->query_event(behind), EventState::pending);
  EXPECT_EQ(bench.backend->wait_event(behind, kNever), EventState::complete);
  EXPECT_EQ(bench.backend->now_ns(), start + 5'000'000);
  EXPECT_EQ(bench.backend->query_event(late), EventState::complete);
}

TEST(Faults, MapsFailOnTheDeviceAndOnTheHostApart) {
  const auto backend = phantom("2xh100-nvl", {.fail_map = {.at = 2}, .fail_host_map = {.at = 1}});
  std::byte memory[64];
  const std::uint64_t before = backend->query_memory(0).value().free_bytes;
  EXPECT_TRUE(backend->map_segment(0, kBytes, {}));
  EXPECT_EQ(backend->register_host(memory, 64).error().code, ErrorCode::out_of_memory);
  EXPECT_EQ(backend->map_segment(0, kBytes, {}).error().code, ErrorCode::out_of_memory);
  EXPECT_TRUE(backend->map_segment(0, kBytes, {}));
  EXPECT_TRUE(backend->register_host(memory, 64));
  EXPECT_TRUE(backend->map_segment(kHost, kBytes, {}));
  EXPECT_EQ(backend->query_memory(0).value().free_bytes, before - 2 * kBytes);
}

TEST(Faults, FreeCountsMayBeStaleAndQueriesSlow) {
  const auto backend = phantom("2xh100-nvl", {.slow_query = {.at = 2}, .stale_free_ns = 50'000'000});
  const std::uint64_t before = backend->query_memory(1).value().free_bytes;
  ASSERT_TRUE(backend->tenant_allocate(1, kGiB));
  const MemoryInfo stale = backend->query_memory(1).value();
  EXPECT_EQ(stale.free_bytes, before) << "the old sample";
  EXPECT_EQ(stale.query_cost_ns, 8'000'000);
  backend->sleep_until(backend->now_ns() + 50'000'000);
  EXPECT_EQ(backend->query_memory(1).value().free_bytes, before - kGiB);
}

TEST(Faults, ALinkThatGoesDownFailsWhatIsUnderWayAndRefusesMore) {
  Bench bench({});
  ASSERT_TRUE(copy_one(*bench.backend, bench.stream, {kHost, 1}, bench.slot, bench.source, kBytes));
  const EventId event = bench.backend->record_event(bench.stream).value();
  bench.backend->sleep_until(bench.backend->now_ns() + 20'000);
  ASSERT_TRUE(bench.backend->set_link_up(kHost, 1, false));
  EXPECT_EQ(bench.backend->query_event(event), EventState::failed) << "at once";
  EXPECT_EQ(copy_one(*bench.backend, bench.stream, {kHost, 1}, bench.slot, bench.source, kBytes).error().code,
            ErrorCode::unavailable);
  EXPECT_TRUE(copy_one(*bench.backend, bench.stream, {1, kHost}, bench.source, bench.slot, 64))
      << "the other way";
  EXPECT_EQ(finish(*bench.backend, bench.stream), EventState::complete);
  ASSERT_TRUE(bench.backend->set_link_up(kHost, 1, true));
  bench.backend->stamp(bench.source, kBytes, 42);
  EXPECT_EQ(bench.copy(), EventState::complete);
  EXPECT_TRUE(bench.arrived());
  EXPECT_EQ(bench.backend->set_link_up(0, 9, false).error().code, ErrorCode::not_found);
}

TEST(Faults, ALostDeviceTakesItsWorkAndItsMemory) {
  Bench bench({});
  const StreamId theirs = bench.backend->create_stream(1).value();
  ASSERT_TRUE(copy_one(*bench.backend, bench.stream, {kHost, 1}, bench.slot, bench.source, kBytes));
  ASSERT_TRUE(
      copy_one(*bench.backend, bench.stream, {1, kHost}, bench.source, bench.slot, kBytes));  // queued
  const EventId event = bench.backend->record_event(bench.stream).value();
  ASSERT_TRUE(bench.backend->lose_device(1));
  EXPECT_EQ(bench.backend->wait_event(event, kNever), EventState::failed);
  EXPECT_EQ(copy_one(*bench.backend, bench.stream, {kHost, 1}, bench.slot, bench.source, 8).error().code,
            ErrorCode::unavailable);
  EXPECT_EQ(bench.backend->fill(theirs, 1, bench.slot, 8, 0).error().code, ErrorCode::unavailable);
  EXPECT_EQ(bench.backend->query_memory(1).error().code, ErrorCode::unavailable);
  EXPECT_EQ(bench.backend->map_segment(1, kBytes, {}).error().code, ErrorCode::unavailable);
  EXPECT_EQ(bench.backend->create_stream(1).error().code, ErrorCode::unavailable);
  EXPECT_EQ(bench.backend->unmap_segment(bench.slot).error().code, ErrorCode::unavailable);
  EXPECT_EQ(bench.backend->unmap_segment(bench.slot).error().code, ErrorCode::invalid_argument)
      << "forgotten";
  EXPECT_EQ(finish(*bench.backend, bench.stream), EventState::complete) << "the others go on";
  EXPECT_EQ(bench.backend->lose_device(kHost).error().code, ErrorCode::not_found);
}

TEST(Faults, AScheduleHappensOnTime) {
  using Kind = ScheduledFault::Kind;
  const auto backend = phantom(
      "2xh100-nvl",
      {.schedule = {{.at_ns = 3'000'000, .kind = Kind::tenant_free, .device = 1, .bytes = 5 * kGiB},
                    {.at_ns = 1'000'000, .kind = Kind::tenant_allocate, .device = 1, .bytes = 20 * kGiB},
                    {.at_ns = 2'000'000, .kind = Kind::tenant_allocate, .device = 1, .bytes = 90 * kGiB},
                    {.at_ns = 4'000'000, .kind = Kind::link_down, .route = {0, 1}},
                    {.at_ns = 5'000'000, .kind = Kind::lose_device, .device = 1}}});
  EXPECT_EQ(backend->tenant_bytes(1), 0u);
  backend->sleep_until(1'000'000);
  EXPECT_EQ(backend->tenant_bytes(1), 20 * kGiB);
  backend->sleep_until(3'500'000);
  EXPECT_EQ(backend->tenant_bytes(1), 15 * kGiB) << "90 GiB did not fit";
  EXPECT_EQ(backend->counters().tenant_allocations_failed, 1u);
  const StreamId stream = backend->create_stream(0).value();
  std::byte* a = backend->map_segment(0, kBytes, {}).value();
  std::byte* b = backend->map_segment(1, kBytes, {}).value();
  backend->sleep_until(4'500'000);
  EXPECT_EQ(copy_one(*backend, stream, {0, 1}, b, a, 64).error().code, ErrorCode::unavailable);
  EXPECT_TRUE(copy_one(*backend, stream, {1, 0}, a, b, 64));
  backend->sleep_until(5'000'000);
  EXPECT_EQ(backend->query_memory(1).error().code, ErrorCode::unavailable);
}

// --- the same in virtual and in real time
// -------------------------------------------------------------------

class FaultsInBothTimes : public testing::TestWithParam<SimulatedTime> {
 protected:
  std::unique_ptr<SimulatedBackend> make(FaultPlan plan) {
    return make_simulated_backend(
               machine_from_preset("2xh100-nvl").value(),
               {.bytes = SimulatedBytes::phantom, .time = GetParam(), .seed = 3, .faults = std::move(plan)})
        .value();
  }
};

TEST_P(FaultsInBothTimes, AnEventTellsOfTheWorkSinceTheOneBeforeIt) {
  const auto backend = make({.fail_copy = {.at = 2}});
  const StreamId stream = backend->create_stream(0).value(), other = backend->create_stream(1).value();
  std::byte* host = backend->reserve_host_range(kBytes).value();
  std::byte* slot = backend->map_segment(1, 4 * kBytes, kReaders).value();
  backend->stamp(host, kBytes, 42);
  std::vector<EventId> events;
  for (std::uint64_t i = 0; i < 4; ++i) {  // the second of four fails
    ASSERT_TRUE(copy_one(*backend, stream, {kHost, 1}, slot + i * kBytes, host, kBytes));
    if (i == 1) {
      ASSERT_TRUE(backend->fill(stream, 1, slot + i * kBytes, 8, 0)) << "goes well, and does not hide it";
    }
    events.push_back(backend->record_event(stream).value());
    ASSERT_TRUE(backend->stream_wait(other, events.back()));
  }
  EXPECT_EQ(finish(*backend, other), EventState::complete) << "a wait for a failure is not one";
  for (std::uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(backend->query_event(events[i]), i == 1 ? EventState::failed : EventState::complete) << i;
    EXPECT_EQ(backend->wait_event(events[i], 0), backend->query_event(events[i])) << "it stays so";
    EXPECT_EQ(backend->stamp_of(slot + i * kBytes, kBytes) == 42u, i != 1) << i;
  }
}

TEST_P(FaultsInBothTimes, ALinkThatGoesDownFailsWhatStandsInLine) {
  const auto backend = make({});
  const StreamId stream = backend->create_stream(0).value();
  std::byte* host = backend->reserve_host_range(kBytes).value();
  std::byte* slot = backend->map_segment(1, kBytes, kReaders).value();
  ASSERT_TRUE(backend->submit_kernel(stream, 20'000'000));
  ASSERT_TRUE(copy_one(*backend, stream, {kHost, 1}, slot, host, kBytes));
  const EventId event = backend->record_event(stream).value();
  ASSERT_TRUE(backend->set_link_up(kHost, 1, false));
  EXPECT_EQ(backend->wait_event(event, kNever), EventState::failed);
  EXPECT_EQ(copy_one(*backend, stream, {kHost, 1}, slot, host, kBytes).error().code, ErrorCode::unavailable);
  EXPECT_EQ(finish(*backend, stream), EventState::complete) << "what was refused is no failure of the stream";
  EXPECT_EQ(backend->counters().copy_batches_failed, 1u);
}

TEST_P(FaultsInBothTimes, ALostDeviceEndsItsEndlessWorkAndReleasesItsMemory) {
  const auto backend = make({});
  const StreamId stream = backend->create_stream(1).value();
  std::byte* slot = backend->map_segment(1, kBytes, {}).value();
  ASSERT_TRUE(backend->submit_kernel(stream, kNever));
  ASSERT_TRUE(backend->fill(stream, 1, slot, kBytes, 1));
  const EventId event = backend->record_event(stream).value();
  ASSERT_TRUE(backend->lose_device(1));
  EXPECT_EQ(backend->wait_event(event, kNever), EventState::failed);
  EXPECT_EQ(backend->unmap_segment(slot).error().code, ErrorCode::unavailable) << "and does not stop us";
  EXPECT_EQ(backend->mapped_bytes(1), 0u);
}

/// Unmapping right after an event says that the work is over, failed or not, is always in time.
TEST_P(FaultsInBothTimes, MemoryMayGoAsSoonAsTheEventIsThere) {
  const auto backend = make({.refuse_copy = {.rate = 0.2}, .fail_copy = {.rate = 0.3}});
  const StreamId stream = backend->create_stream(0).value();
  std::byte* host = backend->reserve_host_range(kBytes).value();
  for (int i = 0; i < 200; ++i) {
    std::byte* slot = backend->map_segment(1, kBytes, kReaders).value();
    (void)copy_one(*backend, stream, {kHost, 1}, slot, host, kBytes);
    const EventId event = backend->record_event(stream).value();
    while (backend->query_event(event) == EventState::pending)
      backend->sleep_until(backend->now_ns() + 5'000);
    ASSERT_TRUE(backend->unmap_segment(slot));
    backend->release_event(event);
  }
  const SimulationCounters counters = backend->counters();
  EXPECT_EQ(counters.segments_unmapped, 200u);
  EXPECT_GT(counters.copy_batches_failed, 0u);
  EXPECT_LT(counters.copy_batches_failed, 200u);
}

/// In real time a late event delays its stream's work too; in both no event overtakes it on its stream.
TEST_P(FaultsInBothTimes, ALateEventIsNotOvertaken) {
  const auto backend = make({.late_event = {.at = 1}, .late_event_ns = 20'000'000});
  const StreamId stream = backend->create_stream(0).value(), other = backend->create_stream(1).value();
  const EventId late = backend->record_event(stream).value();
  const EventId behind = backend->record_event(stream).value();
  ASSERT_TRUE(backend->stream_wait(other, behind));
  EXPECT_EQ(finish(*backend, other), EventState::complete);
  EXPECT_EQ(backend->query_event(behind), EventState::complete);
  EXPECT_EQ(backend->query_event(late), EventState::complete) << "events of one stream complete in order";
  EXPECT_GE(backend->now_ns(), 20'000'000);
}

TEST_P(FaultsInBothTimes, AScheduleRuns) {
  using Kind = ScheduledFault::Kind;
  const auto backend =
      make({.schedule = {{.at_ns = 2'000'000, .kind = Kind::link_up, .route = {0, 1}},
                         {.at_ns = 1'000'000, .kind = Kind::link_down, .route = {0, 1}},
                         {.at_ns = 3'000'000, .kind = Kind::tenant_allocate, .device = 1, .bytes = kGiB}}});
  while (backend->tenant_bytes(1) == 0) backend->sleep_until(backend->now_ns() + 100'000);
  EXPECT_GE(backend->now_ns(), 3'000'000);
  EXPECT_EQ(backend->tenant_bytes(1), kGiB);
  const StreamId stream = backend->create_stream(0).value();
  std::byte* a = backend->map_segment(0, kBytes, {}).value();
  std::byte* b = backend->map_segment(1, kBytes, {}).value();
  EXPECT_TRUE(copy_one(*backend, stream, {0, 1}, b, a, 64)) << "down, and up again";
  EXPECT_EQ(finish(*backend, stream), EventState::complete);
}

/// Several threads wait for one event, with and without a deadline, while others give work.
TEST_P(FaultsInBothTimes, ManyThreadsMayWaitForOneEvent) {
  const auto backend = make({});
  const StreamId stream = backend->create_stream(0).value();
  std::byte* host = backend->reserve_host_range(kBytes).value();
  std::byte* slot = backend->map_segment(1, kBytes, kReaders).value();
  backend->stamp(host, kBytes, 42);
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(copy_one(*backend, stream, {kHost, 1}, slot, host, kBytes));
    const EventId event = backend->record_event(stream).value();
    std::array<EventState, 4> states{};
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < states.size(); ++i)
      threads.emplace_back([&, i] {
        const TimeNs deadline = i < 2 ? kNever : backend->now_ns() + 1'000;
        states[i] = backend->wait_event(event, deadline);
        if (states[i] == EventState::pending) {
          EXPECT_GE(backend->now_ns(), deadline);
        }
        const StreamId own = backend->create_stream(1).value();
        EXPECT_EQ(finish(*backend, own), EventState::complete);
        EXPECT_TRUE(backend->destroy_stream(own));
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(states[0], EventState::complete);
    EXPECT_EQ(states[1], EventState::complete);
    EXPECT_EQ(backend->stamp_of(slot, kBytes), 42u);
    backend->release_event(event);
  }
}

INSTANTIATE_TEST_SUITE_P(Times, FaultsInBothTimes,
                         testing::Values(SimulatedTime::virtual_time, SimulatedTime::real_time),
                         [](const auto& time) {
                           return time.param == SimulatedTime::virtual_time ? "virtual_time" : "real_time";
                         });

// --- repeatability
// --------------------------------------------------------------------------------------------

/// Many copies under random faults; what became of each, and the trace.
struct Outcome {
  std::vector<EventState> states;
  std::uint64_t trace = 0;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};
Outcome run(std::uint64_t seed) {
  Bench bench({.refuse_copy = {.rate = 0.1},
               .fail_copy = {.rate = 0.1},
               .slow_copy = {.rate = 0.2},
               .late_event = {.rate = 0.1}},
              seed);
  Outcome outcome;
  for (int i = 0; i < 300; ++i) outcome.states.push_back(bench.copy());
  outcome.trace = bench.backend->trace_hash();
  return outcome;
}

TEST(Determinism, TheSameSeedGivesTheSameTraceAndAnotherDoesNot) {  // I11
  const Outcome first = run(11);
  EXPECT_EQ(first, run(11));
  EXPECT_NE(first.trace, run(12).trace);
  const auto failed = std::count(first.states.begin(), first.states.end(), EventState::failed);
  EXPECT_GT(failed, 30) << "a fifth of 300, at random";
  EXPECT_LT(failed, 90);
}

TEST(Determinism, TheTraceSeesWhatWasAskedAndWhen) {
  const auto traced = [](auto&& body) {
    Bench bench({});
    body(bench);
    return bench.backend->trace_hash();
  };
  const std::array traces = {
      traced([](Bench&) {}),
      traced([](Bench& bench) { bench.copy(); }),
      traced([](Bench& bench) {
        bench.backend->sleep_until(bench.backend->now_ns() + 1);
        bench.copy();
      }),
      traced([](Bench& bench) {
        EXPECT_TRUE(
            copy_one(*bench.backend, bench.stream, {kHost, 1}, bench.slot + 1, bench.source, kBytes - 1));
        finish(*bench.backend, bench.stream);
      }),
      traced([](Bench& bench) { EXPECT_TRUE(bench.backend->tenant_allocate(0, 1)); }),
  };
  for (std::size_t i = 0; i < traces.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(traces[i], traces[j]) << i << " and " << j;
}

}  // namespace
}  // namespace harvest::test
