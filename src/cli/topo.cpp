// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/cuda.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/topology.hpp>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/link.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"

/// `harvest topo`: what a machine's devices and links are, and whether bytes survive the way.
namespace harvest::cli {
namespace {

constexpr const char* kDefaultSystem = "dgx-h100";

constexpr const char* kTeaching =
    "Shows, for each pair of devices, the kind of link and its bandwidth, and for each device how much\n"
    "memory is free and how much of that Harvest never takes (the reserve). Every path carries a pattern\n"
    "first: a driver's word that two GPUs reach each other is no proof that the bytes arrive. The "
    "bandwidths\n"
    "are nominal ones, with their source in the JSON; --measure copies over every path and shows both.\n"
    "\n"
    "Example:\n"
    "  harvest topo --measure\n"
    "  harvest topo --system 4x4090-pcie\n"
    "  harvest topo --system my-machine.json --json\n"
    "\n"
    "A FILE describes a machine as JSON; docs/simulation.md explains the format.";

struct Options {
  std::string system;
  bool measure = false;
  bool json = false;
};

/// Bytes per second of each path that was measured.
using Measured = std::map<std::pair<DeviceId, DeviceId>, double>;

struct Machine {
  Topology topology;
  std::vector<MemoryInfo> memory;  ///< of each device of the topology
  Measured measured;
};

std::uint64_t reserve_of(const DeviceInfo& device) {
  return device.id == kHost ? 0 : PressureConfig{}.reserve_bytes;
}

/// One large copy at a time over every path that is not known as broken.
Result<Measured> measure(Backend& backend, const Topology& topology) {
  // A model's answer is the same each time, and its bytes are copied by one processor.
  const std::uint64_t bytes = topology.backend().virtual_time ? 32ULL << 20 : 128ULL << 20;
  const std::uint64_t runs = topology.backend().virtual_time ? 1 : 5;
  Measured measured;
  Progress progress("measuring paths", topology.paths().size());
  std::uint64_t done = 0;
  for (const Path& path : topology.paths()) {
    progress.at(done++);
    const auto [from, to] = std::pair(path.link.from, path.link.to);
    if (from == to || path.state == PathState::failed) continue;
    auto meter = bench::LinkMeter::create(backend, {from, to}, bytes);
    if (!meter) return tl::unexpected(meter.error());
    const auto figure = meter->measure(bytes, runs);
    if (!figure) return tl::unexpected(figure.error());
    if (figure->wrong_bytes != 0)
      return fail(ErrorCode::copy_failed,
                  fmt::format("{} bytes came wrong from {} to {}", figure->wrong_bytes, device_name(from),
                              device_name(to)));
    measured[{from, to}] = figure->bytes_per_s.median;
  }
  return measured;
}

Result<Machine> look(Backend& backend, bool measures) {
  auto topology = Topology::probe(backend, true);
  if (!topology) return tl::unexpected(topology.error());
  Machine machine{std::move(*topology), {}, {}};
  if (measures) {
    auto measured = measure(backend, machine.topology);
    if (!measured) return tl::unexpected(measured.error());
    machine.measured = std::move(*measured);
  }
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
    const auto measured = machine.measured.find({link.from, link.to});
    json["links"].push_back(
        {{"from", link.from},
         {"to", link.to},
         {"kind", to_string(link.kind)},
         {"peer_access", link.peer_access},
         {"verified", path.state == PathState::verified},
         {"state", to_string(path.state)},
         {"reason", path.reason},
         {"bandwidth_bytes_per_s", link.bandwidth_bytes_per_s},
         {"measured_bytes_per_s", measured == machine.measured.end() ? Json() : Json(measured->second)},
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
  const bool measured = !machine.measured.empty();
  fmt::print("Bandwidth in GB/s{}\n\n{}\n", measured ? ", measured / nominal" : "",
             matrix(topology, [&](const Path& path) {
               const std::string nominal = fmt::format("{:.0f}", path.link.bandwidth_bytes_per_s / 1e9);
               const auto found = machine.measured.find({path.link.from, path.link.to});
               if (!measured) return nominal;
               return found == machine.measured.end()
                          ? "- / " + nominal
                          : fmt::format("{:.0f} / {}", found->second / 1e9, nominal);
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

struct Opened {
  std::unique_ptr<Backend> backend;
  std::string note;  ///< why it is not this machine's GPUs, where nothing else was asked for
};

Result<Opened> open(const std::string& system) {
  Opened opened;
  if (system.empty()) {
    auto real = make_cuda_backend();
    if (real) {
      opened.backend = std::move(*real);
      return opened;
    }
    opened.note = fmt::format("No real GPU: {}.\nHere is the simulated {} (choose with --system).\n\n",
                              real.error().message, kDefaultSystem);
  }
  auto machine = load_machine(system.empty() ? kDefaultSystem : system);
  if (!machine) return tl::unexpected(machine.error());
  auto simulated = make_simulated_backend(std::move(*machine));
  if (!simulated) return tl::unexpected(simulated.error());
  opened.backend = std::move(*simulated);
  return opened;
}

Exit run(const Options& options) {
  const auto opened = open(options.system);
  if (!opened) return complain(Exit::bad_input, "topo", "--system: " + opened.error().message);
  const auto seen = look(*opened->backend, options.measure);
  if (!seen) return complain(Exit::failed, "topo", seen.error().message);
  if (options.json) {
    print_json(to_json(*seen));
    return Exit::ok;
  }
  fmt::print("{}", opened->note);
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
  command->add_flag("--measure", options->measure, "Measure the bandwidth of every path too")
      ->disable_flag_override();
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli
