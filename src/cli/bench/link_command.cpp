// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/link.hpp"
#include "cli/bench/methods.hpp"

/// `harvest bench link`: bandwidth by pair, size and way of copying.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Copies between every ordered pair of GPUs, and between each and pinned host memory, both ways. The\n"
    "stream is held until all copies of a run are submitted; each run's bytes are compared afterwards.\n"
    "Real GPUs are measured twice, with the copy engines and with a copy kernel.\n"
    "\n"
    "Example:\n"
    "  harvest bench link --from host --to 0 --sizes 64KiB,1MiB,256MiB\n"
    "  harvest bench link --system dgx-h100 --max-bytes 16MiB --json\n"
    "\n"
    "It answers 1 if a byte was wrong. What cannot be measured is listed as waived, with the reason.";

constexpr std::uint64_t kMostBytes = 64ULL << 30;

struct Options {
  CommonOptions common;
  std::vector<std::uint64_t> sizes;
  std::uint64_t most_bytes = 512ULL << 20;
  std::string from;
  std::string to;
};

struct Row {
  Route route;
  std::string method;
  LinkFigure figure;
};

struct Waived {
  std::optional<Route> route;  ///< none: the way of copying altogether
  std::string method;
  std::string reason;
};

struct Results {
  std::vector<Row> rows;
  std::vector<Waived> waived;
  [[nodiscard]] std::uint64_t wrong_bytes() const {
    std::uint64_t wrong = 0;
    for (const Row& row : rows) wrong += row.figure.wrong_bytes;
    return wrong;
  }
};

std::vector<std::uint64_t> sizes_of(const Options& options) {
  std::vector<std::uint64_t> sizes = options.sizes;
  const std::uint64_t most = options.common.quick ? 4ULL << 20 : options.most_bytes;
  if (sizes.empty()) {
    for (std::uint64_t bytes = 4ULL << 10; bytes < most; bytes *= options.common.quick ? 16 : 4)
      sizes.push_back(bytes);
    sizes.push_back(most);
  }
  return sizes;
}

/// Empty: every device.
Result<std::vector<DeviceId>> devices_of(const Backend& backend, const std::string& option,
                                         const std::string& text) {
  std::vector<DeviceId> devices;
  if (text.empty()) {
    for (const DeviceInfo& device : backend.devices()) devices.push_back(device.id);
  } else if (text == "host") {
    devices.push_back(kHost);
  } else {
    const auto most = static_cast<std::uint64_t>(backend.devices().size()) - 2;
    const auto id = parse_count(text, 0, most);
    if (!id)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{}: '{}' is not a device: host, or a GPU from 0 to {}", option, text, most));
    devices.push_back(static_cast<DeviceId>(*id));
  }
  return devices;
}

Result<std::vector<Route>> routes_of(const Backend& backend, const Options& options) {
  const auto from = devices_of(backend, "--from", options.from);
  if (!from) return tl::unexpected(from.error());
  const auto to = devices_of(backend, "--to", options.to);
  if (!to) return tl::unexpected(to.error());
  const bool both_named = !options.from.empty() && !options.to.empty();
  std::vector<Route> routes;
  for (const DeviceId source : *from)
    for (const DeviceId destination : *to)
      if (link_of(backend, {source, destination}) != nullptr &&
          (source != destination || (both_named && source != kHost)))
        routes.push_back({source, destination});
  if (routes.empty())
    return fail(ErrorCode::invalid_argument,
                fmt::format("--from {} --to {}: no GPU can copy that way", options.from, options.to));
  return routes;
}

/// All sizes of one route by one method. What the machine cannot do is waived; a copy that fails is an error.
Status measure_route(Backend& backend, const std::string& method, Route route,
                     std::span<const std::uint64_t> sizes, std::uint64_t runs, Results& results,
                     const std::function<void()>& done) {
  const auto waive = [&](const Error& error) -> Status {
    if (error.code == ErrorCode::copy_failed) return tl::unexpected(error);
    results.waived.push_back({route, method, error.message});
    return {};
  };
  auto meter = LinkMeter::create(backend, route, *std::max_element(sizes.begin(), sizes.end()));
  if (!meter) return waive(meter.error());
  for (const std::uint64_t bytes : sizes) {
    const auto figure = meter->measure(bytes, runs);
    if (!figure) return waive(figure.error());
    results.rows.push_back({route, method, *figure});
    done();
  }
  return {};
}

Json to_json(const MeasuredMachine& machine, const Options& options, const Results& results) {
  Json json = machine.header("link");
  json["runs"] = options.common.runs;
  json["rows"] = Json::array();
  for (const Row& row : results.rows) {
    const LinkInfo& link = *link_of(machine.backend(), row.route);
    Json line{{"from", row.route.from},       {"to", row.route.to},
              {"kind", to_string(link.kind)}, {"method", row.method},
              {"bytes", row.figure.bytes},    {"copies_per_run", row.figure.copies_per_run}};
    add_spread(line, "bytes_per_s", row.figure.bytes_per_s);
    line["ns_per_copy"] = static_cast<double>(row.figure.bytes) * 1e9 / row.figure.bytes_per_s.median;
    line["nominal_bytes_per_s"] = link.bandwidth_bytes_per_s;
    line["gated"] = row.figure.gated;
    line["checked"] = row.figure.wrong_bytes == 0;
    line["wrong_bytes"] = row.figure.wrong_bytes;
    json["rows"].push_back(std::move(line));
  }
  json["waived"] = Json::array();
  for (const Waived& waived : results.waived)
    json["waived"].push_back({{"from", waived.route ? Json(waived.route->from) : Json()},
                              {"to", waived.route ? Json(waived.route->to) : Json()},
                              {"method", waived.method},
                              {"reason", waived.reason}});
  json["wrong_bytes"] = results.wrong_bytes();
  return json;
}

void print_table(const MeasuredMachine& machine, const Results& results) {
  Table table({"way", "method", "bytes", "median", "least", "most", "each copy", "bytes checked"});
  for (const Row& row : results.rows) {
    const LinkFigure& figure = row.figure;
    table.add({fmt::format("{} to {}", device_name(row.route.from), device_name(row.route.to)), row.method,
               format_bytes(figure.bytes), format_bandwidth(figure.bytes_per_s.median),
               format_bandwidth(figure.bytes_per_s.least), format_bandwidth(figure.bytes_per_s.most),
               format_ns(static_cast<double>(figure.bytes) * 1e9 / figure.bytes_per_s.median) +
                   (figure.gated ? "" : " *"),
               figure.wrong_bytes == 0 ? "right" : format_count(figure.wrong_bytes) + " WRONG"});
  }
  fmt::print("{}\n\n{}", machine.title("Bandwidth"), table.text());
  if (std::any_of(results.rows.begin(), results.rows.end(), [](const Row& row) { return !row.figure.gated; }))
    fmt::print("\n* the stream could not be held long enough: the time to submit is part of this\n");
  for (const Waived& waived : results.waived)
    fmt::print("\nwaived: {} by {}: {}\n",
               waived.route
                   ? fmt::format("{} to {}", device_name(waived.route->from), device_name(waived.route->to))
                   : "all",
               waived.method, waived.reason);
}

Result<Results> measure(const Methods& methods, const std::vector<Route>& routes, const Options& options) {
  const auto sizes = sizes_of(options);
  Results results;
  for (const MissingMethod& missing : methods.missing)
    results.waived.push_back({std::nullopt, missing.name, missing.reason});
  Progress progress("measuring links", routes.size() * sizes.size() * methods.found.size());
  std::uint64_t done = 0;
  for (const Method& method : methods.found)
    for (const Route route : routes)
      if (Status measured = measure_route(method.machine.backend(), method.name, route, sizes,
                                          options.common.runs, results, [&] { progress.at(++done); });
          !measured)
        return tl::unexpected(measured.error());
  return results;
}

Exit run(const Options& options) {
  const auto methods = Methods::open(options.common.machine);
  if (!methods) return complain_of("link", methods.error());
  if (methods->found.empty()) return complain(Exit::failed, "bench link", "no way to copy");
  const MeasuredMachine& machine = methods->found.front().machine;
  const auto routes = routes_of(machine.backend(), options);
  if (!routes) return complain_of("link", routes.error());
  const auto results = measure(*methods, *routes, options);
  if (!results) return complain_of("link", results.error());
  if (options.common.json)
    print_json(to_json(machine, options, *results));
  else if (!results->rows.empty())
    print_table(machine, *results);
  if (results->rows.empty())
    return complain(Exit::failed, "bench link",
                    "nothing could be measured: " + results->waived.front().reason);
  return results->wrong_bytes() == 0 ? Exit::ok : Exit::failed;
}

}  // namespace

void add_link(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand("link", "Bandwidth of each link, by size of the copy");
  command->footer(kTeaching);
  add_sizes(*command, "--sizes", options->sizes, 1, kMostBytes, "Sizes of one copy (4 KiB to --max-bytes)");
  add_size(*command, "--max-bytes", options->most_bytes, 1, kMostBytes,
           "The largest of the sizes chosen for you");
  add_name(*command, "--from", options->from, "Only from this device: host, or a GPU's number")
      ->type_name("DEVICE");
  add_name(*command, "--to", options->to, "Only to this device")->type_name("DEVICE");
  add_common(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
