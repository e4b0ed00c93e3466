// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/simulated_backend.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "backend/forwarding_backend.hpp"
#include "core/random.hpp"
#include "simulator/plan.hpp"

namespace harvest::simulator {

/// Stands between the cache and its machine. It sees every call, so it can tell what the cache took, gave
/// back and asked; and it is where an owner or a driver misbehaves.
class Witness : public test::ForwardingBackend {
 public:
  /// What a device has seen of the cache.
  struct Account {
    std::map<std::byte*, std::uint64_t> segments;  ///< mapped now: address -> bytes
    std::uint64_t mapped_bytes = 0;
    std::uint64_t unmapped_bytes = 0;  ///< ever
    std::uint64_t times_emptied = 0;
    std::optional<std::uint64_t> answered_free_bytes;  ///< by the last sample
    TimeNs answered_ns = 0;
  };
  /// How the outside misbehaves from now on.
  struct Mischief {
    double jumping_free = 0;
    double sudden_owner = 0;
    double refuse_fill = 0;
  };

  /// Calls go to `inner`, which is `simulated` or stands before it.
  Witness(Backend& inner, SimulatedBackend& simulated, const Plan& plan, std::uint64_t seed);

  /// Asked before a segment goes: is any byte of it leased?
  std::function<bool(const std::byte* address, std::uint64_t bytes)> is_leased;
  /// Asked before a segment comes: does an owner wait for memory of this device?
  std::function<bool(DeviceId device)> owner_waits;
  /// Called in the middle of a driver's call under the cache's lock: reads go on meanwhile (I9).
  std::function<void()> read_meanwhile;

  /// Versions of objects up to here have been written, see words.hpp.
  void note_versions(std::uint32_t next) { versions_ = next; }
  void set_mischief(Mischief mischief) { mischief_ = mischief; }
  /// The device is gone: what lies on it does not matter any more.
  void note_lost(DeviceId device) { lost_.insert(device); }
  /// From here on the memory functions are the cache's and not those of the life itself.
  void watch_memory(bool watching) { watching_ = watching; }

  [[nodiscard]] const Account& account(DeviceId device) const { return accounts_.at(device); }
  /// The segment that an address lies in: address and size; null if none.
  [[nodiscard]] std::pair<std::byte*, std::uint64_t> segment_of(DeviceId device,
                                                                const std::byte* address) const;
  /// The last copy to each device since `forget_copies`.
  void forget_copies() { written_.clear(); }
  [[nodiscard]] const std::map<DeviceId, std::byte*>& written() const { return written_; }
  [[nodiscard]] std::size_t live_events() const { return events_.size(); }
  [[nodiscard]] std::size_t live_streams() const { return streams_.size(); }

  Result<MemoryInfo> query_memory(DeviceId device) override;
  Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override;
  Status unmap_segment(std::byte* address) override;
  Result<StreamId> create_stream(DeviceId device) override;
  Status destroy_stream(StreamId stream) override;
  Result<EventId> record_event(StreamId stream) override;
  void release_event(EventId event) override;
  EventState query_event(EventId event) override;
  Status stream_wait(StreamId stream, EventId event) override;
  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override;
  Status fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override;

 private:
  void check_growth(DeviceId device, std::uint64_t bytes) const;
  void check_wiped(DeviceId device, const std::byte* address, std::uint64_t bytes) const;
  void read_in_between();

  SimulatedBackend& simulated_;
  const Plan& plan_;
  Random random_;
  Mischief mischief_;
  std::uint32_t versions_ = 0;
  bool watching_ = false;
  bool in_between_ = false;
  std::map<DeviceId, Account> accounts_;
  std::map<std::byte*, DeviceId> owners_;
  std::map<DeviceId, std::byte*> written_;
  std::set<DeviceId> lost_;
  std::set<EventId> events_;
  std::set<StreamId> streams_;
};

}  // namespace harvest::simulator
