// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>

#include <cstdint>
#include <memory>
#include <vector>

#include "cli/bench/machine.hpp"
#include "cli/bench/resources.hpp"
#include "cli/bench/timing.hpp"

namespace harvest::cli::bench {

/// Work that the owner's GPU does meanwhile: a row of fills, each a kernel that is bound by memory.
class OwnerLoad {
 public:
  [[nodiscard]] static Result<std::unique_ptr<OwnerLoad>> create(Backend& backend, DeviceId device,
                                                                 std::uint64_t scratch_bytes);
  /// Makes the work about `ns` long, as far as a stream can hold it.
  [[nodiscard]] Status resize(TimeNs ns);
  /// Does it once; `meanwhile` runs when it has begun.
  [[nodiscard]] Result<GatedRun> run(const Submit& meanwhile = nullptr);

 private:
  OwnerLoad(DeviceId device, Segment scratch, Gate gate, Stream stream)
      : device_(device), scratch_(std::move(scratch)), gate_(std::move(gate)), stream_(std::move(stream)) {}
  DeviceId device_;
  std::uint64_t fills_ = 16;
  Segment scratch_;
  Gate gate_;
  Stream stream_;
};

/// One reclaim, from the request on.
struct ReclaimRun {
  ReclaimReport report;
  TimeNs call_ns = 0;     ///< until `reclaim` returned
  TimeNs free_ns = 0;     ///< until the device's free count showed the bytes
  bool was_seen = false;  ///< it did
};

struct ReclaimSetting {
  DeviceId consumer = 0;
  DeviceId peer = 0;
  std::uint64_t bytes = 0;
  std::uint64_t object_bytes = 0;
};

/// Where the authoritative bytes of all objects are: one stretch of host memory, the same for all of them.
class SharedObject {
 public:
  [[nodiscard]] static Result<SharedObject> create(const MeasuredMachine& machine, std::uint64_t bytes);
  SharedObject(SharedObject&& other) noexcept
      : simulated_(std::exchange(other.simulated_, nullptr)),
        data_(other.data_),
        segment_(std::move(other.segment_)) {}
  SharedObject& operator=(SharedObject&&) = delete;
  ~SharedObject() {
    if (simulated_ != nullptr) static_cast<void>(simulated_->release_host_range(data_));
  }
  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  SharedObject(SimulatedBackend* simulated, std::byte* data, Segment segment)
      : simulated_(simulated), data_(data), segment_(std::move(segment)) {}
  SimulatedBackend* simulated_;
  std::byte* data_;
  Segment segment_;
};

/// A cache whose peer holds `setting.bytes` of objects that host memory has too.
[[nodiscard]] Result<std::unique_ptr<PeerCache>> fill_peer(Backend& backend, const ReclaimSetting& setting,
                                                           const SharedObject& object);

/// Asks for all of them back, and asks the device whether they are there.
[[nodiscard]] Result<ReclaimRun> reclaim_all(Backend& backend, PeerCache& cache,
                                             const ReclaimSetting& setting);

}  // namespace harvest::cli::bench
