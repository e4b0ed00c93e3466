// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/simulated_backend.hpp>

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "backend/sim/engine.hpp"
#include "backend/sim/fabric.hpp"
#include "backend/sim/faults.hpp"
#include "backend/sim/memory.hpp"
#include "backend/sim/mix.hpp"
#include "backend/sim/work.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::sim {

/// What a call was, in the trace.
enum class Call : std::uint64_t {
  map = 1,
  unmap,
  register_host,
  query,
  create,
  record,
  wait,
  copy,
  fill,
  kernel,
  tenant,
  fault
};

/// The contract's checks, memory, and faults; streams and time are the engine's.
class Simulation final : public SimulatedBackend {
 public:
  Simulation(Machine machine, SimulationOptions options);

  const BackendInfo& info() const override { return info_; }
  std::span<const DeviceInfo> devices() const override { return devices_; }
  std::span<const LinkInfo> links() const override { return links_; }

  Result<MemoryInfo> query_memory(DeviceId device) override;
  Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override;
  Status unmap_segment(std::byte* address) override;
  Status register_host(std::byte* address, std::uint64_t bytes) override;
  Status unregister_host(std::byte* address) override { return memory_.unregister_host(address); }

  Result<StreamId> create_stream(DeviceId device) override;
  Result<StreamId> wrap_stream(DeviceId device, void* native) override;
  Status destroy_stream(StreamId stream) override { return engine_->destroy_stream(stream); }
  Result<DeviceId> stream_device(StreamId stream) const override { return engine_->stream_device(stream); }
  bool is_capturing(StreamId) const override { return false; }
  Result<EventId> record_event(StreamId stream) override;
  void release_event(EventId event) override { engine_->release_event(event); }
  EventState query_event(EventId event) override { return engine_->query_event(event); }
  Status stream_wait(StreamId stream, EventId event) override;
  EventState wait_event(EventId event, TimeNs deadline_ns) override {
    return engine_->wait_event(event, deadline_ns);
  }

  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override;
  Status fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override;

  TimeNs now_ns() const override { return engine_->now_ns(); }
  void sleep_until(TimeNs until_ns) override { engine_->sleep_until(until_ns); }

  const Machine& machine() const override { return machine_; }
  SimulationCounters counters() const override;
  std::uint64_t trace_hash() const override { return engine_->trace_hash(); }

  Status tenant_allocate(DeviceId device, std::uint64_t bytes) override;
  Status tenant_free(DeviceId device, std::uint64_t bytes) override;
  std::uint64_t tenant_bytes(DeviceId device) const override;
  std::uint64_t mapped_bytes(DeviceId device) const override;

  Status submit_kernel(StreamId stream, TimeNs duration_ns) override;
  Result<std::byte*> reserve_host_range(std::uint64_t bytes) override {
    return memory_.reserve_host_range(bytes);
  }
  Status release_host_range(std::byte* address) override;

  void stamp(std::byte* address, std::uint64_t bytes, std::uint64_t tag) override;
  std::optional<std::uint64_t> stamp_of(const std::byte* address, std::uint64_t bytes) const override;
  std::optional<Content> content_of(const std::byte* address, std::uint64_t bytes) const override;

  Status set_link_up(DeviceId from, DeviceId to, bool up) override;
  Status lose_device(DeviceId device) override;
  Status set_faults(FaultPlan plan) override;

 private:
  [[nodiscard]] ContentMap* contents() { return info_.holds_bytes ? nullptr : &contents_; }
  [[nodiscard]] Status check_device(DeviceId device) const;
  [[nodiscard]] Status check_map(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) const;
  [[nodiscard]] Result<std::uint32_t> usable_link(StreamId stream, Route route) const;
  static void merge_last(Work& work);
  [[nodiscard]] Status place(Work& work, Route route, std::span<const Copy> copies) const;
  [[nodiscard]] Result<Range*> claim(const std::byte* address, std::uint64_t bytes, DeviceId device,
                                     std::uint64_t& trace) const;
  void plan_faults(Work& work);
  void apply(const ScheduledFault& fault);
  void note(Call call, std::uint64_t a, std::uint64_t b = 0, std::uint64_t c = 0) {
    if (info_.virtual_time) engine_->note(mix(mix(mix(static_cast<std::uint64_t>(call), a), b), c));
  }

  const Machine machine_;
  BackendInfo info_;
  std::vector<DeviceInfo> devices_;
  std::vector<LinkInfo> links_;
  Fabric fabric_{machine_};
  ContentMap contents_;
  Memory memory_;
  Effects effects_;
  FaultInjector faults_;

  /// A device's free count as it was when it was last looked at; what a stale answer gives.
  struct Sample {
    TimeNs at_ns = -1;
    std::uint64_t free_bytes = 0;
  };
  Mutex samples_mutex_;
  std::vector<Sample> samples_ HARVEST_GUARDED_BY(samples_mutex_);

  std::atomic<std::uint64_t> copy_batches_{0}, copies_{0}, refused_copies_{0};
  std::atomic<std::uint64_t> mapped_{0}, unmapped_{0}, tenant_allocations_{0}, tenant_failures_{0};

  std::unique_ptr<Engine> engine_;  ///< last: its threads use all of the above
};

}  // namespace harvest::sim
