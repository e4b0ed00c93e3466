// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "backend/sim/address_space.hpp"
#include "backend/sim/content_map.hpp"
#include "backend/sim/fabric.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::sim {

/// A range of memory that the backend gave out.
struct Range {
  DeviceId device = kHost;
  std::uint64_t bytes = 0;
  std::uint64_t serial = 0;  ///< the n-th range: a name that is the same in each run, as an address is not
  bool is_segment = true;    ///< false: stands for the caller's own host memory
  std::atomic<std::uint64_t> unfinished_work{0};
};

/// Where an address lies. `range` is null in the caller's own memory that the backend does not know.
struct Place {
  Range* range = nullptr;
  std::uint64_t serial = 0;
  std::uint64_t offset_bytes = 0;
};

/// All memory of the machine: who holds how much of each device, and which addresses are whose.
///
/// Invariant, for each device: mapped + tenants <= total, and mapped is the sum of its segments.
/// Thread-safe; `claim` takes a reader's lock alone.
class Memory {
 public:
  /// `contents` is told of what comes and goes; null with real bytes.
  Memory(const Fabric& fabric, ContentMap* contents);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  [[nodiscard]] Result<std::byte*> map(DeviceId device, std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] Result<std::byte*> reserve_host_range(std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);

  /// Gives back a range whose first byte is `address`, of the kind that `segment` says. Answers its size.
  [[nodiscard]] Result<std::uint64_t> unmap(std::byte* address, bool segment) HARVEST_EXCLUDES(mutex_);

  [[nodiscard]] Status register_host(std::byte* address, std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] Status unregister_host(std::byte* address) HARVEST_EXCLUDES(mutex_);

  [[nodiscard]] Status tenant_allocate(DeviceId device, std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] Status tenant_free(DeviceId device, std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);

  struct Usage {
    std::uint64_t total_bytes = 0;
    std::uint64_t mapped_bytes = 0;
    std::uint64_t tenant_bytes = 0;
    [[nodiscard]] std::uint64_t free_bytes() const { return total_bytes - mapped_bytes - tenant_bytes; }
  };
  [[nodiscard]] Usage usage(DeviceId device) const HARVEST_EXCLUDES(mutex_);

  /// Where [address, address + bytes) lies, if it is memory of `device`; its range counts one more piece
  /// of unfinished work then. Nothing if it is not.
  [[nodiscard]] std::optional<Place> claim(const std::byte* address, std::uint64_t bytes,
                                           DeviceId device) const HARVEST_EXCLUDES(mutex_);

  /// The device of the range that begins at `address`.
  [[nodiscard]] std::optional<DeviceId> device_of(const std::byte* address) const HARVEST_EXCLUDES(mutex_);

 private:
  Result<std::byte*> add_range(DeviceId device, std::uint64_t bytes, bool segment) HARVEST_REQUIRES(mutex_);

  const Fabric& fabric_;
  ContentMap* const contents_;
  mutable SharedMutex mutex_;
  std::vector<Usage> usage_ HARVEST_GUARDED_BY(mutex_);            ///< by Fabric::slot
  std::deque<AddressSpace> addresses_ HARVEST_GUARDED_BY(mutex_);  ///< by Fabric::slot, then the caller's
  mutable std::map<std::uintptr_t, Range> ranges_ HARVEST_GUARDED_BY(mutex_);
  std::map<std::uintptr_t, std::uint64_t> registered_ HARVEST_GUARDED_BY(mutex_);
  std::uint64_t next_serial_ HARVEST_GUARDED_BY(mutex_) = 1;
};

}  // namespace harvest::sim
