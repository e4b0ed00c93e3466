// SPDX-License-Identifier: Apache-2.0
// Any text as a machine. What is accepted is valid, is the same machine when it is written out and read
// again, and can be used: its links carry bytes in a time that the clock can tell, its paths can be tested,
// and a cache on it keeps an object or says why not.
#include <harvest/machine.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/topology.hpp>

#include <algorithm>
#include <string_view>

#include "base/assert.hpp"
#include "fuzz/memory_file.hpp"

namespace harvest::fuzz {
namespace {

/// A segment of as much as a device has free, in whole units and at most so many; none if that is not one.
std::byte* take(SimulatedBackend& backend, DeviceId device, std::uint64_t& bytes,
                std::uint64_t most_units = UINT64_MAX) {
  const auto devices = backend.devices();
  const auto info = std::find_if(devices.begin(), devices.end(),
                                 [&](const DeviceInfo& known) { return known.id == device; });
  const Result<MemoryInfo> memory = backend.query_memory(device);
  HARVEST_ASSERT(memory, memory.error().message);
  const std::uint64_t unit = info->segment_granularity_bytes;
  bytes = std::min(memory->free_bytes / unit, most_units) * unit;
  if (bytes == 0) return nullptr;
  const Result<std::byte*> segment = backend.map_segment(device, bytes, {});
  // Of addresses there may be fewer than a device has memory.
  HARVEST_ASSERT(segment || segment.error().code == ErrorCode::out_of_memory, segment.error().message);
  if (!segment) bytes = 0;
  return segment.value_or(nullptr);
}

/// From a device's first half to its second, or from one device to another.
void copy_over(SimulatedBackend& backend, const LinkInfo& link) {
  std::uint64_t from_bytes = 0;
  std::uint64_t to_bytes = 0;
  const bool within = link.from == link.to;
  std::byte* from = take(backend, link.from, from_bytes);
  std::byte* to = within ? from + from_bytes / 2 : take(backend, link.to, to_bytes);
  if (from != nullptr && to != nullptr) {
    const Copy copy{to, from, within ? from_bytes / 2 : std::min(from_bytes, to_bytes)};
    const Result<StreamId> stream = backend.create_stream(0);
    HARVEST_ASSERT(stream, stream.error().message);
    const Status given = backend.copy(*stream, {link.from, link.to}, {&copy, 1});
    HARVEST_ASSERT(given, given.error().message);
    const Result<EventId> event = backend.record_event(*stream);
    HARVEST_ASSERT(event, event.error().message);
    const TimeNs begin_ns = backend.now_ns();
    HARVEST_ASSERT(backend.wait_event(*event, kNever) == EventState::complete, "a copy does not end");
    HARVEST_ASSERT(backend.now_ns() > begin_ns, "a copy takes no time");
    backend.release_event(*event);
  }
  for (std::byte* segment : {from, within ? nullptr : to})
    if (segment != nullptr) HARVEST_ASSERT(backend.unmap_segment(segment), "a segment cannot be unmapped");
}

/// Each path of a small machine carries its pattern, at the price of some milliseconds, or is told why not.
void test_paths(const Machine& machine) {
  if (machine.devices.size() > 4) return;
  auto backend = make_simulated_backend(machine);
  HARVEST_ASSERT(backend, backend.error().message);
  const Result<Topology> topology = Topology::probe(**backend, true);
  HARVEST_ASSERT(topology, topology.error().message);
  for (const Path& path : topology->paths())
    HARVEST_ASSERT(path.state != PathState::failed || !path.reason.empty(), "a path failed for no reason");
}

/// Puts an object, lets it climb, reads it and takes all memory back.
void use_cache(const Machine& machine) {
  auto backend = make_simulated_backend(machine, {.bytes = SimulatedBytes::phantom});
  HARVEST_ASSERT(backend, backend.error().message);
  std::uint64_t bytes = 0;
  std::uint64_t room_bytes = 0;
  std::byte* source = take(**backend, kHost, bytes, 1);
  std::byte* destination = take(**backend, 0, room_bytes, 1);
  PeerCacheConfig config;
  config.verify_paths = false;  // phantom bytes carry no pattern
  config.max_objects = 16;
  config.local_budget_bytes = machine.devices.front().info.total_bytes / 4;
  config.host_budget_bytes = machine.devices.back().info.total_bytes / 2;
  config.pressure.reserve_bytes = machine.devices.front().info.total_bytes / 8;
  auto cache = PeerCache::create(**backend, config);
  HARVEST_ASSERT(cache || !cache.error().message.empty(), "there is no cache for no reason");
  const Result<StreamId> stream = (*backend)->create_stream(0);
  if (!cache || !stream || source == nullptr || destination == nullptr) return;

  constexpr std::uint64_t kTag = 7;
  bytes = std::min(bytes, room_bytes);
  (*backend)->stamp(source, bytes, kTag);
  const auto put = (*cache)->put(1, source, bytes, {});
  for (int read = 0; put && read < 3; ++read) {
    FetchItem item;
    item.key = 1;
    item.destination = destination;
    item.capacity_bytes = bytes;
    const Status fetched = (*cache)->fetch_and_wait({&item, 1}, *stream);
    if (machine.find_link(kHost, 0) == nullptr) break;  // nothing can be read
    HARVEST_ASSERT(fetched && item.outcome == ErrorCode::ok, to_string(item.outcome));
    HARVEST_ASSERT((*backend)->stamp_of(destination, bytes) == kTag, "an object has other bytes");
    (*backend)->sleep_until((*cache)->poll());
  }
  for (const DeviceInfo& device : (*backend)->devices())
    if (device.id > 0)
      static_cast<void>((*cache)->reclaim(device.id, UINT64_MAX, (*backend)->now_ns() + 1'000'000));
  HARVEST_ASSERT(!put || (*cache)->locate(1) != Tier::none, "an object is lost");
}

void check_accepted(const Machine& machine) {
  HARVEST_ASSERT(machine.validate(), "an accepted machine is not valid");
  const std::string text = to_json(machine);
  const Result<Machine> again = machine_from_json(text);
  HARVEST_ASSERT(again, again.error().message);
  HARVEST_ASSERT(to_json(*again) == text, "what was written out reads otherwise");

  auto backend = make_simulated_backend(machine, {.bytes = SimulatedBytes::phantom});
  HARVEST_ASSERT(backend, backend.error().message);
  HARVEST_ASSERT((*backend)->devices().size() == machine.devices.size(), "devices are missing");
  for (const DeviceInfo& device : (*backend)->devices()) {
    const Result<MemoryInfo> memory = (*backend)->query_memory(device.id);
    HARVEST_ASSERT(memory && memory->free_bytes <= memory->total_bytes, "more is free than there is");
  }
  for (const LinkInfo& link : (*backend)->links()) copy_over(**backend, link);
}

}  // namespace
}  // namespace harvest::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace harvest;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<Machine> machine = machine_from_json(text);
  if (machine) {
    fuzz::check_accepted(*machine);
    fuzz::use_cache(*machine);
    if (size % 8 == 0) fuzz::test_paths(*machine);
  } else {
    HARVEST_ASSERT(machine.error().code == ErrorCode::malformed && machine.error().message.size() < 1024,
                   machine.error().message);
  }
  static const fuzz::MemoryFile file;
  file.fill(text);
  const Result<Machine> from_file = load_machine(file.path());
  HARVEST_ASSERT(from_file.has_value() == machine.has_value(), "a file reads otherwise than its text");
  if (!machine)
    HARVEST_ASSERT(from_file.error().message == file.path() + ": " + machine.error().message,
                   from_file.error().message);
  return 0;
}
