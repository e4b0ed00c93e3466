// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/memory.hpp"

#include <fmt/format.h>

#include "base/assert.hpp"

namespace harvest::sim {
namespace {

std::uintptr_t number(const std::byte* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

}  // namespace

Memory::Memory(const Fabric& fabric, ContentMap* contents) : fabric_(fabric), contents_(contents) {
  const bool backed = contents == nullptr;
  for (const MachineDevice& device : fabric.machine().devices) {
    usage_.push_back({device.info.total_bytes, 0, device.tenant_bytes});
    addresses_.emplace_back(device.info.segment_granularity_bytes, backed);
  }
  addresses_.emplace_back(4096, backed);
}

Memory::~Memory() = default;

Result<std::byte*> Memory::add_range(DeviceId device, std::uint64_t bytes, bool segment) {
  AddressSpace& space = segment ? addresses_[fabric_.slot(device)] : addresses_.back();
  const Result<std::byte*> address = space.reserve(bytes);
  if (!address) return address;
  Range& range = ranges_[number(*address)];
  range.device = device;
  range.bytes = bytes;
  range.serial = next_serial_++;
  range.is_segment = segment;
  return address;
}

Result<std::byte*> Memory::map(DeviceId device, std::uint64_t bytes) {
  const WriteLock lock(mutex_);
  Usage& usage = usage_[fabric_.slot(device)];
  if (bytes > usage.free_bytes())
    return fail(ErrorCode::out_of_memory, fmt::format("a segment of {} bytes on device {}, where {} are free",
                                                      bytes, device, usage.free_bytes()));
  Result<std::byte*> address = add_range(device, bytes, true);
  if (address) usage.mapped_bytes += bytes;
  return address;
}

Result<std::byte*> Memory::reserve_host_range(std::uint64_t bytes) {
  if (bytes == 0) return fail(ErrorCode::invalid_argument, "a range of 0 bytes");
  const WriteLock lock(mutex_);
  return add_range(kHost, bytes, false);
}

Result<std::uint64_t> Memory::unmap(std::byte* address, bool segment) {
  const WriteLock lock(mutex_);
  const auto found = ranges_.find(number(address));
  if (found == ranges_.end() || found->second.is_segment != segment)
    return fail(ErrorCode::invalid_argument, fmt::format("{} is not the address of a {}", fmt::ptr(address),
                                                         segment ? "segment" : "reserved range"));
  const Range& range = found->second;
  const std::uint64_t unfinished = range.unfinished_work.load();
  HARVEST_ASSERT(unfinished == 0,
                 fmt::format("memory of device {} is unmapped while {} pieces of unfinished work "
                             "touch it, which poisons a CUDA context",
                             range.device, unfinished));
  const std::uint64_t bytes = range.bytes;
  const std::size_t slot = segment ? fabric_.slot(range.device) : addresses_.size() - 1;
  if (segment) usage_[slot].mapped_bytes -= bytes;
  ranges_.erase(found);
  addresses_[slot].release(address, bytes);
  if (contents_ != nullptr) contents_->clear(address, bytes);
  return bytes;
}

Status Memory::register_host(std::byte* address, std::uint64_t bytes) {
  if (address == nullptr || bytes == 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("host memory at {} of {} bytes", fmt::ptr(address), bytes));
  if (UINTPTR_MAX - number(address) < bytes)
    return fail(ErrorCode::invalid_argument,
                fmt::format("host memory at {} of {} bytes runs past the end of all addresses",
                            fmt::ptr(address), bytes));
  const WriteLock lock(mutex_);
  const auto next = registered_.lower_bound(number(address));
  const bool into_next = next != registered_.end() && next->first < number(address) + bytes;
  const bool into_previous =
      next != registered_.begin() && std::prev(next)->first + std::prev(next)->second > number(address);
  if (into_next || into_previous)
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("host memory at {} of {} bytes overlaps what is registered", fmt::ptr(address), bytes));
  registered_.emplace(number(address), bytes);
  return {};
}

Status Memory::unregister_host(std::byte* address) {
  const WriteLock lock(mutex_);
  if (registered_.erase(number(address)) == 1) return {};
  return fail(ErrorCode::invalid_argument, fmt::format("{} is not registered", fmt::ptr(address)));
}

Status Memory::tenant_allocate(DeviceId device, std::uint64_t bytes) {
  const WriteLock lock(mutex_);
  Usage& usage = usage_[fabric_.slot(device)];
  if (bytes > usage.free_bytes())
    return fail(ErrorCode::out_of_memory,
                fmt::format("a tenant wants {} bytes on device {}, where {} are free", bytes, device,
                            usage.free_bytes()));
  usage.tenant_bytes += bytes;
  return {};
}

Status Memory::tenant_free(DeviceId device, std::uint64_t bytes) {
  const WriteLock lock(mutex_);
  Usage& usage = usage_[fabric_.slot(device)];
  if (bytes > usage.tenant_bytes)
    return fail(ErrorCode::invalid_argument, fmt::format("tenants of device {} free {} bytes and hold {}",
                                                         device, bytes, usage.tenant_bytes));
  usage.tenant_bytes -= bytes;
  return {};
}

Memory::Usage Memory::usage(DeviceId device) const {
  const ReadLock lock(mutex_);
  return usage_[fabric_.slot(device)];
}

std::optional<Place> Memory::claim(const std::byte* address, std::uint64_t bytes, DeviceId device) const {
  const std::uintptr_t start = number(address);
  const ReadLock lock(mutex_);
  auto found = ranges_.upper_bound(start);
  if (found != ranges_.begin()) {
    --found;
    const std::uint64_t offset = start - found->first;
    if (offset < found->second.bytes) {
      if (found->second.device != device || bytes > found->second.bytes - offset) return std::nullopt;
      found->second.unfinished_work.fetch_add(1, std::memory_order_relaxed);
      return Place{&found->second, found->second.serial, offset};
    }
  }
  // The caller's own memory: it may lie anywhere, but phantom copies could not touch it.
  if (device == kHost && contents_ == nullptr) return Place{};
  return std::nullopt;
}

std::optional<DeviceId> Memory::device_of(const std::byte* address) const {
  const ReadLock lock(mutex_);
  const auto found = ranges_.find(number(address));
  if (found == ranges_.end()) return std::nullopt;
  return found->second.device;
}

}  // namespace harvest::sim
