// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <utility>

#include "backend/forwarding_backend.hpp"
#include "core/world.hpp"

/// Orders of events that are rare, and that once went wrong.
namespace harvest::testing {
namespace {

/// A reclaim may be fulfilled by one large segment while a smaller one, fenced for it too, still holds an
/// object that had nowhere to go. That object moves to a peer later, when no reclaim is open any more.
TEST(ReclaimTest, WhatStaysInAFencedSegmentMovesWhenItsReclaimIsOver) {
  PeerCacheConfig config = small_config();
  config.host_budget_bytes = 0;
  config.peer_budget_bytes = 12 * MiB;
  config.segment_min_bytes = 2 * MiB;
  config.segment_max_bytes = 2 * MiB;
  config.peers = {1, 2};
  World world(config, {}, "dgx-h100");
  // Fill both peers: on each a small segment that is cold, and a large one that is hot.
  const std::uint64_t small = 2 * MiB;
  const std::uint64_t large = 10 * MiB;
  ASSERT_TRUE(world.put(1, 1, large, backed_by(Backing::lossy)));
  ASSERT_TRUE(world.put(2, 1, large, backed_by(Backing::lossy)));
  ASSERT_TRUE(world.put(3, 1, small, backed_by(Backing::spill)));
  ASSERT_TRUE(world.put(4, 1, small, backed_by(Backing::spill)));
  world.settle();
  for (int i = 0; i < 8; ++i) {
    world.fetch(1, 1, large);
    world.fetch(2, 1, large);
    world.cache->poll();
  }
  ASSERT_EQ(world.backend->mapped_bytes(1), small + large);
  ASSERT_EQ(world.backend->mapped_bytes(2), small + large);

  const auto report = world.cache->reclaim(1, small + 1, world.backend->now_ns() + 100'000'000);
  ASSERT_TRUE(report.has_value());
  ASSERT_TRUE(report->finished);
  ASSERT_EQ(report->lost_bytes, large);
  ASSERT_EQ(world.backend->mapped_bytes(1), small) << "the spill object has nowhere to go";

  // When the peer may grow again, there is somewhere to go.
  world.pass_time(100'000'000);
  world.audit();
  EXPECT_EQ(world.fetch(3, 1, small), Tier::peer);
  EXPECT_EQ(world.fetch(4, 1, small), Tier::peer);
  EXPECT_EQ(world.count(CacheEvent::Kind::spilled), 1U) << "moved once, and linked";
  EXPECT_EQ(world.backend->mapped_bytes(1), small) << "the fenced segment went back";
}

/// Calls something between the end of a wait and the return to who waited, as another thread may; and answers
/// of one device that it is lost, from a given question on.
class InterferingBackend final : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  EventState wait_event(EventId event, TimeNs deadline_ns) override {
    const EventState state = inner_.wait_event(event, deadline_ns);
    if (after_next_wait) std::exchange(after_next_wait, nullptr)();
    return state;
  }
  Result<MemoryInfo> query_memory(DeviceId device) override {
    if (device == losing && questions_left-- <= 0) return fail(ErrorCode::unavailable, "the device is lost");
    return inner_.query_memory(device);
  }
  std::function<void()> after_next_wait;
  DeviceId losing = kHost;
  int questions_left = 0;
};

/// A reader asks whether the copy that it read was ever written. That the same generation is in the same tier
/// by then says nothing: it may be another copy, on another peer.
TEST(FetchTest, ACopyThatCameBackDoesNotVouchForTheOneThatWasRead) {
  const auto machine = std::move(*make_simulated_backend(*machine_from_preset("dgx-h100")));
  InterferingBackend backend(*machine);
  PeerCacheConfig config = small_config();
  config.peers = {1, 2};
  const auto cache = std::move(*PeerCache::create(backend, config));
  const StreamId stream = *backend.create_stream(0);
  std::byte* source = *backend.map_segment(0, 2 * MiB, {});
  std::byte* destination = source + MiB;
  const std::vector<std::byte> bytes = content(1, 1, MiB);
  const Copy upload{source, bytes.data(), MiB};
  ASSERT_TRUE(backend.copy(stream, {kHost, 0}, {&upload, 1}).has_value());

  FaultPlan plan;  // the write to the host works, the one to the peer fails on its way
  plan.fail_copy.at = 2;
  machine->set_faults(plan);
  PutOptions options = backed_by(Backing::managed_host);
  options.source_device = 0;
  options.stream = stream;
  ASSERT_TRUE(cache->put(1, source, MiB, options).has_value());
  ASSERT_EQ(cache->locate(1), Tier::peer);
  backend.after_next_wait = [&] {
    cache->poll();
    EXPECT_EQ(cache->locate(1), Tier::host) << "the copy that failed is hidden";
    cache->poll();  // and its peer out of service
    const Key key = 1;
    static_cast<void>(cache->prefetch({&key, 1}, Tier::peer));
    for (int i = 0; i < 10; ++i) {
      backend.sleep_until(backend.now_ns() + 1'000'000);
      cache->poll();
    }
  };
  FetchItem item;
  item.key = 1;
  item.destination = destination;
  item.capacity_bytes = MiB;
  ASSERT_TRUE(cache->fetch_and_wait({&item, 1}, stream).has_value());
  ASSERT_EQ(item.outcome, ErrorCode::ok);
  std::vector<std::byte> arrived(MiB);
  const Copy download{arrived.data(), destination, MiB};
  ASSERT_TRUE(backend.copy(stream, {0, kHost}, {&download, 1}).has_value());
  backend.wait_event(*backend.record_event(stream), kNever);
  EXPECT_EQ(arrived, bytes);
}

/// Looking for room asks the drivers, and may so find that the very peer is lost whose object is to be moved.
TEST(ReclaimTest, AMoveIsNotBegunForAnObjectThatIsLostWhileRoomIsSought) {
  const auto machine = std::move(*make_simulated_backend(*machine_from_preset("dgx-h100")));
  InterferingBackend backend(*machine);
  PeerCacheConfig config = small_config();
  config.host_budget_bytes = 0;
  config.peer_budget_bytes = 12 * MiB;
  config.segment_min_bytes = 2 * MiB;
  config.segment_max_bytes = 2 * MiB;
  config.peers = {1, 2};
  config.placement = "fairness";  // the peer that is used less is asked first
  std::size_t lost = 0;
  config.on_event = [&](const CacheEvent& event) { lost += event.kind == CacheEvent::Kind::lost ? 1 : 0; };
  const auto cache = std::move(*PeerCache::create(backend, config));
  const std::uint64_t small = 2 * MiB;
  const std::uint64_t large = 10 * MiB;
  const std::vector<std::byte> bytes = content(1, 1, large);
  // On each peer a small segment and a large one; on the first a reclaim takes the large one, and fences
  // both.
  for (const std::uint64_t key : {1, 2})
    ASSERT_TRUE(cache->put(key, bytes.data(), large, backed_by(Backing::lossy)));
  for (const std::uint64_t key : {3, 4})
    ASSERT_TRUE(cache->put(key, bytes.data(), small, backed_by(Backing::spill)));
  ASSERT_TRUE(cache->settle(backend.now_ns() + 1'000'000'000));
  std::byte* staging = *backend.map_segment(0, large, {});
  const StreamId stream = *backend.create_stream(0);
  for (int i = 0; i < 8; ++i) {
    for (const std::uint64_t key : {1, 2}) {
      FetchItem item;
      item.key = key;
      item.destination = staging;
      item.capacity_bytes = large;
      ASSERT_TRUE(cache->fetch_and_wait({&item, 1}, stream));
    }
    cache->poll();
  }
  const auto report = cache->reclaim(1, small + 1, backend.now_ns() + 100'000'000);
  ASSERT_TRUE(report && report->finished);
  ASSERT_EQ(machine->mapped_bytes(1), small) << "what is fenced outlasts its reclaim";
  ASSERT_EQ(lost, 1U);
  ASSERT_TRUE(cache->erase(4));
  backend.sleep_until(backend.now_ns() + 2 * config.pressure.regrow_delay_ns);

  // The sample finds the first peer well; the question for its room does not.
  backend.losing = 1;
  backend.questions_left = 1;
  cache->poll();
  EXPECT_EQ(lost, 2U);
  cache->poll();
  for (const PoolStats& pool : cache->stats().pools)
    EXPECT_EQ(pool.in_service, pool.device != 1) << pool.device << ": " << pool.out_of_service_reason;
}

/// The deadline of a reclaim may pass in a callback, after the round of work in which it was told. The report
/// is of a look at what is there by then.
TEST(ReclaimTest, WhatIsLateIsToldThoughACallbackLetTheDeadlinePass) {
  const auto backend = std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")));
  PeerCacheConfig config = small_config();
  TimeNs deadline = 0;
  std::size_t passed = 0;
  config.on_event = [&](const CacheEvent& event) {
    if (event.kind != CacheEvent::Kind::spilled || backend->now_ns() >= deadline) return;
    ++passed;
    backend->sleep_until(deadline);
  };
  const auto cache = std::move(*PeerCache::create(*backend, std::move(config)));
  const std::vector<std::byte> bytes = content(1, 1, 4 * MiB);
  ASSERT_TRUE(cache->put(1, bytes.data(), 4 * MiB, backed_by(Backing::lossy)));
  ASSERT_TRUE(cache->put(2, bytes.data(), 4 * MiB, backed_by(Backing::spill)));
  const Lease lease = cache->acquire(1, *backend->create_stream(0));
  ASSERT_EQ(lease.tier(), Tier::peer);
  ASSERT_EQ(backend->mapped_bytes(1), 8 * MiB);

  deadline = backend->now_ns() + 100'000'000;
  const auto report = cache->reclaim(1, 8 * MiB, deadline);
  ASSERT_TRUE(report.has_value());
  ASSERT_EQ(passed, 1U) << "the callback came before the deadline";
  ASSERT_EQ(backend->mapped_bytes(1), 4 * MiB) << "what is leased";
  EXPECT_FALSE(report->finished);
  EXPECT_EQ(report->returned_bytes, 4 * MiB);
  EXPECT_EQ(report->late_bytes, 4 * MiB);
}

/// Answers that a segment could not be given back, and keeps it, as a driver in trouble may.
class KeepingBackend final : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  Status unmap_segment(std::byte* address) override {
    if (std::exchange(refuses_next, false)) return fail(ErrorCode::unavailable, "the driver does not answer");
    return inner_.unmap_segment(address);
  }
  bool refuses_next = false;
};

TEST(ReclaimTest, WhatTheDriverDoesNotTakeBackIsNotReportedAsReturned) {
  const auto machine = std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")));
  KeepingBackend backend(*machine);
  const auto cache = std::move(*PeerCache::create(backend, small_config()));
  const std::vector<std::byte> bytes = content(1, 1, 4 * MiB);
  for (const std::uint64_t key : {1, 2, 3})
    ASSERT_TRUE(cache->put(key, bytes.data(), 4 * MiB, backed_by(Backing::lossy)));
  ASSERT_EQ(machine->mapped_bytes(1), 12 * MiB);
  backend.refuses_next = true;
  const TimeNs deadline = backend.now_ns() + 100'000'000;
  const auto one = cache->reclaim(1, 4 * MiB, deadline);
  ASSERT_TRUE(one && one->finished);
  EXPECT_EQ(one->returned_bytes, 4 * MiB);
  EXPECT_EQ(machine->mapped_bytes(1), 8 * MiB) << "I5: another segment went in its stead";
  const auto rest = cache->reclaim(1, 8 * MiB, deadline);
  ASSERT_TRUE(rest && rest->finished) << "there is nothing more to give";
  EXPECT_EQ(rest->returned_bytes, 4 * MiB) << "I5";
  EXPECT_EQ(machine->mapped_bytes(1), 4 * MiB);
}

/// Keeps what it is asked to copy.
class RecordingBackend final : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override {
    runs.insert(runs.end(), copies.begin(), copies.end());
    return inner_.copy(stream, route, copies);
  }
  std::vector<Copy> runs;
};

/// Two allocations of the caller's may lie side by side, and a driver refuses a copy over their seam.
TEST(FetchTest, EachRunIsOfOneObjectThoughItsNeighbourFollows) {
  const auto machine = std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")));
  RecordingBackend backend(*machine);
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 0;
  const auto cache = std::move(*PeerCache::create(backend, config));
  const std::vector<std::byte> two = content(1, 1, 2 * MiB);
  ASSERT_TRUE(cache->put(1, two.data(), MiB, backed_by(Backing::external_host)));
  ASSERT_TRUE(cache->put(2, two.data() + MiB, MiB, backed_by(Backing::external_host)));
  const StreamId stream = *backend.create_stream(0);
  std::byte* staging = *backend.map_segment(0, 2 * MiB, {});
  std::vector<FetchItem> items(2);
  for (std::uint64_t i = 0; i < 2; ++i) {
    items[i].key = i + 1;
    items[i].destination = staging + i * MiB;
    items[i].capacity_bytes = MiB;
  }
  backend.runs.clear();
  ASSERT_TRUE(cache->fetch_and_wait(items, stream));
  ASSERT_EQ(backend.runs.size(), 2U);
  for (std::uint64_t i = 0; i < 2; ++i) {
    EXPECT_EQ(backend.runs[i].source, two.data() + i * MiB);
    EXPECT_EQ(backend.runs[i].bytes, MiB);
  }
}

}  // namespace
}  // namespace harvest::testing
