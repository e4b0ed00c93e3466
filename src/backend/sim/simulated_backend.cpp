// SPDX-License-Identifier: Apache-2.0
#include <harvest/simulated_backend.hpp>

#include <fmt/format.h>

#include <algorithm>

#include "backend/sim/simulation.hpp"

namespace harvest {
namespace sim {
namespace {

std::uint64_t bits(DeviceId device) {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(device));
}

}  // namespace

Simulation::Simulation(Machine machine, SimulationOptions options)
    : machine_(std::move(machine)),
      info_{.name = "simulated",
            .system = machine_.name,
            .simulated = true,
            .virtual_time = options.time == SimulatedTime::virtual_time,
            .holds_bytes = options.bytes == SimulatedBytes::real},
      memory_(fabric_, contents()),
      effects_(contents()),
      faults_(options.seed, options.faults),
      samples_(machine_.devices.size()) {
  for (const MachineDevice& device : machine_.devices) devices_.push_back(device.info);
  for (const MachineLink& link : machine_.links) links_.push_back(link.info);
  EngineSetup setup{fabric_, effects_, [this](const ScheduledFault& fault) { apply(fault); }, options.seed};
  engine_ =
      info_.virtual_time ? make_virtual_engine(std::move(setup)) : make_threaded_engine(std::move(setup));
  engine_->set_schedule(std::move(options.faults.schedule));
}

// --- checks ---------------------------------------------------------------------------------------------

Status Simulation::check_device(DeviceId device) const {
  if (!fabric_.has_device(device))
    return fail(ErrorCode::not_found, fmt::format("no device {}; there are {} GPUs and the host, {}", device,
                                                  machine_.devices.size() - 1, kHost));
  if (fabric_.is_lost(device)) return fail(ErrorCode::unavailable, fmt::format("device {} is lost", device));
  return {};
}

Status Simulation::check_map(DeviceId device, std::uint64_t bytes, std::span<const DeviceId> readers) const {
  if (Status status = check_device(device); !status) return status;
  const std::uint64_t granularity = devices_[fabric_.slot(device)].segment_granularity_bytes;
  if (bytes == 0 || bytes % granularity != 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("a segment of {} bytes on device {}; it must be a multiple of {}, not 0", bytes,
                            device, granularity));
  // Those that cannot reach it are left out: nothing is mapped here that could be missing.
  for (DeviceId reader : readers)
    if (!fabric_.has_device(reader))
      return fail(ErrorCode::not_found,
                  fmt::format("no device {} to read a segment of device {}", reader, device));
  return {};
}

Result<std::uint32_t> Simulation::usable_link(StreamId stream, Route route) const {
  const Result<DeviceId> device = engine_->stream_device(stream);
  if (!device) return tl::unexpected(device.error());
  const auto link = fabric_.link(route);
  if (!link)
    return fail(ErrorCode::not_found,
                fmt::format("no link from device {} to device {}", route.from, route.to));
  if (Status status = check_device(*device); !status) return tl::unexpected(status.error());
  if (!fabric_.is_usable(*link))
    return fail(ErrorCode::unavailable,
                fmt::format("the link from device {} to device {} is {}", route.from, route.to,
                            fabric_.is_up(*link) ? "at a lost device" : "down"));
  return *link;
}

// --- memory ---------------------------------------------------------------------------------------------

Result<MemoryInfo> Simulation::query_memory(DeviceId device) {
  if (Status status = check_device(device); !status) return tl::unexpected(status.error());
  const TimeNs cost =
      faults_.happens(Fault::slow_query) ? faults_.slow_query_ns() : machine_.costs.query_memory_ns;
  engine_->spend(cost);
  const Memory::Usage usage = memory_.usage(device);
  const TimeNs now = engine_->now_ns();
  MemoryInfo answer{usage.free_bytes(), usage.total_bytes, cost};
  {
    const MutexLock lock(samples_mutex_);
    Sample& sample = samples_[fabric_.slot(device)];
    if (sample.at_ns >= 0 && now - sample.at_ns < faults_.stale_free_ns())
      answer.free_bytes = sample.free_bytes;
    else
      sample = {now, answer.free_bytes};
  }
  note(Call::query, bits(device), answer.free_bytes, static_cast<std::uint64_t>(now));
  return answer;
}

Result<std::byte*> Simulation::map_segment(DeviceId device, std::uint64_t bytes,
                                           std::span<const DeviceId> readers) {
  if (Status status = check_map(device, bytes, readers); !status) return tl::unexpected(status.error());
  const bool host = device == kHost;
  if (faults_.happens(host ? Fault::fail_host_map : Fault::fail_map))
    return fail(ErrorCode::out_of_memory,
                fmt::format("a planned fault: no {} bytes on device {}", bytes, device));
  Result<std::byte*> address = memory_.map(device, bytes);
  note(Call::map, bits(device), bytes, address ? 1 : 0);
  if (!address) return address;
  mapped_.fetch_add(1, std::memory_order_relaxed);
  const MachineCosts& costs = machine_.costs;
  const auto with_access = static_cast<TimeNs>(1 + readers.size());
  const double gib = static_cast<double>(bytes) / (1ULL << 30);
  engine_->spend(host ? static_cast<TimeNs>(gib * static_cast<double>(costs.pin_ns_per_gib))
                      : costs.map_ns + with_access * costs.set_access_ns);
  return address;
}

Status Simulation::unmap_segment(std::byte* address) {
  const auto place = memory_.device_of(address);
  const Result<std::uint64_t> bytes = memory_.unmap(address, true);
  if (!bytes) return tl::unexpected(bytes.error());
  unmapped_.fetch_add(1, std::memory_order_relaxed);
  note(Call::unmap, *bytes, bits(*place));
  if (fabric_.is_lost(*place))
    return fail(ErrorCode::unavailable, fmt::format("device {} is lost; its segment is forgotten", *place));
  engine_->spend(machine_.costs.unmap_ns);
  return {};
}

Status Simulation::register_host(std::byte* address, std::uint64_t bytes) {
  if (faults_.happens(Fault::fail_host_map))
    return fail(ErrorCode::out_of_memory, fmt::format("a planned fault: {} bytes cannot be pinned", bytes));
  if (Status status = memory_.register_host(address, bytes); !status) return status;
  note(Call::register_host, bytes);
  const double gib = static_cast<double>(bytes) / (1ULL << 30);
  engine_->spend(static_cast<TimeNs>(gib * static_cast<double>(machine_.costs.pin_ns_per_gib)));
  return {};
}

Status Simulation::release_host_range(std::byte* address) {
  if (const auto bytes = memory_.unmap(address, false); !bytes) return tl::unexpected(bytes.error());
  return {};
}

// --- streams and events -----------------------------------------------------------------------------------

Result<StreamId> Simulation::create_stream(DeviceId device) {
  if (!fabric_.has_gpu(device)) return fail(ErrorCode::not_found, fmt::format("no GPU {}", device));
  if (Status status = check_device(device); !status) return tl::unexpected(status.error());
  note(Call::create, bits(device));
  return engine_->create_stream(device);
}

Result<StreamId> Simulation::wrap_stream(DeviceId, void*) {
  return fail(ErrorCode::not_supported, "the simulated backend has no native streams");
}

Result<EventId> Simulation::record_event(StreamId stream) {
  const TimeNs late_ns = faults_.happens(Fault::late_event) ? faults_.late_event_ns() : 0;
  note(Call::record, static_cast<std::uint64_t>(stream));
  return engine_->record_event(stream, late_ns);
}

Status Simulation::stream_wait(StreamId stream, EventId event) {
  note(Call::wait, static_cast<std::uint64_t>(stream), static_cast<std::uint64_t>(event));
  return engine_->stream_wait(stream, event);
}

// --- work -------------------------------------------------------------------------------------------------

/// Finds an address's range and holds it for the work to come.
Result<Range*> Simulation::claim(const std::byte* address, std::uint64_t bytes, DeviceId device,
                                 std::uint64_t& trace) const {
  const auto place = memory_.claim(address, bytes, device);
  if (!place)
    return fail(ErrorCode::invalid_argument,
                fmt::format("{} bytes at {} are not memory of device {}", bytes, fmt::ptr(address), device));
  if (place->range != nullptr) trace = mix(mix(trace, place->serial), place->offset_bytes);
  return place->range;
}

/// The last run becomes a part of the one before it where it follows that at both ends, inside of one range
/// at each: as any planner of copies does.
void Simulation::merge_last(Work& work) {
  if (work.copies.size() < 2) return;
  const PlacedCopy& last = work.copies.back();
  PlacedCopy& before = work.copies[work.copies.size() - 2];
  const bool same_ranges = last.source != nullptr && last.source == before.source &&
                           last.destination != nullptr && last.destination == before.destination;
  if (!same_ranges || before.copy.source + before.copy.bytes != last.copy.source ||
      before.copy.destination + before.copy.bytes != last.copy.destination)
    return;
  before.copy.bytes += last.copy.bytes;
  for (Range* range : {last.source, last.destination})  // which `before` holds for both
    range->unfinished_work.fetch_sub(1, std::memory_order_relaxed);
  work.copies.pop_back();
}

Status Simulation::place(Work& work, Route route, std::span<const Copy> copies) const {
  std::uint64_t trace = static_cast<std::uint64_t>(Call::copy);
  for (const Copy& copy : copies) {
    if (copy.destination == nullptr || copy.source == nullptr || copy.bytes == 0)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("a copy of {} bytes from {} to {}", copy.bytes, fmt::ptr(copy.source),
                              fmt::ptr(copy.destination)));
    const auto source = claim(copy.source, copy.bytes, route.from, trace);
    if (!source) return tl::unexpected(source.error());
    PlacedCopy& placed = work.copies.emplace_back(PlacedCopy{copy, nullptr, *source, 0});
    const auto destination = claim(copy.destination, copy.bytes, route.to, trace);
    if (!destination) return tl::unexpected(destination.error());
    placed.destination = *destination;
    work.bytes += copy.bytes;
    trace = mix(trace, copy.bytes);
    merge_last(work);
  }
  if (info_.virtual_time) engine_->note(trace);
  return {};
}

