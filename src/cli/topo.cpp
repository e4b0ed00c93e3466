// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/topology.hpp>

#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"

/// `harvest topo`: what a machine's devices and links are, and whether bytes survive the way.
namespace harvest::cli {
namespace {

constexpr const char* kDefaultSystem = "dgx-h100";

constexpr const char* kTeaching =
    "Shows, for each pair of devices, the kind of link and its bandwidth, and for each device how much\n"
    "memory is free and how much of that Harvest never takes (the reserve). Every path carries a pattern\n"
    "first: a driver's word that two GPUs reach each other is no proof that the bytes arrive.\n"
    "\n"
    "Example:\n"
    "  harvest topo --system 4x4090-pcie\n"
    "  harvest topo --system my-machine.json --json\n"
    "\n"
    "A FILE describes a machine as JSON; docs/simulation.md explains the format.";

struct Options {
  std::string system;
  bool json = false;
};

struct Machine {
  Topology topology;
  std::vector<MemoryInfo> memory;  ///< of each device of the topology
};

std::uint64_t reserve_of(const DeviceInfo& device) {
  return device.id == kHost ? 0 : PressureConfig{}.reserve_bytes;
}

Result<Machine> look(Backend& backend) {
  auto topology = Topology::probe(backend, true);
  if (!topology) return tl::unexpected(topology.error());
  Machine machine{std::move(*topology), {}};
  for (const DeviceInfo& device : machine.topology.devices()) {
    const auto memory = backend.query_memory(device.id);
    if (!memory) return tl::unexpected(memory.error());
    machine.memory.push_back(*memory);
  }
  return machine;
}

Json to_json(const Machine& machine) {
  const Topology& topology = machine.topology;
  Json json;
  json["backend"] = topology.backend().name;
  json["system"] = topology.backend().system;
  json["simulated"] = topology.backend().simulated;
  json["devices"] = Json::array();
  for (std::size_t i = 0; i < machine.memory.size(); ++i) {
    const DeviceInfo& device = topology.devices()[i];
    json["devices"].push_back({{"id", device.id},
                               {"name", device.name},
                               {"total_bytes", machine.memory[i].total_bytes},
                               {"free_bytes", machine.memory[i].free_bytes},
                               {"reserve_bytes", reserve_of(device)},
                               {"numa_node", device.numa_node},
                               {"copy_engines", device.copy_engines}});
  }
  json["links"] = Json::array();
  for (const Path& path : topology.paths()) {
    const LinkInfo& link = path.link;
    json["links"].push_back({{"from", link.from},
                             {"to", link.to},
                             {"kind", to_string(link.kind)},
                             {"peer_access", link.peer_access},
                             {"verified", path.state == PathState::verified},
                             {"state", to_string(path.state)},
                             {"reason", path.reason},
                             {"bandwidth_bytes_per_s", link.bandwidth_bytes_per_s},
                             {"latency_ns", link.latency_ns},
                             {"issue_ns", link.issue_ns},
                             {"issue_batched_ns", link.issue_batched_ns},
                             {"source", link.source}});
  }
  return json;
}

/// A matrix of all pairs; the rows are where bytes come from.
template <typename Cell>
std::string matrix(const Topology& topology, Cell cell) {
  std::vector<std::string> header{"from \\ to"};
  for (const DeviceInfo& to : topology.devices()) header.push_back(device_name(to.id));
  Table table(std::move(header));
  for (const DeviceInfo& from : topology.devices()) {
    std::vector<std::string> row{device_name(from.id)};
    for (const DeviceInfo& to : topology.devices()) {
      const Path* path = topology.path(from.id, to.id);
      row.push_back(from.id == to.id ? "x" : path == nullptr ? "-" : cell(*path));
    }
    table.add(std::move(row));
  }
  return table.text();
}

std::string kind_cell(const Path& path) {
  std::string kind(to_string(path.link.kind));
  if (path.state == PathState::failed) return kind + "!";
  if (path.state == PathState::untested) return kind + "?";
  return kind;
}

void print_tables(const Machine& machine) {
  const Topology& topology = machine.topology;
  fmt::print("Topology of {}{}\n\n", topology.backend().system,
             topology.backend().simulated ? " (simulated)" : "");
  fmt::print("Link of each pair (! failed its test, ? not tested, - none)\n\n{}\n",
             matrix(topology, kind_cell));
  fmt::print("Bandwidth in GB/s\n\n{}\n", matrix(topology, [](const Path& path) {
               return fmt::format("{:.0f}", path.link.bandwidth_bytes_per_s / 1e9);
             }));
  Table devices({"device", "name", "total", "free", "reserve"});
  for (std::size_t i = 0; i < machine.memory.size(); ++i) {
    const DeviceInfo& device = topology.devices()[i];
    devices.add({device_name(device.id), device.name, format_bytes(machine.memory[i].total_bytes),
                 format_bytes(machine.memory[i].free_bytes), format_bytes(reserve_of(device))});
  }
  fmt::print("Memory\n\n{}\n", devices.text());
  for (const Path& path : topology.paths())
    if (path.state == PathState::failed)
      fmt::print("{} to {} is not used: {}\n", device_name(path.link.from), device_name(path.link.to),
                 path.reason);
}

Exit run(const Options& options) {
  const std::string system = options.system.empty() ? kDefaultSystem : options.system;
  auto machine = load_machine(system);
  if (!machine) return complain(Exit::bad_input, "topo", "--system: " + machine.error().message);
  auto backend = make_simulated_backend(std::move(*machine));
  if (!backend) return complain(Exit::bad_input, "topo", "--system: " + backend.error().message);
  const auto seen = look(**backend);
  if (!seen) return complain(Exit::failed, "topo", seen.error().message);
  if (options.json) {
    print_json(to_json(*seen));
    return Exit::ok;
  }
  if (options.system.empty())
    fmt::print("This version drives no real GPUs: here is the simulated {} (choose with --system).\n\n",
               kDefaultSystem);
  print_tables(*seen);
  return Exit::ok;
}

}  // namespace

void add_topo(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("topo", "Show a machine's devices, links and free memory");
  command->footer(kTeaching);
  std::string known;
  for (const std::string_view name : machine_preset_names())
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
  add_name(*command, "--system", options->system, "The machine: " + known + ", or a JSON file")
      ->type_name("NAME|FILE");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli
