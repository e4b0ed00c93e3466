// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/cuda.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backend/cuda/calibration.hpp"
#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/methods.hpp"
#include "cli/bench/scatter.hpp"

/// `harvest bench calibrate`: which way of copying wins where, on this card with this driver.
namespace harvest::cli::bench {
namespace {

using cuda::CopyMeasurement;
using cuda::CopyMethod;
using cuda::LinkClass;

constexpr const char* kTeaching =
    "Copies scattered runs, of many sizes and in batches of many lengths, by one call for each, by one call\n"
    "for many, and by a copy kernel of several sizes, over each kind of link. From what wins come the\n"
    "thresholds that the CUDA backend copies by from then on, on this card with this driver.\n"
    "\n"
    "Example:\n"
    "  harvest bench calibrate\n"
    "  harvest bench calibrate --file my-calibration.json --json\n"
    "\n"
    "Without it the backend has defaults. It needs real GPUs, and writes nothing if a byte was wrong.";

struct Options {
  CommonOptions common;
  std::string file;
};

struct Way {
  CopyMethod method = CopyMethod::single;
  std::uint32_t blocks = 1;
};

/// One link of each class, read by `gpu`.
struct ClassRoute {
  LinkClass link = LinkClass::same_device;
  Route route;
};

struct Card {
  DeviceId gpu = 0;
  std::string name;
  std::vector<CopyMeasurement> rows;
  cuda::CopyCalibration thresholds;
};

struct Results {
  std::vector<Card> cards;
  std::vector<MissingMethod> missing;
  std::string file;
};

std::vector<ClassRoute> class_routes(const MeasuredMachine& machine, DeviceId gpu) {
  std::vector<ClassRoute> routes{{LinkClass::host_to_device, {kHost, gpu}},
                                 {LinkClass::device_to_host, {gpu, kHost}},
                                 {LinkClass::same_device, {gpu, gpu}}};
  if (const auto peer = machine.best_peer(gpu)) routes.push_back({LinkClass::peer, {*peer, gpu}});
  return routes;
}

std::vector<ScatterPoint> grid(bool quick) {
  std::vector<ScatterPoint> points;
  const std::uint64_t step = quick ? 16 : 2;
  for (std::uint64_t bytes = 4ULL << 10; bytes <= (quick ? 64ULL << 10 : 4ULL << 20); bytes *= step)
    for (std::uint64_t runs = 1; runs <= (quick ? 16 : 1024); runs *= quick ? 16 : 4)
      if (bytes * runs <= 256ULL << 20) points.push_back({bytes, runs});
  return points;
}

std::vector<Way> ways(bool quick) {
  std::vector<Way> all{{CopyMethod::single, 1}, {CopyMethod::batch, 1}};
  for (const std::uint32_t blocks : {8U, 16U, 24U, 32U, 64U})
    if (!quick || blocks == 16) all.push_back({CopyMethod::kernel, blocks});
  return all;
}

std::string name_of(const Way& way) {
  return way.method == CopyMethod::kernel ? fmt::format("kernel of {} blocks", way.blocks)
                                          : std::string(to_string(way.method));
}

/// All points of one card by one way.
Status measure_way(const MeasuredMachine& machine, const Way& way, const Options& options, Card& card,
                   const std::function<void()>& done) {
  const auto points = grid(options.common.quick);
  std::uint64_t most = 0;
  for (const ScatterPoint& point : points) most = std::max(most, point.total_bytes());
  for (const ClassRoute& each : class_routes(machine, card.gpu)) {
    auto meter = ScatterMeter::create(machine.backend(), each.route, card.gpu, most);
    if (!meter) return tl::unexpected(meter.error());
    for (const ScatterPoint& point : points) {
      const auto rate = meter->bytes_per_s(point, options.common.runs);
      if (!rate) return tl::unexpected(rate.error());
      card.rows.push_back({each.link, way.method, way.method == CopyMethod::kernel ? way.blocks : 0,
                           point.run_bytes, static_cast<std::uint32_t>(point.runs), *rate});
      done();
    }
  }
  return {};
}

Result<Results> measure(const MeasuredMachine& machine, const Options& options) {
  Results results;
  std::set<std::string> names;
  for (const DeviceInfo& device : machine.devices())
    if (device.id != kHost && names.insert(device.name).second)
      results.cards.push_back({device.id, device.name, {}, {}});
  const auto all = ways(options.common.quick);
  constexpr std::size_t kClasses = 4;
  Progress progress("calibrating",
                    results.cards.size() * all.size() * grid(options.common.quick).size() * kClasses);
  std::uint64_t points = 0;
  for (const Way& way : all) {
    const auto by_it = open_by_method(options.common.machine, way.method, way.blocks);
    if (!by_it && by_it.error().code == ErrorCode::not_supported) {
      results.missing.push_back({name_of(way), by_it.error().message});
      continue;
    }
    if (!by_it) return tl::unexpected(by_it.error());
    for (Card& card : results.cards)
      if (Status measured = measure_way(*by_it, way, options, card, [&] { progress.at(++points); });
          !measured)
        return tl::unexpected(measured.error());
  }
  for (Card& card : results.cards) {
    const auto thresholds = cuda::derive_calibration(card.rows);
    if (!thresholds) return tl::unexpected(thresholds.error());
    card.thresholds = *thresholds;
  }
  return results;
}

Json threshold_json(const cuda::CopyThresholds& thresholds) {
  return {{"kernel_below_bytes", thresholds.kernel_below_bytes},
          {"kernel_min_runs", thresholds.kernel_min_runs},
          {"kernel_blocks", thresholds.kernel_blocks},
          {"batch_below_bytes", thresholds.batch_below_bytes},
          {"batch_min_runs", thresholds.batch_min_runs}};
}

constexpr std::array kClassesInOrder{LinkClass::host_to_device, LinkClass::device_to_host, LinkClass::peer,
                                     LinkClass::same_device};

Json to_json(const MeasuredMachine& machine, const Options& options, const Results& results) {
  Json json = machine.header("calibrate");
  json["runs"] = options.common.runs;
  json["file"] = results.file;
  json["cards"] = Json::array();
  for (const Card& card : results.cards) {
    Json entry{{"card", card.name}, {"thresholds", Json::object()}, {"rows", Json::array()}};
    for (const LinkClass link : kClassesInOrder)
      entry["thresholds"][std::string(to_string(link))] = threshold_json(card.thresholds[link]);
    for (const CopyMeasurement& row : card.rows)
      entry["rows"].push_back({{"link", to_string(row.link)},
                               {"method", to_string(row.method)},
                               {"kernel_blocks", row.kernel_blocks},
                               {"run_bytes", row.run_bytes},
                               {"runs", row.runs},
                               {"bytes_per_s", row.bytes_per_s}});
    json["cards"].push_back(std::move(entry));
  }
  json["waived"] = Json::array();
  for (const MissingMethod& missing : results.missing)
    json["waived"].push_back({{"method", missing.name}, {"reason", missing.reason}});
  return json;
}

std::string limit_cell(std::uint64_t below_bytes, std::uint32_t min_runs) {
  if (below_bytes == 0) return "never";
  const std::string size = below_bytes == cuda::kNoLimitBytes ? "any size" : "< " + format_bytes(below_bytes);
  return fmt::format("{}, {}+ runs", size, min_runs);
}

void print_tables(const Results& results) {
  for (const Card& card : results.cards) {
    Table table({"link", "by kernel", "blocks", "else by batch"});
    for (const LinkClass link : kClassesInOrder) {
      const cuda::CopyThresholds& thresholds = card.thresholds[link];
      table.add({std::string(to_string(link)),
                 limit_cell(thresholds.kernel_below_bytes, thresholds.kernel_min_runs),
                 format_count(thresholds.kernel_blocks),
                 limit_cell(thresholds.batch_below_bytes, thresholds.batch_min_runs)});
    }
    fmt::print("What {} copies by from now on; the rest goes one by one\n\n{}\n", card.name, table.text());
  }
  for (const MissingMethod& missing : results.missing)
    fmt::print("waived: {}: {}\n", missing.name, missing.reason);
  fmt::print("written to {}\n", results.file);
}

Exit run(const Options& options) {
  if (!options.common.machine.system.empty() || options.common.machine.loopback)
    return complain(
        Exit::bad_input, "bench calibrate",
        fmt::format("{} cannot be calibrated: it is for real GPUs, whose copies go by several ways",
                    options.common.machine.loopback ? std::string("a loopback")
                                                    : "the simulated " + options.common.machine.system));
  const std::string file = options.file.empty() ? cuda_calibration_file() : options.file;
  if (file.empty())
    return complain(Exit::bad_input, "bench calibrate",
                    "neither XDG_CACHE_HOME nor HOME is set: name the file with --file");
  // What stands in the way of writing is told before minutes of measuring, not after.
  if (const Status writable = cuda::check_can_write(file); !writable)
    return complain(Exit::bad_input, "bench calibrate", "--file: " + writable.error().message);
  const auto machine = MeasuredMachine::open(options.common.machine);
  if (!machine) return complain_of("calibrate", machine.error());
  auto results = measure(*machine, options);
  if (!results) return complain_of("calibrate", results.error());
  results->file = file;
  for (const Card& card : results->cards)
    if (Status written =
            cuda::write_calibration(file, {card.name, machine->backend().info().driver, card.thresholds});
        !written)
      return complain_of("calibrate", written.error());
  if (options.common.json)
    print_json(to_json(*machine, options, *results));
  else
    print_tables(*results);
  return Exit::ok;
}

}  // namespace

void add_calibrate(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand("calibrate", "Find out which copies go by which way on this card");
  command->footer(kTeaching);
  add_name(*command, "--file", options->file, "Where to write: by default this user's calibration")
      ->type_name("FILE");
  add_common(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
