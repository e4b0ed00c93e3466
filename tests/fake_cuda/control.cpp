// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fake_cuda/copies.hpp"
#include "fake_cuda/nvml_machine.hpp"
#include "fake_cuda/state.hpp"

namespace harvest::fake_cuda {
namespace internal {
namespace {

constexpr auto kPatience = std::chrono::seconds(10);
constexpr auto kPatienceAtExit = std::chrono::seconds(2);
constexpr int kLeakStatus = 23;

[[nodiscard]] bool is_well(int device) {
  return state().devices[static_cast<std::size_t>(device)].sticky == cudaSuccess;
}

Leaks count_leaks() {
  Leaks found;
  const auto& known = state();
  for (const auto& [number, stream] : known.streams) found.streams += is_well(stream->device) ? 1 : 0;
  for (const auto& [number, event] : known.events) found.events += is_well(event->device) ? 1 : 0;
  found.graphs = known.graphs.size() + known.executables.size();
  found.libraries = known.libraries.size();
  for (const auto& [begin, range] : known.addresses.ranges) {
    if (!is_well(range.device)) continue;
    switch (range.kind) {
      case RangeKind::device:
      case RangeKind::pinned: ++found.allocations; break;
      case RangeKind::registered: ++found.registrations; break;
      case RangeKind::mapping: ++found.mappings; break;
    }
  }
  for (const auto& [number, handle] : known.addresses.handles) {
    found.handles += is_well(handle.physical->device) ? handle.references : 0;
  }
  for (const auto& [begin, bytes] : known.addresses.reservations) {
    const auto at = known.addresses.find(begin, 1);
    found.reservations += at.range == nullptr || is_well(at.range->device) ? 1 : 0;
  }
  return found;
}

void forget(State& known, Lock& lock) {
  if (!known.stop_all(lock, kPatience)) {
    std::fprintf(stderr, "fake cuda: a host function does not return; reset is not possible\n");
    std::abort();
  }
  known.captures.clear();
  known.streams.clear();
  known.retired.clear();
  known.events.clear();
  known.graphs.clear();
  known.executables.clear();
  known.kernels.clear();
  known.libraries.clear();
  known.devices.clear();
  known.addresses.clear();
  known.accounts.close();
  known.faults = {};
  known.counters = {};
  known.complaint.clear();
  known.initialised = false;
  this_thread() = {};
}

/// Ends what still runs, and counts what was not given back.
Leaks finish() {
  const Inside inside;
  Lock lock(state().mutex);
  if (!state().initialised) return {};
  auto found = count_leaks();
  found.libraries = 0;  // a program may well keep its kernels until it ends
  state().shut_down = true;
  state().host_wake.notify_all();
  (void)state().stop_all(lock, kPatienceAtExit);
  state().accounts.close();
  return found;
}

/// Runs when the library is unloaded, after everything of the program's.
__attribute__((destructor)) void report_at_exit() {
  const auto found = finish();
  if (found.total() == 0) return;
  std::fprintf(stderr, "fake cuda: leaked at exit: %s\n", to_string(found).c_str());
  const char* mode = std::getenv("HARVEST_FAKE_CUDA_LEAKS");
  if (mode == nullptr || std::string_view(mode) != "fail") return;
  std::fflush(nullptr);
  _exit(kLeakStatus);
}

}  // namespace

void State::reset_device(int device) {
  auto& own = devices[static_cast<std::size_t>(device)];
  for (auto stream = streams.begin(); stream != streams.end();) {
    if (stream->second->device != device) {
      ++stream;
      continue;
    }
    stream->second->destroyed = true;
    stream->second->wake.notify_all();
    retired.push_back(stream->second);
    stream = streams.erase(stream);
  }
  std::erase_if(events, [&](const auto& entry) { return entry.second->device == device; });
  std::erase_if(addresses.ranges, [&](const auto& entry) {
    const auto& range = entry.second;
    const bool goes = range.device == device && range.kind == RangeKind::device;
    if (goes) addresses.give_back(range.begin, range.bytes);
    return goes;
  });
  own.peers.clear();
  own.has_context = false;
}

}  // namespace internal

using internal::Found;
using internal::Inside;
using internal::Lock;
using internal::state;

void reset(const MachineDescription& machine) {
  const Inside inside;
  Lock lock(state().mutex);
  internal::forget(state(), lock);
  state().build(machine);
}

void reset() {
  const Inside inside;
  Lock lock(state().mutex);
  internal::forget(state(), lock);
}

Leaks leaks() {
  const Inside inside;
  const Lock lock(state().mutex);
  return internal::count_leaks();
}

std::string to_string(const Leaks& leaks) {
  const std::pair<std::uint64_t, const char*> kinds[] = {
      {leaks.streams, "streams"},
      {leaks.events, "events"},
      {leaks.graphs, "graphs"},
      {leaks.allocations, "allocations"},
      {leaks.registrations, "registrations"},
      {leaks.handles, "memory handles"},
      {leaks.mappings, "mappings"},
      {leaks.reservations, "reservations"},
      {leaks.libraries, "libraries"},
  };
  std::string text;
  for (const auto& [count, name] : kinds) {
    if (count == 0) continue;
    if (!text.empty()) text += ", ";
    text += std::to_string(count) + " " + name;
  }
  return text.empty() ? "nothing" : text;
}

Counters counters() {
  const Inside inside;
  const Lock lock(state().mutex);
  return state().counters;
}

std::uint64_t calls(std::string_view function) {
  const Inside inside;
  const Lock lock(state().mutex);
  return state().faults.calls(function);
}

std::uint64_t used_bytes(int device) {
  const Inside inside;
  const Lock lock(state().mutex);
  (void)state().initialise();
  return state().is_device(device) ? state().accounts.used(device) : 0;
}

std::string last_complaint() {
  const Inside inside;
  const Lock lock(state().mutex);
  return state().complaint;
}

namespace {

/// The fake's bytes behind a device's addresses; null where they are not one allocation's.
std::byte* bytes_at(const void* address, std::size_t bytes) {
  const auto begin = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(address));
  const auto found = state().addresses.find(begin, bytes);
  if (found.found != Found::range || found.range->is_host()) return nullptr;
  return found.range->physical->bytes_at + (begin - found.range->begin);
}

}  // namespace