void Simulation::plan_faults(Work& work) {
  work.fails = faults_.happens(Fault::fail_copy);
  work.corrupts = faults_.happens(Fault::corrupt_copy);
  if (faults_.happens(Fault::slow_copy)) work.slow_factor = std::max(1.0, faults_.slow_copy_factor());
}

Status Simulation::copy(StreamId stream, Route route, std::span<const Copy> copies) {
  const Result<std::uint32_t> link = usable_link(stream, route);
  if (!link) return tl::unexpected(link.error());
  if (copies.empty()) return fail(ErrorCode::invalid_argument, "a batch of 0 copies");
  if (faults_.happens(Fault::refuse_copy)) {
    refused_copies_.fetch_add(1, std::memory_order_relaxed);
    return fail(
        ErrorCode::copy_failed,
        fmt::format("a planned fault: copy from device {} to device {} refused", route.from, route.to));
  }
  Work* work = engine_->new_work();
  work->kind = Work::Kind::copy;
  work->link = *link;
  if (Status status = place(*work, route, copies); !status) {
    engine_->drop_work(work);
    return status;
  }
  plan_faults(*work);
  copy_batches_.fetch_add(1, std::memory_order_relaxed);
  copies_.fetch_add(copies.size(), std::memory_order_relaxed);
  return engine_->submit(stream, work);
}

