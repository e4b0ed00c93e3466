// SPDX-License-Identifier: Apache-2.0
// Any text as a machine. What is accepted is valid, is the same machine when it is written out and read
// again, and can be simulated: its links carry bytes in a time that the clock can tell.
#include <harvest/machine.hpp>
#include <harvest/simulated_backend.hpp>

#include <algorithm>
#include <string_view>

#include "base/assert.hpp"
#include "fuzz/memory_file.hpp"

namespace harvest::fuzz {
namespace {

/// A segment of as much as a device has free, in whole units; none if that is not one.
std::byte* take_all(SimulatedBackend& backend, DeviceId device, std::uint64_t& bytes) {
  const auto devices = backend.devices();
  const auto info = std::find_if(devices.begin(), devices.end(),
                                 [&](const DeviceInfo& known) { return known.id == device; });
  const Result<MemoryInfo> memory = backend.query_memory(device);
  HARVEST_ASSERT(memory, memory.error().message);
  bytes = memory->free_bytes / info->segment_granularity_bytes * info->segment_granularity_bytes;
  if (bytes == 0) return nullptr;
  const Result<std::byte*> segment = backend.map_segment(device, bytes, {});
  // Of addresses there may be fewer than a device has memory.
  HARVEST_ASSERT(segment || segment.error().code == ErrorCode::out_of_memory, segment.error().message);
  return segment.value_or(nullptr);
}

/// From a device's first half to its second, or from one device to another.
void copy_over(SimulatedBackend& backend, const LinkInfo& link) {
  std::uint64_t from_bytes = 0;
  std::uint64_t to_bytes = 0;
  const bool within = link.from == link.to;
  std::byte* from = take_all(backend, link.from, from_bytes);
  std::byte* to = within ? from + from_bytes / 2 : take_all(backend, link.to, to_bytes);
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
  if (machine)
    fuzz::check_accepted(*machine);
  else
    HARVEST_ASSERT(machine.error().code == ErrorCode::malformed && machine.error().message.size() < 1024,
                   machine.error().message);
  static const fuzz::MemoryFile file;
  file.fill(text);
  const Result<Machine> from_file = load_machine(file.path());
  HARVEST_ASSERT(from_file.has_value() == machine.has_value(), "a file reads otherwise than its text");
  if (!machine)
    HARVEST_ASSERT(from_file.error().message == file.path() + ": " + machine.error().message,
                   from_file.error().message);
  return 0;
}
