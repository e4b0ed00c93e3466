// SPDX-License-Identifier: Apache-2.0
#include "backend/simulation.hpp"

#include <algorithm>
#include <thread>
#include <vector>

namespace harvest::test {
namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
constexpr DeviceId kReaders[] = {0, 1};

/// How long a copy of these bytes takes alone on a link.
TimeNs alone_ns(const SimulatedBackend& backend, Route route, std::uint64_t bytes) {
  const LinkInfo& link = backend.machine().find_link(route.from, route.to)->info;
  return link.issue_ns + link.latency_ns +
         static_cast<TimeNs>(static_cast<double>(bytes) / link.bandwidth_bytes_per_s * 1e9);
}

/// Several copies of `bytes`, each on a stream of its own, submitted at once; when each was done.
std::vector<TimeNs> ends_of(SimulatedBackend& backend, const std::vector<Route>& routes,
                            std::uint64_t bytes) {
  std::vector<EventId> events;
  const TimeNs start = [&] {
    std::vector<Copy> copies;
    std::vector<StreamId> streams;
    for (const Route& route : routes) {
      copies.push_back({backend.map_segment(route.to, bytes, {}).value(),
                        backend.map_segment(route.from, bytes, {}).value(), bytes});
      streams.push_back(backend.create_stream(0).value());
    }
    const TimeNs now = backend.now_ns();
    for (std::size_t i = 0; i < routes.size(); ++i) {
      EXPECT_TRUE(backend.copy(streams[i], routes[i], {&copies[i], 1}));
      events.push_back(backend.record_event(streams[i]).value());
    }
    return now;
  }();
  std::vector<TimeNs> ends;
  for (const EventId event : events) {
    while (backend.query_event(event) == EventState::pending) backend.sleep_until(backend.now_ns() + 10);
    ends.push_back(backend.now_ns() - start);
  }
  return ends;
}

// --- time -----------------------------------------------------------------------------------------------

TEST(SimulatedTime, CopiesIntoOneGpuShareItsPortAndOthersDoNot) {
  const auto backend = phantom("dgx-h100");
  const TimeNs alone = alone_ns(*backend, {1, 0}, 64 * kMiB);
  const auto into_one = ends_of(*backend, {{1, 0}, {2, 0}}, 64 * kMiB);
  EXPECT_NEAR(static_cast<double>(into_one[1]) / static_cast<double>(alone), 2, 0.08) << "one port for both";
  const auto apart = ends_of(*backend, {{1, 0}, {0, 1}, {3, 2}}, 64 * kMiB);
  for (const TimeNs end : apart) EXPECT_NEAR(static_cast<double>(end) / static_cast<double>(alone), 1, 0.01);
  const auto host_and_peer = ends_of(*backend, {{1, 0}, {kHost, 0}}, 64 * kMiB);
  EXPECT_NEAR(static_cast<double>(host_and_peer[0]) / static_cast<double>(alone), 1, 0.01)
      << "NVLink beside PCIe";
}

TEST(SimulatedTime, PeerAndHostTrafficShareTheSlotOfAPcieCard) {
  const auto backend = phantom("4x4090-pcie");
  const auto both = ends_of(*backend, {{kHost, 0}, {1, 0}}, 256 * kMiB);
  const double total = 2 * 256.0 * kMiB / (static_cast<double>(std::max(both[0], both[1])) * 1e-9);
  EXPECT_NEAR(total / 25.5e9, 1, 0.02) << "together they get what the slot gives";
}

TEST(SimulatedTime, MoreCopiesThanEnginesWaitTheirTurn) {
  const auto backend = phantom("dgx-h100");
  const auto engines = backend->devices()[0].copy_engines;
  // All on streams of GPU 0, and no two on one port.
  std::vector<Route> routes;
  for (DeviceId i = 1; i <= static_cast<DeviceId>(engines) + 1; ++i) routes.push_back({i, i % 7 + 1});
  const TimeNs alone = alone_ns(*backend, {1, 2}, 64 * kMiB);
  const auto ends = ends_of(*backend, routes, 64 * kMiB);
  for (std::size_t i = 0; i < engines; ++i)
    EXPECT_NEAR(static_cast<double>(ends[i]) / static_cast<double>(alone), 1, 0.01);
  EXPECT_NEAR(static_cast<double>(ends[engines]) / static_cast<double>(alone), 2, 0.02);
}

TEST(SimulatedTime, MovesOnlyWhereSomebodyWaitsOrTheDriverWorks) {
  const auto backend = phantom("2xh100-nvl");
  const MachineCosts& costs = backend->machine().costs;
  const StreamId stream = backend->create_stream(0).value();
  std::byte* peer = backend->map_segment(1, 64 * kMiB, kReaders).value();
  std::byte* local = backend->map_segment(0, 64 * kMiB, {}).value();
  EXPECT_EQ(backend->now_ns(), 2 * costs.map_ns + 4 * costs.set_access_ns);
  TimeNs now = backend->now_ns();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(copy_one(*backend, stream, {1, 0}, local, peer, 64 * kMiB));
  const EventId event = backend->record_event(stream).value();
  EXPECT_EQ(backend->query_event(event), EventState::pending);
  EXPECT_EQ(backend->now_ns(), now) << "submitting takes no time";
  EXPECT_EQ(backend->wait_event(event, now + 1000), EventState::pending);
  EXPECT_EQ(backend->now_ns(), now + 1000);
  EXPECT_EQ(backend->wait_event(event, kNever), EventState::complete);
  now = backend->now_ns();
  backend->release_event(event);
  EXPECT_EQ(backend->query_memory(1).value().query_cost_ns, costs.query_memory_ns);
  EXPECT_EQ(backend->now_ns(), now + costs.query_memory_ns);
  ASSERT_TRUE(backend->unmap_segment(peer));
  EXPECT_EQ(backend->now_ns(), now + costs.query_memory_ns + costs.unmap_ns);
}

TEST(SimulatedTime, WaitingForWhatNeverComesReturns) {
  const auto backend = phantom("2xh100-nvl");
  const StreamId stream = backend->create_stream(0).value(), other = backend->create_stream(1).value();
  ASSERT_TRUE(backend->submit_kernel(stream, kNever));
  const EventId event = backend->record_event(stream).value();
  ASSERT_TRUE(backend->stream_wait(other, event));
  const EventId behind = backend->record_event(other).value();
  EXPECT_EQ(backend->wait_event(behind, kNever), EventState::pending);
  const TimeNs now = backend->now_ns();
  EXPECT_EQ(backend->wait_event(behind, now + 500), EventState::pending);
  EXPECT_EQ(backend->now_ns(), now + 500);
  ASSERT_TRUE(backend->lose_device(0));
  EXPECT_EQ(backend->wait_event(event, kNever), EventState::failed) << "the kernel's device is gone";
  EXPECT_EQ(backend->wait_event(behind, kNever), EventState::complete)
      << "a failed event lets a stream go on";
}

TEST(SimulatedTime, ManyThreadsMayWaitAtOnce) {
  const auto backend = phantom("dgx-h100");
  std::vector<std::thread> threads;
  for (DeviceId device = 0; device < 4; ++device)
    threads.emplace_back([&backend, device] {
      const StreamId stream = backend->create_stream(device).value();
      std::byte* a = backend->map_segment(device, 4 * kMiB, {}).value();
      std::byte* b = backend->map_segment(device + 4, 4 * kMiB, {}).value();
      for (int i = 0; i < 200; ++i) {
        backend->stamp(a, 4 * kMiB,
                       static_cast<std::uint64_t>(device) * 1000 + static_cast<std::uint64_t>(i));
        ASSERT_TRUE(copy_one(*backend, stream, {device, device + 4}, b, a, 4 * kMiB));
        ASSERT_EQ(finish(*backend, stream), EventState::complete);
        ASSERT_EQ(backend->stamp_of(b, 4 * kMiB),
                  static_cast<std::uint64_t>(device) * 1000 + static_cast<std::uint64_t>(i));
      }
    });
  for (std::thread& thread : threads) thread.join();
}

// --- what missing order does ------------------------------------------------------------------------------

/// A slot's copy and what somebody does to it too early, with real and with phantom bytes.
class MissingOrder : public testing::TestWithParam<SimulatedBytes> {
 protected:
  static constexpr std::uint64_t kBytes = 2 * kMiB;
  void write(std::byte* at, std::uint8_t value) {
    if (GetParam() == SimulatedBytes::real)
      std::fill_n(at, kBytes, std::byte{value});
    else
      backend_->stamp(at, kBytes, value);
  }
  bool holds(const std::byte* at, std::uint8_t value) {
    if (GetParam() == SimulatedBytes::phantom) return backend_->stamp_of(at, kBytes) == value;
    return std::all_of(at, at + kBytes, [&](std::byte b) { return b == std::byte{value}; });
  }
  std::unique_ptr<SimulatedBackend> backend_ =
      make_simulated_backend(machine_from_preset("2xh100-nvl").value(), {.bytes = GetParam()}).value();
  StreamId first_ = backend_->create_stream(0).value(), second_ = backend_->create_stream(1).value();
  std::byte* source_ = backend_->reserve_host_range(kBytes).value();
  std::byte* target_ = backend_->reserve_host_range(kBytes).value();
  std::byte* slot_ = backend_->map_segment(1, kBytes, kReaders).value();
};

TEST_P(MissingOrder, ReadingWhatHasNotArrivedGivesWrongBytes) {
  write(source_, 7);
  ASSERT_TRUE(copy_one(*backend_, first_, {kHost, 1}, slot_, source_, kBytes));
  backend_->sleep_until(backend_->now_ns() + 10'000);
  ASSERT_TRUE(copy_one(*backend_, second_, {1, kHost}, target_, slot_, kBytes));  // no wait: the fault
  EXPECT_EQ(finish(*backend_, second_), EventState::complete) << "nobody tells";
  EXPECT_FALSE(holds(target_, 7));
  EXPECT_EQ(finish(*backend_, first_), EventState::complete);
  ASSERT_TRUE(copy_one(*backend_, second_, {1, kHost}, target_, slot_, kBytes));
  EXPECT_EQ(finish(*backend_, second_), EventState::complete);
  EXPECT_TRUE(holds(target_, 7));
}

TEST_P(MissingOrder, OverwritingWhatIsStillReadGivesWrongBytes) {
  write(source_, 7);
  ASSERT_TRUE(copy_one(*backend_, first_, {kHost, 1}, slot_, source_, kBytes));
  ASSERT_EQ(finish(*backend_, first_), EventState::complete);
  ASSERT_TRUE(copy_one(*backend_, first_, {1, kHost}, target_, slot_, kBytes));
  ASSERT_TRUE(backend_->fill(second_, 1, slot_, kBytes, 9));  // no wait: the fault
  EXPECT_EQ(finish(*backend_, first_), EventState::complete) << "nobody tells";
  EXPECT_FALSE(holds(target_, 7));
}

TEST_P(MissingOrder, TheHostSeesNothingBeforeTheEnd) {
  write(source_, 7);
  write(target_, 8);
  ASSERT_TRUE(copy_one(*backend_, first_, {kHost, kHost}, target_, source_, kBytes));
  EXPECT_FALSE(holds(target_, 7));
  EXPECT_FALSE(holds(target_, 8));
  EXPECT_EQ(finish(*backend_, first_), EventState::complete);
  EXPECT_TRUE(holds(target_, 7));
}

INSTANTIATE_TEST_SUITE_P(Bytes, MissingOrder, testing::Values(SimulatedBytes::real, SimulatedBytes::phantom));

using MissingOrderDeathTest = MissingOrder;
TEST_P(MissingOrderDeathTest, UnmappingUnderWorkStopsTheProcess) {
  ASSERT_TRUE(backend_->fill(first_, 1, slot_, kBytes, 9));
  EXPECT_DEATH((void)backend_->unmap_segment(slot_), "unfinished work");
  EXPECT_EQ(finish(*backend_, first_), EventState::complete);
  EXPECT_TRUE(backend_->unmap_segment(slot_));
}
INSTANTIATE_TEST_SUITE_P(Bytes, MissingOrderDeathTest,
                         testing::Values(SimulatedBytes::real, SimulatedBytes::phantom));

// --- phantom bytes
// ------------------------------------------------------------------------------------------

TEST(PhantomBytes, IdentityTravelsInPiecesAndIsWholeOnlyInOrder) {
  const auto backend = phantom("hgx-h200");
  const StreamId stream = backend->create_stream(0).value();
  std::byte* source = backend->reserve_host_range(100).value();
  std::byte* slot = backend->map_segment(3, 2 * kMiB, {}).value();
  backend->stamp(source, 100, 42);
  EXPECT_EQ(backend->stamp_of(slot, 100), std::nullopt) << "undefined";
  const Copy pieces[] = {{slot, source, 30}, {slot + 70, source + 70, 30}, {slot + 30, source + 30, 40}};
  ASSERT_TRUE(backend->copy(stream, {kHost, 3}, pieces));
  EXPECT_EQ(backend->stamp_of(slot, 100), std::nullopt) << "under way";
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(backend->stamp_of(slot, 100), 42u);
  EXPECT_EQ(backend->stamp_of(slot, 99), 42u);
  EXPECT_EQ(backend->stamp_of(slot, 101), std::nullopt) << "past the end of it";
  EXPECT_EQ(backend->stamp_of(slot + 1, 50), std::nullopt) << "not from its beginning";
  EXPECT_EQ(backend->content_of(slot + 1, 50), (Content{42, 1}));

  const Copy swapped[] = {{slot + 100, slot + 50, 50}, {slot + 150, slot, 50}};
  ASSERT_TRUE(backend->copy(stream, {3, 3}, swapped));
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(backend->content_of(slot + 100, 100), std::nullopt) << "both halves, in the wrong order";
  EXPECT_EQ(backend->content_of(slot + 100, 50), (Content{42, 50}));

  ASSERT_TRUE(backend->fill(stream, 3, slot + 20, 10, 5));
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(backend->stamp_of(slot, 100), std::nullopt) << "mixed with a fill";
  EXPECT_EQ(backend->stamp_of(slot + 20, 10), SimulatedBackend::fill_tag(5));
  EXPECT_EQ(backend->content_of(slot + 30, 70), (Content{42, 30}));
  EXPECT_EQ(backend->stamp_of(slot, 20), 42u);
}

TEST(PhantomBytes, AMachineOfATerabyteFitsHere) {
  const auto backend = phantom("hgx-h200");
  std::vector<std::byte*> segments;
  for (DeviceId device = 0; device < 8; ++device) {
    segments.push_back(backend->map_segment(device, 141 * kGiB, {}).value());
    EXPECT_EQ(backend->query_memory(device).value().free_bytes, 0u);
  }
  const StreamId stream = backend->create_stream(0).value();
  backend->stamp(segments[7], 141 * kGiB, 3);
  ASSERT_TRUE(copy_one(*backend, stream, {7, 0}, segments[0], segments[7], 141 * kGiB));
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(backend->stamp_of(segments[0], 141 * kGiB), 3u);
}

TEST(PhantomBytes, AddressesOutsideMemoryAreRefused) {
  const auto backend = phantom("2xh100-nvl");
  const StreamId stream = backend->create_stream(0).value();
  std::byte* slot = backend->map_segment(1, 2 * kMiB, {}).value();
  std::byte* host = backend->reserve_host_range(2 * kMiB).value();
  std::byte stray[8] = {};
  const auto refused = [&](Route route, std::byte* to, std::byte* from, std::uint64_t bytes) {
    const Status status = copy_one(*backend, stream, route, to, from, bytes);
    return !status && status.error().code == ErrorCode::invalid_argument;
  };
  EXPECT_TRUE(refused({kHost, 1}, slot, stray, 8)) << "phantom copies cannot read real memory";
  EXPECT_TRUE(refused({kHost, 0}, slot, host, 8)) << "memory of another device";
  EXPECT_TRUE(refused({kHost, 1}, slot + kMiB, host, kMiB + 1)) << "past the segment's end";
  ASSERT_TRUE(backend->release_host_range(host));
  EXPECT_TRUE(refused({kHost, 1}, slot, host, 8)) << "given back";
  EXPECT_TRUE(backend->unmap_segment(slot)) << "refused work holds nothing";
}

// --- tenants
// ------------------------------------------------------------------------------------------------

TEST(Tenants, ShareADeviceWithUsToTheByte) {
  const auto backend = phantom("2xh100-nvl");
  const std::uint64_t total = backend->devices()[1].total_bytes;
  std::byte* ours = backend->map_segment(1, 10 * kGiB, {}).value();
  ASSERT_TRUE(backend->tenant_allocate(1, total - 10 * kGiB));
  EXPECT_EQ(backend->query_memory(1).value().free_bytes, 0u);
  EXPECT_EQ(backend->tenant_allocate(1, 1).error().code, ErrorCode::out_of_memory);
  EXPECT_EQ(backend->map_segment(1, 2 * kMiB, {}).error().code, ErrorCode::out_of_memory);
  EXPECT_EQ(backend->counters().tenant_allocations_failed, 1u);
  ASSERT_TRUE(backend->unmap_segment(ours));
  ASSERT_TRUE(backend->tenant_allocate(1, 10 * kGiB)) << "given back means given back";
  EXPECT_EQ(backend->tenant_bytes(1), total);
  EXPECT_EQ(backend->mapped_bytes(1), 0u);
  EXPECT_EQ(backend->tenant_free(1, total + 1).error().code, ErrorCode::invalid_argument);
  ASSERT_TRUE(backend->tenant_free(1, total));
  EXPECT_EQ(backend->query_memory(1).value().free_bytes, total);
}

}  // namespace
}  // namespace harvest::test
