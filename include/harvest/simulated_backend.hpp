// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/machine.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

/// A machine of GPUs that exists only in this process: memory, links, copy engines, other tenants and
/// the things that go wrong. docs/simulation.md says what it models and what it does not.
namespace harvest {

enum class SimulatedBytes : std::uint8_t {
  real,     ///< device memory is host memory, so that tests can check every byte
  phantom,  ///< addresses without memory behind them; what lies there is known by its stamp
};

enum class SimulatedTime : std::uint8_t {
  virtual_time,  ///< discrete events; the clock moves only in calls that wait; repeatable
  real_time,     ///< a thread for each stream really copies, after short random delays; for race detectors
};

/// When a fault happens: with probability `rate` each time, and at the `at`-th time (from 1; 0: never).
struct FaultTrigger {
  double rate = 0;
  std::uint64_t at = 0;
};

/// Something that happens at a point in time, whatever the cache does.
struct ScheduledFault {
  enum class Kind : std::uint8_t { link_down, link_up, lose_device, tenant_allocate, tenant_free };
  TimeNs at_ns = 0;
  Kind kind = Kind::tenant_allocate;
  Route route{};            ///< of link_down and link_up
  DeviceId device = kHost;  ///< of the others
  std::uint64_t bytes = 0;  ///< of the tenant's two
};

/// All that goes wrong, as data. The same seed and plan give the same faults.
struct FaultPlan {
  FaultTrigger refuse_copy{};  ///< `copy` answers copy_failed
  FaultTrigger fail_copy{};    ///< a batch fails in flight: its destination is poison, its event `failed`
  FaultTrigger slow_copy{};    ///< a batch runs at 1 / slow_copy_factor of its link's bandwidth
  double slow_copy_factor = 10;
  FaultTrigger corrupt_copy{};   ///< a batch arrives with other content and says nothing
  FaultTrigger fail_map{};       ///< map_segment on a GPU answers out_of_memory
  FaultTrigger fail_host_map{};  ///< map_segment or register_host of host memory does
  /// An event completes late_event_ns after its work, and those behind it on its stream not before it.
  FaultTrigger late_event{};
  TimeNs late_event_ns = 1'000'000;
  FaultTrigger slow_query{};  ///< query_memory takes slow_query_ns
  TimeNs slow_query_ns = 8'000'000;
  TimeNs stale_free_ns = 0;  ///< query_memory may answer with a sample up to this old
  std::vector<ScheduledFault> schedule{};
};

struct SimulationOptions {
  SimulatedBytes bytes = SimulatedBytes::real;
  SimulatedTime time = SimulatedTime::virtual_time;
  std::uint64_t seed = 1;
  FaultPlan faults{};
};

/// What happened so far.
struct SimulationCounters {
  std::uint64_t copy_batches = 0;         ///< accepted
  std::uint64_t copies = 0;               ///< runs in those batches
  std::uint64_t bytes_copied = 0;         ///< by batches that completed
  std::uint64_t copy_batches_failed = 0;  ///< refused or failed in flight
  std::uint64_t segments_mapped = 0;
  std::uint64_t segments_unmapped = 0;
  std::uint64_t tenant_allocations = 0;         ///< asked for by tenants, scheduled ones included
  std::uint64_t tenant_allocations_failed = 0;  ///< harm: an owner did not get memory
};

/// What a range of phantom memory holds: bytes `offset_bytes`.. of the content stamped `tag`.
struct Content {
  std::uint64_t tag = 0;
  std::uint64_t offset_bytes = 0;
  friend bool operator==(const Content&, const Content&) = default;
};

/// `Backend` with the controls of a simulation. All functions may be called from any thread.
///
/// Virtual time: `now_ns` moves in `wait_event` and `sleep_until`, and by their cost in `map_segment`,
/// `unmap_segment`, `register_host` and `query_memory`; submitting work takes none. `wait_event` with
/// deadline `kNever` on an event that nothing under way can complete (a kernel of endless duration
/// stands before it) returns `pending` at once.
///
/// While a copy is under way its destination holds poison; it arrives whole only if the source stayed
/// the same from start to end. So a missing order shows up as wrong bytes. Unmapping a segment that
/// unfinished work touches stops the process with a message, as it would poison a CUDA context.
class SimulatedBackend : public Backend {
 public:
  [[nodiscard]] virtual const Machine& machine() const = 0;
  [[nodiscard]] virtual SimulationCounters counters() const = 0;