Status Simulation::fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
                        std::uint8_t value) {
  const Result<std::uint32_t> link = usable_link(stream, {device, device});
  if (!link) return tl::unexpected(link.error());
  if (address == nullptr || bytes == 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("a fill of {} bytes at {}", bytes, fmt::ptr(address)));
  std::uint64_t trace = value;
  const auto range = claim(address, bytes, device, trace);
  if (!range) return tl::unexpected(range.error());
  note(Call::fill, trace, bytes);
  Work* work = engine_->new_work();
  work->kind = Work::Kind::fill;
  work->link = *link;
  work->bytes = bytes;
  work->value = value;
  work->copies.push_back({{address, nullptr, bytes}, *range, nullptr, 0});
  return engine_->submit(stream, work);
}

Status Simulation::submit_kernel(StreamId stream, TimeNs duration_ns) {
  if (duration_ns < 0)
    return fail(ErrorCode::invalid_argument, fmt::format("a kernel of {} ns", duration_ns));
  note(Call::kernel, static_cast<std::uint64_t>(stream), static_cast<std::uint64_t>(duration_ns));
  Work* work = engine_->new_work();
  work->kind = Work::Kind::kernel;
  work->duration_ns = duration_ns;
  return engine_->submit(stream, work);
}

// --- tenants, identity, faults ----------------------------------------------------------------------------

Status Simulation::tenant_allocate(DeviceId device, std::uint64_t bytes) {
  if (Status status = check_device(device); !status) return status;
  Status status = memory_.tenant_allocate(device, bytes);
  note(Call::tenant, bits(device), bytes, status ? 1 : 0);
  tenant_allocations_.fetch_add(1, std::memory_order_relaxed);
  if (!status) tenant_failures_.fetch_add(1, std::memory_order_relaxed);
  return status;
}

Status Simulation::tenant_free(DeviceId device, std::uint64_t bytes) {
  if (Status status = check_device(device); !status) return status;
  note(Call::tenant, bits(device), bytes, 2);
  return memory_.tenant_free(device, bytes);
}

std::uint64_t Simulation::tenant_bytes(DeviceId device) const {
  return fabric_.has_device(device) ? memory_.usage(device).tenant_bytes : 0;
}

std::uint64_t Simulation::mapped_bytes(DeviceId device) const {
  return fabric_.has_device(device) ? memory_.usage(device).mapped_bytes : 0;
}

void Simulation::stamp(std::byte* address, std::uint64_t bytes, std::uint64_t tag) {
  if (!info_.holds_bytes) contents_.write(address, bytes, Content{tag, 0});
}

std::optional<std::uint64_t> Simulation::stamp_of(const std::byte* address, std::uint64_t bytes) const {
  const auto content = content_of(address, bytes);
  if (!content || content->offset_bytes != 0) return std::nullopt;
  return content->tag;
}

std::optional<Content> Simulation::content_of(const std::byte* address, std::uint64_t bytes) const {
  if (info_.holds_bytes || bytes == 0) return std::nullopt;
  return contents_.read(address, bytes);
}

Status Simulation::set_link_up(DeviceId from, DeviceId to, bool up) {
  const auto link = fabric_.link({from, to});
  if (!link) return fail(ErrorCode::not_found, fmt::format("no link from device {} to device {}", from, to));
  note(Call::fault, bits(from), bits(to), up ? 1 : 0);
  fabric_.set_up(*link, up);
  engine_->fail_broken_work();
  return {};
}

Status Simulation::lose_device(DeviceId device) {
  if (!fabric_.has_gpu(device)) return fail(ErrorCode::not_found, fmt::format("no GPU {}", device));
  note(Call::fault, bits(device));
  fabric_.lose(device);
  engine_->fail_broken_work();
  return {};
}

Status Simulation::set_faults(FaultPlan plan) {
  if (Status status = check_plan(plan, machine_); !status) return status;
  std::vector<ScheduledFault> schedule = plan.schedule;
  faults_.set_plan(std::move(plan));
  engine_->set_schedule(std::move(schedule));
  return {};
}

/// A scheduled fault's time has come.
void Simulation::apply(const ScheduledFault& fault) {
  using Kind = ScheduledFault::Kind;
  switch (fault.kind) {
    case Kind::link_down:
    case Kind::link_up:
      if (const auto link = fabric_.link(fault.route)) fabric_.set_up(*link, fault.kind == Kind::link_up);
      return;
    case Kind::lose_device:
      if (fabric_.has_gpu(fault.device)) fabric_.lose(fault.device);
      return;
    case Kind::tenant_allocate:
      if (!check_device(fault.device)) return;
      tenant_allocations_.fetch_add(1, std::memory_order_relaxed);
      if (!memory_.tenant_allocate(fault.device, fault.bytes))
        tenant_failures_.fetch_add(1, std::memory_order_relaxed);
      return;
    case Kind::tenant_free:
      if (!check_device(fault.device)) return;
      (void)memory_.tenant_free(fault.device,
                                std::min(fault.bytes, memory_.usage(fault.device).tenant_bytes));
      return;
  }
}

SimulationCounters Simulation::counters() const {
  return {.copy_batches = copy_batches_.load(),
          .copies = copies_.load(),
          .bytes_copied = engine_->completed_copy_bytes(),
          .copy_batches_failed = refused_copies_.load() + engine_->failed_copies(),
          .segments_mapped = mapped_.load(),
          .segments_unmapped = unmapped_.load(),
          .tenant_allocations = tenant_allocations_.load(),
          .tenant_allocations_failed = tenant_failures_.load()};
}

}  // namespace sim

Result<std::unique_ptr<SimulatedBackend>> make_simulated_backend(Machine machine, SimulationOptions options) {
  if (Status status = machine.validate(); !status) return tl::unexpected(status.error());
  if (Status status = sim::check_plan(options.faults, machine); !status)
    return tl::unexpected(status.error());
  return std::make_unique<sim::Simulation>(std::move(machine), std::move(options));
}

}  // namespace harvest
