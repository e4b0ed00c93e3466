// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <harvest/machine.hpp>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

namespace harvest {
namespace {

using Json = nlohmann::ordered_json;

constexpr LinkKind kLinkKinds[] = {LinkKind::same_device, LinkKind::nvlink, LinkKind::nvswitch, LinkKind::c2c,
                                   LinkKind::pcie};

/// Reads the fields of one object. The first thing that is wrong stays in `status`; later reads do
/// nothing, so a caller reads all fields in a row and looks once.
class ObjectReader {
 public:
  ObjectReader(const Json& json, std::string path, Status& status)
      : json_(json), path_(std::move(path)), status_(status) {
    if (status_ && !json.is_object()) complain(path_, json, "an object");
  }

  /// Says which fields there may be at all, so that a misspelt one does not go unseen.
  void allow(std::initializer_list<std::string_view> fields) {
    if (!status_) return;
    for (const auto& [key, value] : json_.items())
      if (std::find(fields.begin(), fields.end(), key) == fields.end()) {
        status_ = fail(ErrorCode::malformed,
                       fmt::format("unknown field {}; known are {}", at(key), fmt::join(fields, ", ")));
        return;
      }
  }

  void read(const char* name, std::string& out) {
    if (const Json* value = find(name); value && check(name, *value, value->is_string(), "a string"))
      out = value->get<std::string>();
  }
  void read(const char* name, bool& out) {
    if (const Json* value = find(name); value && check(name, *value, value->is_boolean(), "true or false"))
      out = value->get<bool>();
  }
  void read(const char* name, double& out) {
    if (const Json* value = find(name); value && check(name, *value, value->is_number(), "a number"))
      out = value->get<double>();
  }
  template <typename Integer>
  requires std::is_integral_v<Integer>
  void read(const char* name, Integer& out) {
    if (const Json* value = find(name)) read_integer(at(name), *value, out);
  }
  void read(const char* name, LinkKind& out) {
    std::string text;
    read(name, text);
    if (!status_) return;
    for (LinkKind kind : kLinkKinds)
      if (to_string(kind) == text) {
        out = kind;
        return;
      }
    status_ =
        fail(ErrorCode::malformed,
             fmt::format("{} is '{}'; known are same_device, nvlink, nvswitch, c2c, pcie", at(name), text));
  }
  void read(const char* name, std::vector<std::uint32_t>& out) {
    each(name, [&](const Json& value, const std::string& path) {
      std::uint32_t number = 0;
      read_integer(path, value, number);
      out.push_back(number);
    });
  }

  template <typename Body>
  void each(const char* name, Body body) {
    const Json* value = find(name);
    if (!value || !check(name, *value, value->is_array(), "an array")) return;
    for (std::size_t i = 0; i < value->size() && status_; ++i)
      body((*value)[i], fmt::format("{}[{}]", at(name), i));
  }

  const Json* find(const char* name) {
    if (!status_) return nullptr;
    const auto found = json_.find(name);
    if (found != json_.end()) return &*found;
    status_ = fail(ErrorCode::malformed, fmt::format("field {} is missing", at(name)));
    return nullptr;
  }

  [[nodiscard]] std::string at(std::string_view name) const {
    return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
  }

 private:
  void complain(const std::string& path, const Json& value, std::string_view wanted) {
    std::string shown = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (shown.size() > 60) shown = shown.substr(0, 57) + "...";
    status_ = fail(ErrorCode::malformed, fmt::format("{} is {}, it must be {}",
                                                     path.empty() ? "the document" : path, shown, wanted));
  }
  bool check(const char* name, const Json& value, bool good, std::string_view wanted) {
    if (!good) complain(at(name), value, wanted);
    return good;
  }
  template <typename Integer>
  void read_integer(const std::string& path, const Json& value, Integer& out) {
    using Limits = std::numeric_limits<Integer>;
    bool good = value.is_number_integer();
    if (good && value.is_number_unsigned())
      good = std::in_range<Integer>(value.get<std::uint64_t>());
    else if (good)
      good = std::in_range<Integer>(value.get<std::int64_t>());
    if (good)
      out = value.get<Integer>();
    else
      complain(path, value, fmt::format("an integer from {} to {}", Limits::min(), Limits::max()));
  }

  const Json& json_;
  std::string path_;
  Status& status_;
};

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
  reader.read("kind", link.info.kind);
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

Json link_json(const MachineLink& link) {
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

Json device_json(const MachineDevice& device) {
  return {{"id", device.info.id},
          {"name", device.info.name},
          {"total_bytes", device.info.total_bytes},
          {"tenant_bytes", device.tenant_bytes},
          {"segment_granularity_bytes", device.info.segment_granularity_bytes},
          {"copy_engines", device.info.copy_engines},
          {"numa_node", device.info.numa_node}};
}

/// The library's own exception ends here and becomes a value.
Result<Json> parse(std::string_view text) {
  try {
    return Json::parse(text, nullptr, /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const Json::parse_error& error) {
    return fail(ErrorCode::malformed, fmt::format("not JSON: {}", error.what()));
  }
}

}  // namespace

Result<Machine> machine_from_json(std::string_view text) {
  const Result<Json> json = parse(text);
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
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))  // opens, and throws when it is read
    return fail(ErrorCode::not_found, fmt::format("'{}' is a folder, not a machine file", path));
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad())
    return fail(ErrorCode::not_found, fmt::format("cannot read machine file '{}'", path));
  return machine_from_json(text).map_error([&](Error error) {
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
  Json json{
      {"name", machine.name}, {"devices", Json::array()}, {"ports", Json::array()}, {"links", Json::array()}};
  for (const MachineDevice& device : machine.devices) json["devices"].push_back(device_json(device));
  for (const MachinePort& port : machine.ports)
    json["ports"].push_back({{"name", port.name}, {"bandwidth_bytes_per_s", port.bandwidth_bytes_per_s}});
  for (const MachineLink& link : machine.links) json["links"].push_back(link_json(link));
  json["costs"] = {{"map_ns", machine.costs.map_ns},
                   {"set_access_ns", machine.costs.set_access_ns},
                   {"unmap_ns", machine.costs.unmap_ns},
                   {"query_memory_ns", machine.costs.query_memory_ns},
                   {"pin_ns_per_gib", machine.costs.pin_ns_per_gib}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace harvest
