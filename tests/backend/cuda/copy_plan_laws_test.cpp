// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "backend/cuda/copy_kernel.hpp"
#include "backend/cuda/copy_planner.hpp"

/// What holds for every plan, whatever the memory, the calibration and the request. The world is small, so
/// that ends, seams and gaps are hit: addresses of a few KiB for each device, where known ranges touch.
namespace harvest::cuda {
namespace {

constexpr std::uintptr_t kDeviceBytes = 4096;

std::uintptr_t base_of(DeviceId device) {
  return 0x10000 + static_cast<std::uintptr_t>(device + 1) * 0x10000;
}
std::byte* at(std::uintptr_t address) {
  return reinterpret_cast<std::byte*>(address);
}
std::uintptr_t number(const std::byte* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

struct World {
  MemoryMap map;
  std::vector<KnownRange> ranges;
  CopyRequest request;
  CopyCapabilities capabilities;
  CopyCalibration calibration;
  std::vector<Copy> copies;
  /// Of each byte of the destination device: the address that it comes from.
  std::vector<std::optional<std::uintptr_t>> expected =
      std::vector<std::optional<std::uintptr_t>>(kDeviceBytes);
};

void make_ranges(World& world) {
  for (DeviceId device : {kHost, 0, 1, 2})
    for (std::uintptr_t offset = 0; offset < kDeviceBytes;) {
      const auto bytes =
          std::min<std::uintptr_t>(*rc::gen::inRange<std::uintptr_t>(1, 1500), kDeviceBytes - offset);
      if (*rc::gen::weightedElement<bool>({{3, true}, {1, false}})) {
        const std::uint64_t own = device == kHost ? 0 : std::uint64_t{1} << device;
        const KnownRange range{at(base_of(device) + offset), bytes, device,
                               own | *rc::gen::inRange<std::uint64_t>(0, 8)};
        world.map.add(range);
        world.ranges.push_back(range);
      }
      offset += bytes;
    }
}

/// Runs that follow each other at the destination with or without gaps, and at the source often.
void make_copies(World& world) {
  const Route route = world.request.route;
  // Inside one device the source is its first half and the destination its second.
  const bool same = route.from == route.to;
  const std::uintptr_t source_bytes = same ? kDeviceBytes / 2 : kDeviceBytes;
  std::uintptr_t to = same ? kDeviceBytes / 2 : 0;
  std::uintptr_t from = 0;
  while (true) {
    to += *rc::gen::weightedElement<std::uintptr_t>({{4, 0}, {1, 1}, {1, 3}, {2, 16}});
    const auto bytes = *rc::gen::weightedOneOf<std::uintptr_t>(
        {{4, rc::gen::inRange<std::uintptr_t>(1, 40)}, {1, rc::gen::inRange<std::uintptr_t>(40, 900)}});
    if (to + bytes > kDeviceBytes) return;
    if (from + bytes > source_bytes || *rc::gen::weightedElement<bool>({{3, false}, {1, true}}))
      from = *rc::gen::inRange<std::uintptr_t>(0, source_bytes - bytes + 1);
    world.copies.push_back({at(base_of(route.to) + to), at(base_of(route.from) + from), bytes});
    for (std::uintptr_t i = 0; i < bytes; ++i) world.expected[to + i] = base_of(route.from) + from + i;
    to += bytes;
    from += bytes;
  }
}

void make_rest(World& world) {
  const auto device = rc::gen::inRange<DeviceId>(-1, 3);
  world.request.route = {*device, *device};
  world.request.stream_device = *rc::gen::inRange<DeviceId>(0, 3);
  world.request.capturing = *rc::gen::arbitrary<bool>();
  world.request.legacy_stream = *rc::gen::weightedElement<bool>({{3, false}, {1, true}});
  world.capabilities = {*rc::gen::arbitrary<bool>(), *rc::gen::arbitrary<bool>()};
  for (CopyThresholds& link : world.calibration.links) {
    link.kernel_below_bytes = *rc::gen::element<std::uint64_t>(0, 20, 300, kNoLimitBytes);
    link.kernel_min_runs = *rc::gen::inRange<std::uint32_t>(1, 20);
    link.batch_below_bytes = *rc::gen::element<std::uint64_t>(0, 50, kNoLimitBytes);
    link.batch_min_runs = *rc::gen::inRange<std::uint32_t>(1, 20);
  }
}

const KnownRange* range_at(const World& world, const std::byte* address) {
  for (const KnownRange& range : world.ranges)
    if (range.begin <= address && address < range.end()) return &range;
  return nullptr;
}

/// All bytes in one known range, or none in any.
bool is_of_one_piece(const World& world, const std::byte* begin, std::uint64_t bytes) {
  const KnownRange* first = range_at(world, begin);
  for (std::uint64_t i = 1; i < bytes; ++i)
    if (range_at(world, begin + i) != first) return false;
  return true;
}

/// Whether the stream's device may address one end by itself.
bool is_reachable(const World& world, const std::byte* address, DeviceId device) {
  const KnownRange* range = range_at(world, address);
  if (device == kHost) return range != nullptr;
  return range != nullptr ? range->is_accessible_by(world.request.stream_device)
                          : device == world.request.stream_device;
}

void check_run(const World& world, CopyMethod method, const Copy& run) {
  const Route route = world.request.route;
  const bool is_host = route.from == kHost || route.to == kHost;
  const bool reachable =
      is_reachable(world, run.source, route.from) && is_reachable(world, run.destination, route.to);
  if (method == CopyMethod::batch || method == CopyMethod::kernel) RC_ASSERT(reachable);
  if (method == CopyMethod::peer) RC_ASSERT(!reachable && !is_host);
  if (method == CopyMethod::single) RC_ASSERT(reachable || is_host);
  if (method != CopyMethod::kernel) return;
  for (const std::byte* end : {run.source, static_cast<const std::byte*>(run.destination)})
    if (const KnownRange* range = range_at(world, end))
      RC_ASSERT(range->is_accessible_by(world.request.stream_device));
}

void check_step(const World& world, const CopyStep& step) {
  RC_ASSERT(!step.runs.empty());
  if (step.method == CopyMethod::batch) {
    RC_ASSERT(world.capabilities.batches && !world.request.capturing && !world.request.legacy_stream);
    RC_ASSERT(step.runs.size() <= kRunsPerBatchCall);
  }
  if (step.method == CopyMethod::kernel) {
    RC_ASSERT(world.capabilities.kernels && step.kernel_blocks >= 1);
    RC_ASSERT(step.runs.size() <= kRunsPerLaunch);
  }
  for (const Copy& run : step.runs) {
    RC_ASSERT(run.bytes > 0);
    RC_ASSERT(is_of_one_piece(world, run.source, run.bytes));
    RC_ASSERT(is_of_one_piece(world, run.destination, run.bytes));
    check_run(world, step.method, run);
  }
}

RC_GTEST_PROP(CopyPlanLawsTest, EachByteIsCopiedOnceFromItsPlaceByALegalWay, ()) {
  World world;
  make_ranges(world);
  make_rest(world);
  make_copies(world);
  PlanScratch scratch;
  const CopyPlanner planner(world.map);
  const auto steps =
      planner.plan(world.request, world.copies, world.capabilities, world.calibration, scratch);

  std::vector<std::optional<std::uintptr_t>> got(kDeviceBytes);
  for (const CopyStep& step : steps) {
    check_step(world, step);
    for (const Copy& run : step.runs)
      for (std::uint64_t i = 0; i < run.bytes; ++i) {
        const std::uintptr_t to = number(run.destination) + i - base_of(world.request.route.to);
        RC_ASSERT(to < kDeviceBytes);
        RC_ASSERT(!got[to].has_value());
        got[to] = number(run.source) + i;
      }
  }
  RC_ASSERT(got == world.expected);
}

RC_GTEST_PROP(CopyPlanLawsTest, AScratchUsedBeforePlansTheSame, ()) {
  World before;
  make_ranges(before);
  make_rest(before);
  make_copies(before);
  World world;
  make_ranges(world);
  make_rest(world);
  make_copies(world);
  PlanScratch used;
  PlanScratch fresh;
  static_cast<void>(CopyPlanner(before.map)
                        .plan(before.request, before.copies, before.capabilities, before.calibration, used));
  const CopyPlanner planner(world.map);
  const auto a = planner.plan(world.request, world.copies, world.capabilities, world.calibration, used);
  const auto b = planner.plan(world.request, world.copies, world.capabilities, world.calibration, fresh);
  RC_ASSERT(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    RC_ASSERT(a[i].method == b[i].method);
    RC_ASSERT(std::equal(a[i].runs.begin(), a[i].runs.end(), b[i].runs.begin(), b[i].runs.end(),
                         [](const Copy& x, const Copy& y) {
                           return x.destination == y.destination && x.source == y.source &&
                                  x.bytes == y.bytes;
                         }));
  }
}

}  // namespace
}  // namespace harvest::cuda
