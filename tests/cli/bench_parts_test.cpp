// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/simulated_backend.hpp>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "backend/forwarding_backend.hpp"
#include "cli/bench/fetch_world.hpp"
#include "cli/bench/link.hpp"
#include "cli/bench/pattern.hpp"
#include "cli/bench/scatter.hpp"
#include "cli/bench/timing.hpp"

/// The parts of `harvest bench`: that they see what goes wrong, and time what they say.
namespace harvest::cli::bench {
namespace {

std::unique_ptr<SimulatedBackend> machine(const FaultPlan& faults = {},
                                          SimulatedTime time = SimulatedTime::virtual_time) {
  return std::move(
      *make_simulated_backend(*machine_from_preset("2xh100-nvl"), {.time = time, .faults = faults}));
}

FaultPlan corrupt_copy(std::uint64_t at) {
  FaultPlan faults;
  faults.corrupt_copy.at = at;
  return faults;
}

TEST(BenchTiming, SpreadIsOfTheSortedValues) {
  const Spread odd = spread_of({3, 1, 2});
  EXPECT_EQ(odd.median, 2);
  EXPECT_EQ(odd.least, 1);
  EXPECT_EQ(odd.most, 3);
  EXPECT_EQ(odd.p99, 3);
  EXPECT_EQ(spread_of({4, 1, 2, 3}).median, 2.5);
  std::vector<double> many(200);
  std::iota(many.begin(), many.end(), 1);
  EXPECT_EQ(spread_of(many).p99, 198) << "99 % of 200 are not above it";
}

TEST(BenchTiming, GateLeavesOutWhatStandsBeforeTheWork) {
  const auto backend = machine();
  auto gate = Gate::create(*backend, 0);
  ASSERT_TRUE(gate);
  const auto stream = Stream::create(*backend, 0);
  ASSERT_TRUE(stream);
  ASSERT_TRUE(backend->submit_kernel(stream->id(), 5'000'000));
  bool was_under_way = false;
  const auto run = gate->time(
      *stream, [&] { return backend->submit_kernel(stream->id(), 1'000'000); },
      [&]() -> Status {
        backend->sleep_until(backend->now_ns() + 400'000);
        was_under_way = true;
        return {};
      });
  ASSERT_TRUE(run);
  EXPECT_EQ(run->duration_ns, 1'000'000);
  EXPECT_TRUE(run->gated);
  EXPECT_TRUE(run->outlasted);
  EXPECT_TRUE(was_under_way);
  const auto too_short = gate->time(
      *stream, [&] { return backend->submit_kernel(stream->id(), 1'000'000); },
      [&]() -> Status {
        backend->sleep_until(backend->now_ns() + 2'000'000);
        return {};
      });
  ASSERT_TRUE(too_short);
  EXPECT_FALSE(too_short->outlasted);
}

TEST(BenchTiming, GateGrowsUntilAllIsSubmittedBehindIt) {
  const auto backend = machine();
  auto gate = Gate::create(*backend, 0);
  ASSERT_TRUE(gate);
  const auto stream = Stream::create(*backend, 0);
  ASSERT_TRUE(stream);
  int submitted = 0;
  // A submitter that takes 3 ms: 160 MiB of gate, after several that were too short.
  const auto slow = [&]() -> Status {
    ++submitted;
    backend->sleep_until(backend->now_ns() + 3'000'000);
    return backend->submit_kernel(stream->id(), 1'000'000);
  };
  const auto run = gate->time(*stream, slow);
  ASSERT_TRUE(run);
  EXPECT_TRUE(run->gated);
  EXPECT_EQ(run->duration_ns, 1'000'000) << "not the submitter's 3 ms";
  EXPECT_GT(submitted, 1);
  submitted = 0;
  ASSERT_TRUE(gate->time(*stream, slow));
  EXPECT_EQ(submitted, 1) << "what was needed once is kept";
}

/// A machine in virtual time that looks like a real one: asking takes a microsecond, and once, at the `at`-th
/// time, the asker is taken away for 30 ms.
class AbsentMinded final : public test::ForwardingBackend {
 public:
  AbsentMinded(Backend& inner, int at) : ForwardingBackend(inner), info_(inner.info()), at_(at) {
    info_.virtual_time = false;
  }
  const BackendInfo& info() const override { return info_; }
  EventState query_event(EventId event) override {
    const EventState state = ForwardingBackend::query_event(event);
    inner_.sleep_until(inner_.now_ns() + (++asked_ == at_ ? 30'000'000 : 1'000));
    return state;
  }

 private:
  BackendInfo info_;
  int at_;
  int asked_ = 0;
};

TEST(BenchTiming, RepeatsARunWhoseBeginOrEndWasSeenLate) {
  constexpr TimeNs kWorkNs = 10'000'000;
  for (const int at : {2, 3, 4, 50, 500}) {
    const auto backend = machine();
    AbsentMinded host(*backend, at);
    auto gate = Gate::create(host, 0);
    const auto stream = Stream::create(host, 0);
    ASSERT_TRUE(gate && stream);
    const auto run = gate->time(*stream, [&] { return backend->submit_kernel(stream->id(), kWorkNs); });
    ASSERT_TRUE(run);
    EXPECT_NEAR(static_cast<double>(run->duration_ns), kWorkNs, kWorkNs * .02) << at;
    EXPECT_LT(run->doubt_ns, kWorkNs / 10) << at;
  }
}

TEST(BenchTiming, ErrorsOfTheWorkAreTold) {
  const auto backend = machine();
  auto gate = Gate::create(*backend, 0);
  const auto stream = Stream::create(*backend, 0);
  const auto refused = gate->time(*stream, [] { return fail(ErrorCode::unavailable, "no"); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::unavailable);
  FaultPlan faults;
  faults.fail_copy.at = 2;  // the first is the gate
  backend->set_faults(faults);
  auto target = Segment::map(*backend, 0, 4096);
  auto source = Segment::map(*backend, kHost, 4096);
  const auto failed = gate->time(*stream, [&] {
    return stream->copy({kHost, 0}, target->data(), source->data(), 4096);
  });
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::copy_failed);
}

TEST(BenchPattern, TellsEveryPlaceAndSeedApart) {
  std::vector<std::byte> bytes(1003);
  write_pattern(bytes.data(), bytes.size(), 7);
  EXPECT_EQ(count_wrong(bytes.data(), bytes.size(), 7), 0U);
  EXPECT_GT(count_wrong(bytes.data(), bytes.size(), 8), 900U);
  EXPECT_EQ(count_wrong(bytes.data() + 64, bytes.size() - 64, 7, 64), 0U);
  EXPECT_GT(count_wrong(bytes.data() + 64, bytes.size() - 64, 7, 72), 900U) << "shifted";
  bytes[1002] ^= std::byte{1};
  bytes[500] ^= std::byte{1};
  EXPECT_EQ(count_wrong(bytes.data(), bytes.size(), 7), 2U) << "the last bytes too";
}

TEST(BenchScatter, LeavesNoNeighboursTogether) {
  for (const std::uint64_t n : {1ULL, 2ULL, 3ULL, 4ULL, 5ULL, 16ULL, 100ULL, 4096ULL}) {
    auto order = scattered_order(n);
    for (std::uint64_t i = 0; n > 2 && i + 1 < n; ++i)
      EXPECT_NE(order[i] + 1, order[i + 1]) << n << " at " << i;
    std::sort(order.begin(), order.end());
    for (std::uint64_t i = 0; i < n; ++i) EXPECT_EQ(order[i], i);
  }
}

// Each meter must see one copy that arrives with other bytes, whichever of its copies that is. The patterns'
// own copies to the device are among them: a pattern that did not get there is no pattern either.

TEST(BenchLink, SeesAWrongByteInAnyRun) {
  for (const Route route : {Route{kHost, 0}, Route{1, 0}, Route{0, kHost}}) {
    int seen = 0;
    for (std::uint64_t at = 1; at <= 12; ++at) {
      const auto backend = machine();
      auto meter = LinkMeter::create(*backend, route, 1 << 20);
      ASSERT_TRUE(meter);
      const auto right = meter->measure(1 << 20, 1);
      ASSERT_TRUE(right);
      EXPECT_EQ(right->wrong_bytes, 0U);
      backend->set_faults(corrupt_copy(at));
      const auto figure = meter->measure(1 << 20, 3);
      ASSERT_TRUE(figure);
      seen += figure->wrong_bytes > 0 ? 1 : 0;
    }
    EXPECT_GE(seen, 3) << "the three timed runs at least; gates and the warm-up hold nothing to compare";
  }
}

TEST(BenchScatter, SeesAWrongByte) {
  const auto backend = machine();
  auto meter = ScatterMeter::create(*backend, {1, 0}, 0, 1 << 20);
  ASSERT_TRUE(meter);
  const auto rate = meter->bytes_per_s({32 << 10, 16}, 1);
  ASSERT_TRUE(rate);
  EXPECT_GT(*rate, 1e9);
  backend->set_faults(corrupt_copy(4));  // gate, warm-up, gate, the run
  const auto wrong = meter->bytes_per_s({32 << 10, 16}, 1);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, ErrorCode::copy_failed);
  EXPECT_THAT(wrong.error().message, ::testing::HasSubstr("bytes are wrong"));
}

TEST(BenchFetch, SeesAWrongByteInEveryWayToRead) {
  using Read = std::function<Status(FetchWorld&)>;
  const std::vector<std::pair<Read, std::uint64_t>> reads{
      {[](FetchWorld& world) { return world.fetch_gated(1).map([](const GatedRun&) {}); }, 2},
      {[](FetchWorld& world) { return world.fetch_from_call().map([](TimeNs) {}); }, 1},
      {[](FetchWorld& world) { return world.naive(false).map([](TimeNs) {}); }, 3},
      {[](FetchWorld& world) { return world.naive(true).map([](TimeNs) {}); }, 3}};
  for (const Tier tier : {Tier::peer, Tier::host})
    for (const auto& [read, at] : reads) {
      const auto backend = machine();
      auto world = FetchWorld::create(*backend, 0, 1, {tier, 64 << 10, 8, true});
      ASSERT_TRUE(world) << world.error().message;
      ASSERT_TRUE(read(**world));
      EXPECT_EQ((*world)->wrong_bytes(), 0U);
      backend->set_faults(corrupt_copy(at));
      ASSERT_TRUE(read(**world));
      EXPECT_GT((*world)->wrong_bytes(), 0U);
    }
}

TEST(BenchFetch, RefusesFiguresOfAnotherTier) {
  const auto backend = machine();
  auto world = FetchWorld::create(*backend, 0, 1, {Tier::peer, 64 << 10, 8, false});
  ASSERT_TRUE(world);
  ASSERT_TRUE(backend->set_link_up(1, 0, false));
  const auto run = (*world)->fetch_from_call();
  ASSERT_FALSE(run);
  EXPECT_THAT(run.error().message, ::testing::HasSubstr("peer"));
}

TEST(BenchWorld, WorksInRealTimeToo) {
  const auto backend = machine({}, SimulatedTime::real_time);
  auto meter = LinkMeter::create(*backend, {1, 0}, 1 << 20);
  ASSERT_TRUE(meter);
  const auto figure = meter->measure(1 << 20, 2);
  ASSERT_TRUE(figure) << figure.error().message;
  EXPECT_EQ(figure->wrong_bytes, 0U);
  EXPECT_GT(figure->copies_per_run, 0U);
}

}  // namespace
}  // namespace harvest::cli::bench