  /// A hash over every call, result and completion with its time. Same seed and calls, same hash (I11).
  /// 0 in real time, which is not repeatable.
  [[nodiscard]] virtual std::uint64_t trace_hash() const = 0;

  // --- other tenants ------------------------------------------------------------------------------

  /// A tenant of `device` takes or gives back memory. Errors: out_of_memory (it does not fit beside
  /// what is mapped: an owner was harmed), not_found, unavailable; invalid_argument (frees more than
  /// tenants hold).
  [[nodiscard]] virtual Status tenant_allocate(DeviceId device, std::uint64_t bytes) = 0;
  [[nodiscard]] virtual Status tenant_free(DeviceId device, std::uint64_t bytes) = 0;
  [[nodiscard]] virtual std::uint64_t tenant_bytes(DeviceId device) const = 0;
  [[nodiscard]] virtual std::uint64_t mapped_bytes(DeviceId device) const = 0;

  // --- work and memory of the caller ----------------------------------------------------------------

  /// Gives `stream` work that only takes time: somebody's kernel. `kNever` never ends.
  [[nodiscard]] virtual Status submit_kernel(StreamId stream, TimeNs duration_ns) = 0;

  /// Host memory that stands for the caller's own (external_host): not counted against any device.
  /// Phantom where the backend is. Errors: invalid_argument, out_of_memory (of addresses).
  [[nodiscard]] virtual Result<std::byte*> reserve_host_range(std::uint64_t bytes) = 0;
  [[nodiscard]] virtual Status release_host_range(std::byte* address) = 0;

  // --- identity of phantom bytes (no effect and no answer with real bytes) ---------------------------

  /// The range now holds content `tag` from its beginning. Copies and fills propagate it.
  virtual void stamp(std::byte* address, std::uint64_t bytes, std::uint64_t tag) = 0;

  /// The tag if exactly the first `bytes` bytes of one stamped content lie there; nothing if the range
  /// is undefined, under way, mixed, or another part of it.
  [[nodiscard]] virtual std::optional<std::uint64_t> stamp_of(const std::byte* address,
                                                              std::uint64_t bytes) const = 0;

  /// As `stamp_of`, for any contiguous part of one content. After `fill` with v: tag `fill_tag(v)`, offset 0.
  [[nodiscard]] virtual std::optional<Content> content_of(const std::byte* address,
                                                          std::uint64_t bytes) const = 0;

  [[nodiscard]] static constexpr std::uint64_t fill_tag(std::uint8_t value) {
    return 0xF111'0000'0000'0000ULL | value;
  }

  // --- faults by hand ---------------------------------------------------------------------------------

  /// Copies on a link that goes down fail, those in flight too. Errors: not_found.
  virtual Status set_link_up(DeviceId from, DeviceId to, bool up) = 0;

  /// The device is gone for good: its memory, and all work that touches it. Errors: not_found.
  virtual Status lose_device(DeviceId device) = 0;

  /// Replaces the plan; the schedule's points in time that are past happen at once. Counts of n-th
  /// times start again. Errors: invalid_argument (what cannot be meant: a rate beyond 0..1, a device that is
  /// not there); then the plan before it stays.
  virtual Status set_faults(FaultPlan plan) = 0;
};

/// Errors: malformed (`machine.validate()`), invalid_argument (`options.faults`, as `set_faults`),
/// out_of_memory (of addresses).
[[nodiscard]] Result<std::unique_ptr<SimulatedBackend>> make_simulated_backend(
    Machine machine, SimulationOptions options = {});

}  // namespace harvest
