// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <harvest/machine.hpp>
#include <set>

namespace harvest {
namespace {

tl::unexpected<Error> malformed(std::string message) {
  return fail(ErrorCode::malformed, std::move(message));
}

/// A slower link would need more time than the clock can tell for what the largest devices hold.
constexpr double kBandwidthMin = 1e6;
constexpr double kBandwidthMax = 1e15;

Status check_bandwidth(std::string_view field, double bytes_per_s) {
  if (bytes_per_s >= kBandwidthMin && bytes_per_s <= kBandwidthMax) return {};
  return malformed(fmt::format("{} is {}, the limits are {:g} and {:g}", field, bytes_per_s, kBandwidthMin,
                               kBandwidthMax));
}

constexpr TimeNs kCostMaxNs = 3'600'000'000'000;  // an hour

Status check_cost(std::string_view field, TimeNs ns) {
  if (ns >= 0 && ns <= kCostMaxNs) return {};
  return malformed(fmt::format("{} is {}, the limits are 0 and {} (an hour)", field, ns, kCostMaxNs));
}

Status check_device(const MachineDevice& device, std::size_t index, std::size_t count) {
  const auto field = [&](const char* name) { return fmt::format("devices[{}].{}", index, name); };
  const DeviceInfo& info = device.info;
  const DeviceId wanted = index + 1 == count ? kHost : static_cast<DeviceId>(index);
  if (info.id != wanted)
    return malformed(fmt::format("{} is {}, it must be {} (GPUs from 0 in order, the host, {}, last)",
                                 field("id"), info.id, wanted, kHost));
  if (info.total_bytes == 0 || info.total_bytes > (std::uint64_t{1} << 46))
    return malformed(
        fmt::format("{} is {}, the limits are 1 and 2^46", field("total_bytes"), info.total_bytes));
  const std::uint64_t granularity = info.segment_granularity_bytes;
  if (granularity < 4096 || (granularity & (granularity - 1)) != 0 || granularity > (1ULL << 30))
    return malformed(fmt::format("{} is {}, it must be a power of two from 4096 to 2^30",
                                 field("segment_granularity_bytes"), granularity));
  if (info.id != kHost && (info.copy_engines == 0 || info.copy_engines > 64))
    return malformed(
        fmt::format("{} is {}, the limits are 1 and 64", field("copy_engines"), info.copy_engines));
  if (device.tenant_bytes > info.total_bytes)
    return malformed(fmt::format("{} is {}, the limit is total_bytes, {}", field("tenant_bytes"),
                                 device.tenant_bytes, info.total_bytes));
  return {};
}

Status check_link(const Machine& machine, std::size_t index) {
  const MachineLink& link = machine.links[index];
  const auto field = [&](const char* name) { return fmt::format("links[{}].{}", index, name); };
  const auto gpus = static_cast<DeviceId>(machine.devices.size() - 1);
  for (const auto& [name, id] : {std::pair{"from", link.info.from}, {"to", link.info.to}})
    if (id < kHost || id >= gpus)
      return malformed(
          fmt::format("{} is {}, the limits are {} (the host) and {}", field(name), id, kHost, gpus - 1));
  if (Status status = check_bandwidth(field("bandwidth_bytes_per_s"), link.info.bandwidth_bytes_per_s);
      !status)
    return status;
  for (const auto& [name, ns] : {std::pair{"latency_ns", link.info.latency_ns},
                                 {"issue_ns", link.info.issue_ns},
                                 {"issue_batched_ns", link.info.issue_batched_ns}})
    if (Status status = check_cost(field(name), ns); !status) return status;
  for (std::uint32_t port : link.ports)
    if (port >= machine.ports.size())
      return malformed(
          fmt::format("{} names port {}, there are {}", field("ports"), port, machine.ports.size()));
  if (std::set(link.ports.begin(), link.ports.end()).size() != link.ports.size())
    return malformed(fmt::format("{} names a port twice", field("ports")));
  return {};
}

}  // namespace

const MachineLink* Machine::find_link(DeviceId from, DeviceId to) const {
  const auto found = std::find_if(links.begin(), links.end(), [&](const MachineLink& link) {
    return link.info.from == from && link.info.to == to;
  });
  return found == links.end() ? nullptr : &*found;
}

Status Machine::validate() const {
  if (devices.size() < 2 || devices.size() > 129)
    return malformed(
        fmt::format("devices has {} entries, the limits are 2 (a GPU and the host) and 129", devices.size()));
  for (std::size_t i = 0; i < devices.size(); ++i)
    if (Status status = check_device(devices[i], i, devices.size()); !status) return status;
  for (std::size_t i = 0; i < ports.size(); ++i)
    if (Status status = check_bandwidth(fmt::format("ports[{}].bandwidth_bytes_per_s", i),
                                        ports[i].bandwidth_bytes_per_s);
        !status)
      return status;
  std::set<std::pair<DeviceId, DeviceId>> pairs;
  for (std::size_t i = 0; i < links.size(); ++i) {
    if (Status status = check_link(*this, i); !status) return status;
    if (!pairs.emplace(links[i].info.from, links[i].info.to).second)
      return malformed(fmt::format("links[{}] goes from {} to {} as one before it does", i,
                                   links[i].info.from, links[i].info.to));
  }
  for (const MachineDevice& device : devices)
    if (!pairs.contains({device.info.id, device.info.id}))
      return malformed(fmt::format("links has none from device {} to itself", device.info.id));
  for (const auto& [field, ns] : {std::pair{"costs.map_ns", costs.map_ns},
                                  {"costs.set_access_ns", costs.set_access_ns},
                                  {"costs.unmap_ns", costs.unmap_ns},
                                  {"costs.query_memory_ns", costs.query_memory_ns},
                                  {"costs.pin_ns_per_gib", costs.pin_ns_per_gib}})
    if (Status status = check_cost(field, ns); !status) return status;
  return {};
}

}  // namespace harvest
