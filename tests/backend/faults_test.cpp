// SPDX-License-Identifier: Apache-2.0
#include <array>

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

TEST(Faults, ALateEventHoldsUpWhoWaitsForItAndNotItsStream) {
  Bench bench({.late_event = {.at = 1}, .late_event_ns = 5'000'000});
  const EventId late = bench.backend->record_event(bench.stream).value();
  const TimeNs start = bench.backend->now_ns();
  EXPECT_EQ(bench.copy(), EventState::complete);
  EXPECT_LT(bench.backend->now_ns(), start + 1'000'000);
  EXPECT_EQ(bench.backend->query_event(late), EventState::pending);
  EXPECT_EQ(bench.backend->wait_event(late, kNever), EventState::complete);
  EXPECT_EQ(bench.backend->now_ns(), start + 5'000'000);
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