bool read(const void* device_address, void* to, std::size_t bytes) {
  const Inside inside;
  const Lock lock(state().mutex);
  const auto* from = bytes_at(device_address, bytes);
  if (from == nullptr) return false;
  std::memcpy(to, from, bytes);
  return true;
}

bool write(void* device_address, const void* from, std::size_t bytes) {
  const Inside inside;
  const Lock lock(state().mutex);
  auto* to = bytes_at(device_address, bytes);
  if (to == nullptr) return false;
  std::memcpy(to, from, bytes);
  return true;
}

bool take_memory(int device, std::int64_t bytes) {
  const Inside inside;
  const Lock lock(state().mutex);
  (void)state().initialise();
  if (!state().is_device(device)) return false;
  if (bytes >= 0) return state().accounts.take(device, static_cast<std::uint64_t>(bytes));
  state().accounts.give_back(device, static_cast<std::uint64_t>(-bytes));
  return true;
}

MachineDescription nvml_machine() {
  const Inside inside;
  const Lock lock(state().mutex);
  (void)state().initialise();
  auto machine = state().machine;
  for (std::size_t i = 0; i < state().devices.size(); ++i)
    machine.devices[i].pci_bus_id = state().devices[i].pci_bus_id;
  return machine;
}

bool nvml_device_is_lost(int device) {
  const Inside inside;
  const Lock lock(state().mutex);
  return state().is_device(device) && !internal::is_well(device);
}

std::string library_path() {
  Dl_info info{};
  return dladdr(reinterpret_cast<const void*>(&cudaGetDeviceCount), &info) != 0 ? info.dli_fname : "";
}

}  // namespace harvest::fake_cuda
