// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <harvest/machine.hpp>

#include "base/json_reader.hpp"
#include "base/text_file.hpp"

namespace harvest {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr LinkKind kLinkKinds[] = {LinkKind::same_device, LinkKind::nvlink, LinkKind::nvswitch, LinkKind::c2c,
                                   LinkKind::pcie};

MachineDevice read_device(const Json& json, const std::string& path, Status& status) {
  MachineDevice device;
  ObjectReader reader(json, path, status);
  reader.allow({"id", "name", "total_bytes", "tenant_bytes", "segment_granularity_bytes", "copy_engines",
                "numa_node"});
  reader.read("id", device.info.id);
  reader.read("name", device.info.name);
  reader.read("total_bytes", device.info.total_bytes);
  reader.read("tenant_bytes", device.tenant_bytes);
  reader.read("segment_granularity_bytes", device.info.segment_granularity_bytes);
  reader.read("copy_engines", device.info.copy_engines);
  reader.read("numa_node", device.info.numa_node);
  return device;
}

MachinePort read_port(const Json& json, const std::string& path, Status& status) {
  MachinePort port;
  ObjectReader reader(json, path, status);
  reader.allow({"name", "bandwidth_bytes_per_s"});
  reader.read("name", port.name);
  reader.read("bandwidth_bytes_per_s", port.bandwidth_bytes_per_s);
  return port;
}

MachineLink read_link(const Json& json, const std::string& path, Status& status) {
  MachineLink link;
  ObjectReader reader(json, path, status);
  reader.allow({"from", "to", "kind", "peer_access", "bandwidth_bytes_per_s", "latency_ns", "issue_ns",
                "issue_batched_ns", "source", "ports"});
  reader.read("from", link.info.from);
  reader.read("to", link.info.to);
  reader.read_name("kind", link.info.kind, kLinkKinds);
  reader.read("peer_access", link.info.peer_access);
  reader.read("bandwidth_bytes_per_s", link.info.bandwidth_bytes_per_s);
  reader.read("latency_ns", link.info.latency_ns);
  reader.read("issue_ns", link.info.issue_ns);
  reader.read("issue_batched_ns", link.info.issue_batched_ns);
  reader.read("source", link.info.source);
  reader.read("ports", link.ports);
  return link;
}

MachineCosts read_costs(const Json& json, const std::string& path, Status& status) {
  MachineCosts costs;
  ObjectReader reader(json, path, status);
  reader.allow({"map_ns", "set_access_ns", "unmap_ns", "query_memory_ns", "pin_ns_per_gib"});
  reader.read("map_ns", costs.map_ns);
  reader.read("set_access_ns", costs.set_access_ns);
  reader.read("unmap_ns", costs.unmap_ns);
  reader.read("query_memory_ns", costs.query_memory_ns);
  reader.read("pin_ns_per_gib", costs.pin_ns_per_gib);
  return costs;
}

OrderedJson link_json(const MachineLink& link) {
  return {{"from", link.info.from},
          {"to", link.info.to},
          {"kind", to_string(link.info.kind)},
          {"peer_access", link.info.peer_access},
          {"bandwidth_bytes_per_s", link.info.bandwidth_bytes_per_s},
          {"latency_ns", link.info.latency_ns},
          {"issue_ns", link.info.issue_ns},
          {"issue_batched_ns", link.info.issue_batched_ns},
          {"source", link.info.source},
          {"ports", link.ports}};
}

OrderedJson device_json(const MachineDevice& device) {
  return {{"id", device.info.id},
          {"name", device.info.name},
          {"total_bytes", device.info.total_bytes},
          {"tenant_bytes", device.tenant_bytes},
          {"segment_granularity_bytes", device.info.segment_granularity_bytes},
          {"copy_engines", device.info.copy_engines},
          {"numa_node", device.info.numa_node}};
}

}  // namespace

Result<Machine> machine_from_json(std::string_view text) {
  const Result<Json> json = parse_json(text);
  if (!json) return tl::unexpected(json.error());
  Machine machine;
  Status status;
  ObjectReader reader(*json, "", status);
  reader.allow({"name", "devices", "ports", "links", "costs"});
  reader.read("name", machine.name);
  reader.each("devices", [&](const Json& value, const std::string& path) {
    machine.devices.push_back(read_device(value, path, status));
  });
  reader.each("ports", [&](const Json& value, const std::string& path) {
    machine.ports.push_back(read_port(value, path, status));
  });
  reader.each("links", [&](const Json& value, const std::string& path) {
    machine.links.push_back(read_link(value, path, status));
  });
  if (const Json* costs = reader.find("costs")) machine.costs = read_costs(*costs, "costs", status);
  if (status) status = machine.validate();
  if (!status) return tl::unexpected(status.error());
  return machine;
}

Result<Machine> machine_from_json_file(const std::string& path) {
  const Result<std::string> text = read_text_file(path, "machine file");
  if (!text) return tl::unexpected(text.error());
  return machine_from_json(*text).map_error([&](Error error) {
    return Error{error.code, fmt::format("{}: {}", path, error.message)};
  });
}

Result<Machine> load_machine(const std::string& name_or_path) {
  Result<Machine> preset = machine_from_preset(name_or_path);
  if (preset) return preset;
  Result<Machine> file = machine_from_json_file(name_or_path);
  if (!file && file.error().code == ErrorCode::not_found)
    return fail(ErrorCode::not_found, preset.error().message + ", and it is not a file that can be read");
  return file;
}

std::string to_json(const Machine& machine) {
  const OrderedJson none = OrderedJson::array();
  OrderedJson json{{"name", machine.name}, {"devices", none}, {"ports", none}, {"links", none}};
  for (const MachineDevice& device : machine.devices) json["devices"].push_back(device_json(device));
  for (const MachinePort& port : machine.ports)
    json["ports"].push_back({{"name", port.name}, {"bandwidth_bytes_per_s", port.bandwidth_bytes_per_s}});
  for (const MachineLink& link : machine.links) json["links"].push_back(link_json(link));
  json["costs"] = {{"map_ns", machine.costs.map_ns},
                   {"set_access_ns", machine.costs.set_access_ns},
                   {"unmap_ns", machine.costs.unmap_ns},
                   {"query_memory_ns", machine.costs.query_memory_ns},
                   {"pin_ns_per_gib", machine.costs.pin_ns_per_gib}};
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace);
}

}  // namespace harvest
