// SPDX-License-Identifier: Apache-2.0
#include <harvest/cuda.hpp>
#include <harvest/loopback.hpp>
#include <harvest/simulated_backend.hpp>

#include <limits>
#include <utility>

#include "wrong_input/backend_rows.hpp"
#include "wrong_input/table.hpp"

/// The simulated machine, and one GPU as two.
namespace harvest::testing {
namespace {

constexpr std::uint64_t kBytes = 4096;
constexpr std::uint64_t kSegmentBytes = 2U << 20;
constexpr std::uint64_t kTotalBytes = 100'931'731'456;  // of a GPU of this machine
constexpr std::uint64_t kHuge = 1ULL << 63;
constexpr StreamId kNoStream{4711};
using Fault = ScheduledFault::Kind;

Result<std::unique_ptr<SimulatedBackend>> made(FaultPlan faults, SimulationOptions options = {}) {
  options.faults = std::move(faults);
  return make_simulated_backend(*machine_from_preset("2xh100-nvl"), options);
}

std::unique_ptr<SimulatedBackend> good(SimulationOptions options = {}) {
  return std::move(*made({}, options));
}

Outcome scheduled(ScheduledFault fault) {
  FaultPlan plan;
  plan.schedule = {fault};
  return made(plan);
}

void show_faults(Table& table) {
  const auto with = [](auto change) -> Outcome {
    FaultPlan plan;
    change(plan);
    return made(plan);
  };
  table.shows("a machine without devices", make_simulated_backend(Machine{}));
  table.shows("`faults.refuse_copy.rate` -0.5", with([](auto& f) { f.refuse_copy.rate = -0.5; }));
  table.shows("`faults.late_event.rate` 1.5", with([](auto& f) { f.late_event.rate = 1.5; }));
  table.shows("`faults.fail_map.rate` not a number",
              with([](auto& f) { f.fail_map.rate = std::numeric_limits<double>::quiet_NaN(); }));
  table.shows("`faults.slow_copy_factor` 0", with([](auto& f) { f.slow_copy_factor = 0; }));
  table.shows("`faults.slow_copy_factor` infinite",
              with([](auto& f) { f.slow_copy_factor = std::numeric_limits<double>::infinity(); }));
  table.shows("`faults.late_event_ns` -1", with([](auto& f) { f.late_event_ns = -1; }));
  table.shows("`faults.slow_query_ns` `kNever`", with([](auto& f) { f.slow_query_ns = kNever; }));
  table.shows("`faults.stale_free_ns` -1", with([](auto& f) { f.stale_free_ns = -1; }));
  table.shows("`faults.schedule` that loses device 9",
              scheduled({.at_ns = 5, .kind = Fault::lose_device, .device = 9}));
  table.shows("`faults.schedule` that loses the host",
              scheduled({.at_ns = 5, .kind = Fault::lose_device, .device = kHost}));
  table.shows("`faults.schedule` with a tenant of device 2",
              scheduled({.at_ns = 5, .kind = Fault::tenant_allocate, .device = 2, .bytes = 1}));
  table.shows("`faults.schedule` with a link that is not there",
              scheduled({.at_ns = 5, .kind = Fault::link_down, .route = {0, 9}}));

  FaultPlan past;
  past.schedule = {{.at_ns = -5, .kind = Fault::tenant_allocate, .device = 1, .bytes = kSegmentBytes}};
  const auto backend = made(past);
  EXPECT_EQ((*backend)->tenant_bytes(1), kSegmentBytes);
  table.shows("`faults.schedule` in the past", backend);
  FaultPlan worse;
  worse.fail_copy.rate = 2;
  table.shows("`set_faults` with a rate of 2", (*backend)->set_faults(worse));
}

void show_memory(Table& table) {
  const auto backend = good();
  std::byte own{};
  std::byte* segment = *backend->map_segment(1, kSegmentBytes, {});
  table.shows("`map_segment` of more than is free", backend->map_segment(1, kTotalBytes, {}));
  table.shows("`release_host_range` of other memory", backend->release_host_range(&own));
  table.shows("`release_host_range` of a segment", backend->release_host_range(segment));
  table.shows("`tenant_allocate` of more than is free", backend->tenant_allocate(1, kHuge));
  table.shows("`tenant_allocate` on device 9", backend->tenant_allocate(9, 1));
  table.shows("`tenant_free` of more than tenants hold", backend->tenant_free(1, 1));
  table.shows("`tenant_bytes` of device 9", std::to_string(backend->tenant_bytes(9)));
  table.shows("`mapped_bytes` of device 9", std::to_string(backend->mapped_bytes(9)));
  const auto phantom = good({.bytes = SimulatedBytes::phantom});
  for (SimulatedBackend* each : {backend.get(), phantom.get()})
    EXPECT_EQ(each->reserve_host_range(kHuge).has_value(), false);
  table.shows("`reserve_host_range` of 0 bytes", phantom->reserve_host_range(0));
  table.shows("`reserve_host_range` of 2^63 bytes", phantom->reserve_host_range(kHuge));
  table.shows("`reserve_host_range` of 2^64 - 1 bytes", phantom->reserve_host_range(UINT64_MAX));
  const auto stamp = phantom->stamp_of(segment, kSegmentBytes);
  table.shows("`stamp_of` of memory that is not there", stamp ? "a stamp" : "no stamp");
  const StreamId stream = *backend->create_stream(1);
  table.stops("`unmap_segment` while work touches it", [&] {
    static_cast<void>(backend->fill(stream, 1, segment, kSegmentBytes, 1));
    static_cast<void>(backend->unmap_segment(segment));
  });
}

void show_work(Table& table) {
  const auto backend = good();
  const StreamId stream = *backend->create_stream(0);
  std::byte* mine = *backend->map_segment(0, 2 * kSegmentBytes, {});
  std::byte* peers = *backend->map_segment(1, kSegmentBytes, {});
  const auto copy = [&](const std::byte* from, std::uint64_t bytes) -> Outcome {
    const Copy one{mine, from, bytes};
    return backend->copy(stream, {1, 0}, {&one, 1});
  };
  table.shows("`wrap_stream`", backend->wrap_stream(0, nullptr));
  table.shows("`copy` of other memory as a GPU's", copy(mine, kBytes));
  table.shows("`copy` past the end of a segment", copy(peers, kSegmentBytes + 1));
  table.shows("`copy` of 2^63 bytes", copy(peers, kHuge));
  table.shows("`submit_kernel` of -1 ns", backend->submit_kernel(stream, -1));
  table.shows("`submit_kernel` on stream 4711", backend->submit_kernel(kNoStream, 1));
  table.shows("`set_link_up` of a link that is not there", backend->set_link_up(0, 9, false));
  table.shows("`lose_device` of the host", backend->lose_device(kHost));
  EXPECT_TRUE(backend->set_link_up(1, 0, false));
  table.shows("`copy` over a link that is down", copy(peers, kBytes));
  EXPECT_TRUE(backend->set_link_up(1, 0, true));
  EXPECT_TRUE(backend->lose_device(1));
  table.shows("`copy` from a lost device", copy(peers, kBytes));
  table.shows("`query_memory` of a lost device", backend->query_memory(1));
  table.stops("`sleep_until` `kNever`, in real time",
              [] { good({.time = SimulatedTime::real_time})->sleep_until(kNever); });
}

TEST(WrongInput, SimulatedBackend) {
  Table table("`SimulatedBackend`");
  show_faults(table);
  show_memory(table);
  show_work(table);
}

TEST(WrongInput, BackendThatIsSimulated) {
  show_backend_rows(*good());
}

TEST(WrongInput, BackendThatHoldsNoBytes) {
  show_backend_rows(*good({.bytes = SimulatedBytes::phantom}));
}

TEST(WrongInput, CudaWithoutCuda) {
  if (has_cuda()) GTEST_SKIP() << "this build has CUDA: tests/cuda shows its table";
  const auto rows = read_table(reliability_page(), "`make_cuda_backend`");
  ASSERT_EQ(rows.front().input, "a build without CUDA");
  EXPECT_EQ(difference(rows.front(), make_cuda_backend()), "");
}

TEST(WrongInput, LoopbackBackend) {
  Table table("`make_loopback_backend`");
  const auto machine = good();
  table.shows("device 9", make_loopback_backend(*machine, 9));
  table.shows("the host", make_loopback_backend(*machine, kHost));
  const auto backend = std::move(*make_loopback_backend(*machine));
  const DeviceId reader = 2;
  const StreamId stream = *backend->create_stream(0);
  std::byte* segment = *backend->map_segment(0, kSegmentBytes, {});
  const Copy one{segment, segment + kBytes, kBytes};
  table.shows("`query_memory` of device 2", backend->query_memory(2));
  table.shows("`map_segment` for reader 2", backend->map_segment(0, kSegmentBytes, {&reader, 1}));
  table.shows("`create_stream` of the host", backend->create_stream(kHost));
  table.shows("`copy` to device 2", backend->copy(stream, {0, 2}, {&one, 1}));
  table.shows("`fill` on device 2", backend->fill(stream, 2, segment, kBytes, 0));
}

}  // namespace
}  // namespace harvest::testing
