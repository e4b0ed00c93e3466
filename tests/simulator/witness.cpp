// SPDX-License-Identifier: Apache-2.0
#include "simulator/witness.hpp"

#include <algorithm>

#include "core/allocation_count.hpp"
#include "simulator/violation.hpp"
#include "simulator/words.hpp"

namespace harvest::simulator {

using testing::NotCounting;

Witness::Witness(Backend& inner, SimulatedBackend& simulated, const Plan& plan, std::uint64_t seed)
    : ForwardingBackend(inner), simulated_(simulated), plan_(plan), random_(seed) {
  for (const DeviceInfo& device : simulated.devices()) accounts_[device.id];
}

std::pair<std::byte*, std::uint64_t> Witness::segment_of(DeviceId device, const std::byte* address) const {
  const auto& segments = accounts_.at(device).segments;
  auto found = segments.upper_bound(const_cast<std::byte*>(address));  // NOLINT: only compared
  if (found == segments.begin()) return {nullptr, 0};
  --found;
  if (address >= found->first + found->second) return {nullptr, 0};
  return *found;
}

// --- memory -----------------------------------------------------------------------------------------------

/// What it answers was true when it was taken; on some machines not even then.
Result<MemoryInfo> Witness::query_memory(DeviceId device) {
  const NotCounting not_counting;
  Result<MemoryInfo> memory = inner_.query_memory(device);
  if (!memory || !watching_) return memory;
  if (random_.chance(mischief_.jumping_free)) {
    const std::uint64_t jump = random_.below(memory->total_bytes / 4);
    memory->free_bytes = random_.chance(0.5) ? memory->free_bytes - std::min(memory->free_bytes, jump)
                                             : std::min(memory->total_bytes, memory->free_bytes + jump);
  }
  Account& account = accounts_.at(device);
  account.answered_free_bytes = memory->free_bytes;
  account.answered_ns = inner_.now_ns();
  if (device != plan_.config.consumer && random_.chance(mischief_.sudden_owner)) {
    const std::uint64_t total = memory->total_bytes;
    const std::uint64_t free =
        total - std::min(total, simulated_.tenant_bytes(device) + simulated_.mapped_bytes(device));
    static_cast<void>(simulated_.tenant_allocate(device, random_.below(free + 1)));
  }
  read_in_between();
  return memory;
}

Result<std::byte*> Witness::map_segment(DeviceId device, std::uint64_t bytes,
                                        std::span<const DeviceId> readers) {
  const NotCounting not_counting;
  if (watching_) {
    check_growth(device, bytes);
    read_in_between();
  }
  const auto address = inner_.map_segment(device, bytes, readers);
  if (!address || !watching_) return address;
  Account& account = accounts_.at(device);
  account.segments[*address] = bytes;
  account.mapped_bytes += bytes;
  owners_[*address] = device;
  return address;
}

/// I6: what we take was free, by a sample of this very moment, beside the reserve.
void Witness::check_growth(DeviceId device, std::uint64_t bytes) const {
  if (device == kHost || device == plan_.config.consumer) return;
  const Account& account = accounts_.at(device);
  require(account.answered_free_bytes.has_value() && account.answered_ns == inner_.now_ns(), "I6",
          "{} bytes of device {} are taken on a sample that is {} ns old", bytes, device,
          inner_.now_ns() - account.answered_ns);
  const std::uint64_t reserve = plan_.config.pressure.reserve_bytes;
  require(bytes + reserve <= *account.answered_free_bytes, "I6",
          "{} bytes of device {} are taken where {} are free and {} are reserved", bytes, device,
          *account.answered_free_bytes, reserve);
  require(!owner_waits || !owner_waits(device), "I6", "{} bytes of device {} are taken while its owner waits",
          bytes, device);
  require(account.mapped_bytes + bytes <= plan_.config.peer_budget_bytes, "I6",
          "{} bytes of device {} are taken beside {}, the budget is {}", bytes, device, account.mapped_bytes,
          plan_.config.peer_budget_bytes);
}

Status Witness::unmap_segment(std::byte* address) {
  const NotCounting not_counting;
  const auto owner = owners_.find(address);
  if (owner == owners_.end()) return inner_.unmap_segment(address);
  const DeviceId device = owner->second;
  Account& account = accounts_.at(device);
  const std::uint64_t bytes = account.segments.at(address);
  require(!is_leased || !is_leased(address, bytes), "I1", "a segment of device {} is unmapped under a lease",
          device);
  if (!lost_.contains(device)) check_wiped(device, address, bytes);
  read_in_between();
  account.segments.erase(address);
  account.mapped_bytes -= bytes;
  account.unmapped_bytes += bytes;
  if (account.segments.empty()) ++account.times_emptied;
  owners_.erase(owner);
  return inner_.unmap_segment(address);
}

/// I12: what an owner gets back holds no tenant's bytes.
void Witness::check_wiped(DeviceId device, const std::byte* address, std::uint64_t bytes) const {
  if (!plan_.tenants || plan_.phantom) return;
  for (std::uint64_t at = 0; at + 8 <= bytes; at += 8)
    if (const auto word = read_word(address + at, versions_); word && word->tenant != 0)
      violated("I12",
               fmt::format("a segment of device {} goes back with bytes of tenant {} (version {}) at {}",
                           device, word->tenant, word->version, at));
}

// --- streams and events -----------------------------------------------------------------------------------

Result<StreamId> Witness::create_stream(DeviceId device) {
  const NotCounting not_counting;
  const auto stream = inner_.create_stream(device);
  if (stream) streams_.insert(*stream);
  return stream;
}

Status Witness::destroy_stream(StreamId stream) {
  const NotCounting not_counting;
  streams_.erase(stream);
  return inner_.destroy_stream(stream);
}

Result<EventId> Witness::record_event(StreamId stream) {
  const NotCounting not_counting;
  const auto event = inner_.record_event(stream);
  if (event) events_.insert(*event);
  return event;
}

void Witness::release_event(EventId event) {
  const NotCounting not_counting;
  require(events_.erase(event) == 1, "contract", "event {} is given back, and was not had",
          static_cast<std::uint64_t>(event));
  inner_.release_event(event);
}

EventState Witness::query_event(EventId event) {
  const NotCounting not_counting;
  require(events_.contains(event), "contract", "event {} is asked, and was not had",
          static_cast<std::uint64_t>(event));
  return inner_.query_event(event);
}

Status Witness::stream_wait(StreamId stream, EventId event) {
  const NotCounting not_counting;
  require(events_.contains(event), "contract", "event {} is waited for, and was not had",
          static_cast<std::uint64_t>(event));
  return inner_.stream_wait(stream, event);
}

// --- work -------------------------------------------------------------------------------------------------

/// The corrupt path flips the first byte of all that goes over it, and says nothing.
Status Witness::copy(StreamId stream, Route route, std::span<const Copy> copies) {
  const NotCounting not_counting;
  const Status given = inner_.copy(stream, route, copies);
  if (given) written_[route.to] = copies.back().destination;
  if (!given || !plan_.corrupt_path || !(route == *plan_.corrupt_path)) return given;
  for (const Copy& copy : copies) static_cast<void>(inner_.fill(stream, route.to, copy.destination, 1, 0xA5));
  return given;
}

Status Witness::fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
                     std::uint8_t value) {
  const NotCounting not_counting;
  if (mischief_.refuse_fill > 0 && random_.chance(mischief_.refuse_fill))
    return fail(ErrorCode::out_of_memory, "a planned fault: no fill can be had now");
  return inner_.fill(stream, device, address, bytes, value);
}

void Witness::read_in_between() {
  if (!read_meanwhile || in_between_ || !random_.chance(0.02)) return;
  in_between_ = true;
  read_meanwhile();
  in_between_ = false;
}

}  // namespace harvest::simulator
