// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backend/backend_trial.hpp"

namespace harvest::test {
namespace {

std::uint64_t free_bytes(Trial& t, DeviceId device) {
  const MemoryInfo info = t.require(t.backend().query_memory(device), "query_memory");
  t.expect(info.free_bytes <= info.total_bytes, "more is free than there is");
  return info.free_bytes;
}

void memory_is_counted(Trial& t) {
  for (const DeviceInfo& device : t.backend().devices()) {
    const std::uint64_t bytes = std::max(16 * kMiB, device.segment_granularity_bytes);
    const std::uint64_t before = free_bytes(t, device.id);
    t.require(before >= 4 * bytes, "not enough memory for the law");
    std::byte* first = t.segment(device.id, bytes);
    t.expect(free_bytes(t, device.id) <= before - bytes, "a mapped segment is still counted as free");
    std::byte* second = t.segment(device.id, bytes);
    t.expect(free_bytes(t, device.id) <= before - 2 * bytes, "a second segment is still counted as free");
    t.require(t.backend().unmap_segment(first), "unmap");
    t.expect(free_bytes(t, device.id) >= before - bytes, "an unmapped segment is not free again");
    t.require(t.backend().unmap_segment(second), "unmap");
    t.expect(free_bytes(t, device.id) == before, "memory leaked");
  }
}

void memory_can_be_had_again(Trial& t) {
  const std::uint64_t before = free_bytes(t, 1);
  for (int i = 0; i < 50; ++i) {
    std::byte* address = t.segment(1, 4 * kMiB);
    t.require(t.backend().unmap_segment(address), "unmap");
  }
  t.expect(free_bytes(t, 1) == before, "memory leaked");
}

void segments_lie_apart(Trial& t) {
  const std::uint64_t bytes = 4 * kMiB;
  std::vector<std::byte*> starts;
  for (int i = 0; i < 4; ++i)
    for (DeviceId device : {0, 1, kHost}) starts.push_back(t.segment(device, bytes));
  std::sort(starts.begin(), starts.end());
  for (std::size_t i = 1; i < starts.size(); ++i)
    t.expect(starts[i - 1] + bytes <= starts[i], "two live segments overlap");
}

void bad_segments_are_refused(Trial& t) {
  Backend& backend = t.backend();
  const DeviceInfo& device = backend.devices()[0];
  const std::uint64_t step = device.segment_granularity_bytes;
  const std::uint64_t before = free_bytes(t, 0);
  t.expect_error(backend.map_segment(0, 0, {}), ErrorCode::invalid_argument, "a segment of 0 bytes");
  t.expect_error(backend.map_segment(0, step + 1, {}), ErrorCode::invalid_argument, "half a granule");
  t.expect_error(backend.map_segment(77, step, {}), ErrorCode::not_found, "a segment on an unknown device");
  t.expect_error(backend.query_memory(77), ErrorCode::not_found, "the memory of an unknown device");
  t.expect_error(backend.map_segment(0, (device.total_bytes / step + 1) * step, {}), ErrorCode::out_of_memory,
                 "more memory than there is");
  t.expect(free_bytes(t, 0) == before, "a refused segment is counted");

  std::byte* segment = t.segment(0, 2 * step);
  t.expect_error(backend.unmap_segment(nullptr), ErrorCode::invalid_argument, "unmapping null");
  t.expect_error(backend.unmap_segment(segment + step), ErrorCode::invalid_argument, "unmapping a middle");
  t.require(backend.unmap_segment(segment), "unmap");
  t.expect_error(backend.unmap_segment(segment), ErrorCode::invalid_argument, "unmapping twice");
}

/// Whoever does not know who reaches whom names all devices; those that cannot are left out.
void every_device_may_be_named_as_reader(Trial& t) {
  std::vector<DeviceId> all;
  for (const DeviceInfo& device : t.backend().devices()) all.push_back(device.id);
  for (const DeviceInfo& device : t.backend().devices()) {
    const std::uint64_t step = device.segment_granularity_bytes;
    std::byte* segment =
        t.require(t.backend().map_segment(device.id, step, all), "a segment for all devices");
    t.require(t.backend().unmap_segment(segment), "unmap");
    const DeviceId unknown[] = {0, 77};
    t.expect_error(t.backend().map_segment(device.id, step, unknown), ErrorCode::not_found,
                   "an unknown reader");
  }
}

void host_memory_can_be_registered(Trial& t) {
  Backend& backend = t.backend();
  const std::uint64_t bytes = 4 * kMiB;
  std::byte* memory = t.content(bytes, 9);
  t.expect_error(backend.register_host(nullptr, bytes), ErrorCode::invalid_argument, "registering null");
  t.expect_error(backend.register_host(memory, 0), ErrorCode::invalid_argument, "registering 0 bytes");
  t.require(backend.register_host(memory, bytes), "register");
  t.expect_error(backend.register_host(memory + kMiB, kMiB), ErrorCode::invalid_argument,
                 "registering an overlap");

  const StreamId s = t.stream();
  std::byte* a = t.segment(0, bytes);
  std::byte* target = t.host().allocate(bytes);
  t.copy(s, {kHost, 0}, a, memory, bytes);
  t.copy(s, {0, kHost}, target, a, bytes);
  t.finish(s);
  t.expect(t.host().holds(target, bytes, 9), "registered memory was copied wrongly");
  t.require(backend.unregister_host(memory), "unregister");
  t.expect_error(backend.unregister_host(memory), ErrorCode::invalid_argument, "unregistering twice");
}

/// Bytes stay when memory beside them comes and goes.
void segments_keep_their_bytes(Trial& t) {
  const std::uint64_t bytes = 2 * kMiB;
  const StreamId s = t.stream();
  std::byte* kept = t.segment(1, bytes);
  t.copy(s, {kHost, 1}, kept, t.content(bytes, 21), bytes);
  t.finish(s);
  for (int i = 0; i < 5; ++i) {
    std::byte* other = t.segment(1, bytes);
    t.require(t.backend().fill(s, 1, other, bytes, 0xEE), "fill");
    t.finish(s);
    t.require(t.backend().unmap_segment(other), "unmap");
  }
  std::byte* target = t.host().allocate(bytes);
  t.copy(s, {1, kHost}, target, kept, bytes);
  t.finish(s);
  t.expect(t.host().holds(target, bytes, 21), "a segment lost its bytes to another");
}

}  // namespace

std::vector<Law> memory_laws() {
  return {
      {"memory_is_counted", memory_is_counted},
      {"memory_can_be_had_again", memory_can_be_had_again},
      {"segments_lie_apart", segments_lie_apart},
      {"bad_segments_are_refused", bad_segments_are_refused},
      {"every_device_may_be_named_as_reader", every_device_may_be_named_as_reader},
      {"host_memory_can_be_registered", host_memory_can_be_registered},
      {"segments_keep_their_bytes", segments_keep_their_bytes},
  };
}

}  // namespace harvest::test
