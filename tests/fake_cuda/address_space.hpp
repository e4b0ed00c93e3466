// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace harvest::fake_cuda::internal {

class Accounts;

/// Memory of a device with the bytes in it. They lie at `bytes_at`, where only the fake touches them; the
/// addresses that the user sees are numbers in reserved space. Its end gives the device's memory back, unless
/// somebody else still has it through an exported file descriptor.
struct Physical {
  int device = 0;
  std::uint64_t bytes = 0;
  std::byte* bytes_at = nullptr;
  int fd = -1;  ///< of what can be shared with other processes
  bool exported = false;
  bool imported = false;
  std::uint64_t inode = 0;
  Accounts* accounts = nullptr;

  Physical() = default;
  Physical(const Physical&) = delete;
  Physical& operator=(const Physical&) = delete;
  ~Physical();
};

enum class RangeKind : std::uint8_t { device, mapping, pinned, registered };

/// Memory that CUDA knows. No copy crosses its ends.
struct Range {
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  RangeKind kind = RangeKind::device;
  std::uint64_t id = 0;          ///< never used again, so that memory at the same address is other memory
  int device = -1;               ///< where it is; of host memory: which was current when it was made
  std::uint64_t handle = 0;      ///< of a mapping
  std::map<int, bool> access{};  ///< of a mapping: devices, and whether they may write
  std::shared_ptr<Physical> physical{};  ///< of device memory
  std::shared_ptr<std::byte> pinned{};   ///< of pinned memory
  [[nodiscard]] std::uint64_t end() const { return begin + bytes; }
  [[nodiscard]] bool is_host() const { return kind == RangeKind::pinned || kind == RangeKind::registered; }
};

struct Handle {
  std::shared_ptr<Physical> physical;
  std::uint64_t references = 1;
};

/// What an address is.
enum class Found : std::uint8_t {
  range,     ///< within one range
  spans,     ///< begins in one and ends outside of it, or touches one without beginning in it
  stale,     ///< a device's address where there is no memory (any more)
  pageable,  ///< nothing of CUDA's
};

struct Lookup {
  Found found = Found::pageable;
  const Range* range = nullptr;
};

/// Everything that has an address or a handle of physical memory. Not thread-safe: the state's lock guards
/// it.
class AddressSpace {
 public:
  std::map<std::uint64_t, Range> ranges{};                ///< by begin, without overlaps
  std::map<std::uint64_t, std::uint64_t> reservations{};  ///< begin to bytes, of cuMemAddressReserve
  std::map<std::uint64_t, Handle> handles{};
  std::map<std::uint64_t, std::weak_ptr<Physical>> shareable{};  ///< by inode
  std::uint64_t next_id = 1;

  [[nodiscard]] Lookup find(std::uint64_t address, std::uint64_t bytes) const;
  [[nodiscard]] bool overlaps(std::uint64_t begin, std::uint64_t bytes) const;
  Range& add(Range range);

  /// Addresses that nothing else has. They are used again only when much space has been used, so that a stale
  /// address is seen to be one. 0 if there are none.
  [[nodiscard]] std::uint64_t reserve(std::uint64_t bytes, std::uint64_t alignment);
  void give_back(std::uint64_t begin, std::uint64_t bytes);
  [[nodiscard]] bool is_reserved(std::uint64_t begin, std::uint64_t bytes) const;
  void clear();

 private:
  struct Chunk {
    std::uint64_t begin;
    std::uint64_t bytes;
    std::uint64_t used;
  };
  std::vector<Chunk> chunks_{};
  std::multimap<std::uint64_t, std::uint64_t> given_back_{};  ///< bytes to begin
  std::uint64_t given_back_bytes_ = 0;
};

/// Memory with bytes behind it, counted by `accounts`. Null if the device has not as much.
[[nodiscard]] std::shared_ptr<Physical> make_physical(Accounts& accounts, int device, std::uint64_t bytes);

/// The same, but its bytes can be shared with other processes.
[[nodiscard]] std::shared_ptr<Physical> make_shareable(AddressSpace& space, Accounts& accounts, int device,
                                                       std::uint64_t bytes);

/// The memory that an exported descriptor is of; null if it is none of ours.
[[nodiscard]] std::shared_ptr<Physical> import_physical(AddressSpace& space, Accounts& accounts, int fd);

/// A new descriptor, which is the caller's; -1 if there is none.
[[nodiscard]] int export_physical(Physical& physical);

}  // namespace harvest::fake_cuda::internal
