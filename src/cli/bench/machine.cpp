// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/machine.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <harvest/loopback.hpp>
#include <harvest/machine.hpp>
#include <harvest/topology.hpp>

#include "cli/arguments.hpp"
#include "cli/bench/resources.hpp"

namespace harvest::cli::bench {

std::string simulated_names() {
  std::string names;
  for (const std::string_view name : machine_preset_names())
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  return names;
}

Result<MeasuredMachine> MeasuredMachine::open(const MachineChoice& choice, SimulatedBytes bytes,
                                              const CudaOptions& cuda) {
  MeasuredMachine machine;
  if (choice.system.empty()) {
    auto real = make_cuda_backend(cuda);
    if (!real)
      return fail(ErrorCode::not_found,
                  fmt::format("no GPU to measure: {}. Name a simulated machine with --system: {}, or a file",
                              real.error().message, simulated_names()));
    machine.backend_ = std::move(*real);
  } else {
    auto loaded = load_machine(choice.system);
    if (!loaded) return fail(loaded.error().code, "--system: " + loaded.error().message);
    auto simulated = make_simulated_backend(std::move(*loaded), {.bytes = bytes});
    if (!simulated) return fail(simulated.error().code, "--system: " + simulated.error().message);
    machine.simulated_ = simulated->get();
    machine.backend_ = std::move(*simulated);
  }
  if (choice.loopback) {
    auto loopback = make_loopback_backend(*machine.backend_);
    if (!loopback) return fail(loopback.error().code, "--loopback: " + loopback.error().message);
    machine.loopback_ = std::move(*loopback);
  }
  return machine;
}

std::string MeasuredMachine::name() const {
  return fmt::format("{}{}{}", backend().info().system,
                     is_loopback() ? ", one GPU in LOOPBACK: its peer is itself" : "",
                     backend().info().simulated ? " (SIMULATED)" : "");
}

std::string MeasuredMachine::title(const std::string& what) const {
  return fmt::format("{} of {}", what, name());
}

Json header_of(const Backend& backend, bool loopback, const std::string& benchmark) {
  const BackendInfo& info = backend.info();
  Json json{{"benchmark", benchmark},      {"version", HARVEST_VERSION},
            {"simulated", info.simulated}, {"loopback", loopback},
            {"backend", info.name},        {"system", info.system},
            {"driver", info.driver},       {"clock", info.virtual_time ? "virtual" : "host"}};
  json["devices"] = Json::array();
  for (const DeviceInfo& device : backend.devices())
    json["devices"].push_back({{"id", device.id},
                               {"name", device.name},
                               {"total_bytes", device.total_bytes},
                               {"numa_node", device.numa_node}});
  return json;
}

Result<DeviceId> MeasuredMachine::best_peer(DeviceId consumer) const {
  const auto topology = Topology::probe(backend(), true);
  if (!topology) return tl::unexpected(topology.error());
  constexpr std::uint64_t kLarge = 64ULL << 20;
  const auto ranks = topology->rank_peers(consumer, kLarge);
  if (!ranks.empty()) return ranks.front().device;
  return fail(ErrorCode::not_found,
              fmt::format("{} of {} has no peer that it can reach; --loopback lets one GPU be its own peer",
                          device_name(consumer), backend().info().system));
}

void add_machine(CLI::App& command, MachineChoice& target, const std::string& verb) {
  add_name(command, "--system", target.system,
           verb + " a simulated machine instead of this one: " + simulated_names() + ", or a JSON file")
      ->type_name("NAME|FILE");
  command
      .add_flag("--loopback", target.loopback,
                verb + " GPU 0 alone, with a second pool of its own memory as its peer")
      ->disable_flag_override();
}

}  // namespace harvest::cli::bench
