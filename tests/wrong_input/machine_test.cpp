// SPDX-License-Identifier: Apache-2.0
#include <harvest/machine.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/topology.hpp>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/files.hpp"
#include "wrong_input/table.hpp"

/// Machines, as data and as files, and what is known of their paths.
namespace harvest::testing {
namespace {

Machine good_machine() {
  return *machine_from_preset("2xh100-nvl");
}

template <typename Change>
Outcome validated(Change change) {
  Machine machine = good_machine();
  change(machine);
  return machine.validate();
}

void show_machines(Table& table) {
  const TemporaryFolder folder;
  const std::string half = folder.file("half.json", R"({"name": "half a)");
  table.shows("`machine_from_preset(\"dgx-2000\")`", machine_from_preset("dgx-2000"));
  table.shows("`machine_from_preset(\"\")`", machine_from_preset(""));
  table.shows("`machine_from_json_file` of a file that is not there",
              machine_from_json_file("/no/such/file.json"));
  table.shows("`machine_from_json_file` of a folder", machine_from_json_file("/"));
  table.shows("`machine_from_json_file` of `/dev/zero`", machine_from_json_file("/dev/zero"));
  table.shows("`machine_from_json_file` of half a file", machine_from_json_file(half));
  table.shows("`load_machine` of neither a preset nor a file", load_machine("nowhere"));
  table.shows("`load_machine` of a folder", load_machine("/"));
  table.shows("two links for one route",
              validated([](Machine& machine) { machine.links.push_back(machine.links.front()); }));
  table.shows("no link within a device", validated([](Machine& machine) {
                std::erase_if(machine.links, [](const MachineLink& link) {
                  return link.info.from == 1 && link.info.to == 1;
                });
              }));
  table.shows("129 GPUs", validated([](Machine& machine) { machine.devices.resize(130); }));
  table.shows("a bandwidth that is not a number", validated([](Machine& machine) {
                machine.links[0].info.bandwidth_bytes_per_s = std::numeric_limits<double>::quiet_NaN();
              }));
}

void show_topologies(Table& table) {
  const auto backend = std::move(*make_simulated_backend(good_machine()));
  const PathVerdict verdict{{9, 0}, PathState::failed};
  table.shows("`Topology::probe` with verdicts on a path that is not there",
              Topology::probe(*backend, false, {&verdict, 1}));
  const Topology topology = *Topology::probe(*backend, false);
  const bool null = topology.device(9) == nullptr && topology.path(9, 0) == nullptr;
  table.shows("`Topology::device(9)`, `path(9, 0)`", null ? "null" : "something");
  const bool usable = topology.usable_as_peer(9, 0) || topology.usable_as_peer(0, 0) ||
                      topology.usable_as_peer(kHost, 0) || topology.usable_as_peer(1, 9);
  table.shows("`Topology::usable_as_peer` of a device that is not there, or of itself",
              usable ? "true" : "false");
  const double ns = topology.expected_copy_ns(9, 0, 1);
  table.shows("`Topology::expected_copy_ns` where no path is", std::isinf(ns) ? "infinite" : "finite");
  table.shows("`Topology::rank_peers` of device 9", topology.rank_peers(9, 1).empty() ? "none" : "some");
}

TEST(WrongInput, MachinesAndTopologies) {
  Table table("Machines and topologies");
  show_machines(table);
  show_topologies(table);
}

/// Each row says itself what is changed in the text of a good machine.
TEST(WrongInput, AMachineAsJson) {
  Table table("A machine as JSON");
  const std::string good = nlohmann::ordered_json::parse(to_json(good_machine())).dump();
  ASSERT_TRUE(machine_from_json(good));
  for (const Row& row : table.rows()) {
    const auto change = in_backticks(row.input);
    ASSERT_EQ(change.size(), 2U) << row.input;
    const auto at = good.find(change[0]);
    ASSERT_NE(at, std::string::npos) << row.input;
    std::string text = good;
    text.replace(at, change[0].size(), change[1]);
    table.shows(row.input, machine_from_json(text));
  }
}

}  // namespace
}  // namespace harvest::testing
