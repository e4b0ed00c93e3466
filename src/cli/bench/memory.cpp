// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/resources.hpp"
#include "cli/bench/timing.hpp"

/// `harvest bench memory`: what the driver's memory functions cost.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Maps and unmaps segments of a GPU, for itself alone and for another GPU to read, and pins host memory,\n"
    "newly allocated and the caller's own. The caller's own is touched first, as it would be in use.\n"
    "\n"
    "Example:\n"
    "  harvest bench memory --sizes 2MiB,32MiB,64MiB --runs 50\n"
    "  harvest bench memory --system dgx-h100 --json";

constexpr std::uint64_t kMostBytes = 64ULL << 30;

struct Options {
  CommonOptions common;
  std::vector<std::uint64_t> sizes;
  std::vector<std::uint64_t> pin_sizes;
};

/// One function by one size; `undo` is its counterpart.
struct Row {
  std::string operation;
  DeviceId device = kHost;
  std::uint64_t readers = 0;
  std::uint64_t bytes = 0;
  Spread do_ns;
  Spread undo_ns;
};

struct Waived {
  std::string operation;
  std::uint64_t bytes = 0;
  std::string reason;
};

struct Results {
  std::vector<Row> rows;
  std::vector<Waived> waived;
};

/// Times `act` and then `undo`, once to warm up and `runs` times more.
template <typename Act, typename Undo>
Status time_both(const Backend& backend, std::uint64_t runs, Row& row, Act act, Undo undo) {
  std::vector<double> done_ns;
  std::vector<double> undone_ns;
  for (std::uint64_t i = 0; i <= runs; ++i) {
    const TimeNs begin = backend.now_ns();
    if (Status done = act(); !done) return done;
    const TimeNs middle = backend.now_ns();
    if (Status undone = undo(); !undone) return undone;
    if (i == 0) continue;
    done_ns.push_back(static_cast<double>(middle - begin));
    undone_ns.push_back(static_cast<double>(backend.now_ns() - middle));
  }
  row.do_ns = spread_of(std::move(done_ns));
  row.undo_ns = spread_of(std::move(undone_ns));
  return {};
}

Status map_and_unmap(Backend& backend, std::uint64_t runs, const std::vector<DeviceId>& readers, Row& row) {
  Segment segment;
  return time_both(
      backend, runs, row,
      [&]() -> Status {
        auto mapped = Segment::map(backend, row.device, row.bytes, readers);
        if (!mapped) return tl::unexpected(mapped.error());
        segment = std::move(*mapped);
        return {};
      },
      [&] { return segment.unmap(); });
}

Status register_and_unregister(Backend& backend, std::uint64_t runs, Row& row) {
  constexpr std::align_val_t kPage{4096};
  const auto free = [](std::byte* memory) { ::operator delete(memory, kPage); };
  const std::unique_ptr<std::byte, decltype(free)> memory(
      static_cast<std::byte*>(::operator new(row.bytes, kPage, std::nothrow)), free);
  if (memory == nullptr)
    return fail(ErrorCode::out_of_memory, fmt::format("no {} of host memory", format_bytes(row.bytes)));
  std::memset(memory.get(), 1, row.bytes);
  return time_both(
      backend, runs, row, [&] { return backend.register_host(memory.get(), row.bytes); },
      [&] { return backend.unregister_host(memory.get()); });
}

Results measure(const MeasuredMachine& machine, const Options& options) {
  Backend& backend = machine.backend();
  const bool quick = options.common.quick;
  auto sizes = options.sizes;
  if (sizes.empty())
    for (std::uint64_t bytes = 2ULL << 20; bytes <= (quick ? 8ULL << 20 : 512ULL << 20); bytes *= 2)
      sizes.push_back(bytes);
  auto pin_sizes = options.pin_sizes;
  if (pin_sizes.empty())
    for (std::uint64_t bytes = quick ? 4ULL << 20 : 64ULL << 20; bytes <= (quick ? 16ULL << 20 : 1ULL << 30);
         bytes *= quick ? 2 : 4)
      pin_sizes.push_back(bytes);
  std::vector<std::vector<DeviceId>> readers{{}};
  for (const LinkInfo& link : backend.links())
    if (readers.size() == 1 && link.from == 0 && link.to > 0 && link.peer_access)
      readers.push_back({link.to});

  Results results;
  Progress progress("mapping", sizes.size() * readers.size() + pin_sizes.size() * 2);
  const auto note = [&](const Row& row, const Status& status) {
    if (status)
      results.rows.push_back(row);
    else
      results.waived.push_back({row.operation, row.bytes, status.error().message});
    progress.at(results.rows.size() + results.waived.size());
  };
  for (const auto& who : readers)
    for (const std::uint64_t bytes : sizes) {
      Row row{"map_segment", 0, who.size(), bytes, {}, {}};
      const Status status = map_and_unmap(backend, options.common.runs, who, row);
      note(row, status);
    }
  for (const std::uint64_t bytes : pin_sizes) {
    Row mapped{"map_segment", kHost, 0, bytes, {}, {}};
    const Status status = map_and_unmap(backend, options.common.runs, {}, mapped);
    note(mapped, status);
    Row registered{"register_host", kHost, 0, bytes, {}, {}};
    const Status other = register_and_unregister(backend, options.common.runs, registered);
    note(registered, other);
  }
  return results;
}

double rate(const Row& row) {
  return static_cast<double>(row.bytes) * 1e9 / std::max(1.0, row.do_ns.median);
}

Json to_json(const MeasuredMachine& machine, const Options& options, const Results& results) {
  Json json = machine.header("memory");
  json["runs"] = options.common.runs;
  json["rows"] = Json::array();
  for (const Row& row : results.rows) {
    Json line{
        {"operation", row.operation}, {"device", row.device}, {"readers", row.readers}, {"bytes", row.bytes}};
    add_spread(line, "do_ns", row.do_ns);
    add_spread(line, "undo_ns", row.undo_ns);
    line["bytes_per_s"] = rate(row);
    json["rows"].push_back(std::move(line));
  }
  json["waived"] = Json::array();
  for (const Waived& waived : results.waived)
    json["waived"].push_back(
        {{"operation", waived.operation}, {"bytes", waived.bytes}, {"reason", waived.reason}});
  return json;
}

void print_table(const MeasuredMachine& machine, const Results& results) {
  Table table({"operation", "bytes", "median", "least", "most", "rate", "undone in", "least", "most"});
  for (const Row& row : results.rows)
    table.add({fmt::format("{} on {}{}", row.operation, device_name(row.device),
                           row.readers > 0 ? ", for a peer too" : ""),
               format_bytes(row.bytes), format_ns(row.do_ns.median), format_ns(row.do_ns.least),
               format_ns(row.do_ns.most), format_bandwidth(rate(row)), format_ns(row.undo_ns.median),
               format_ns(row.undo_ns.least), format_ns(row.undo_ns.most)});
  fmt::print("{}\n\n{}", machine.title("Cost of memory"), table.text());
  for (const Waived& waived : results.waived)
    fmt::print("\nwaived: {} of {}: {}\n", waived.operation, format_bytes(waived.bytes), waived.reason);
}

/// A backend maps multiples of the device's granularity alone.
Status check_sizes(const char* option, const std::vector<std::uint64_t>& sizes, const DeviceInfo& device) {
  for (const std::uint64_t bytes : sizes)
    if (bytes % device.segment_granularity_bytes != 0)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{}: {} bytes is not a multiple of {}, the granularity of {}", option, bytes,
                              device.segment_granularity_bytes, device_name(device.id)));
  return {};
}

Exit run(const Options& options) {
  const auto machine = MeasuredMachine::open(options.common.machine);
  if (!machine) return complain_of("memory", machine.error());
  const auto devices = machine->backend().devices();
  if (Status fit = check_sizes("--sizes", options.sizes, devices.front()); !fit)
    return complain_of("memory", fit.error());
  if (Status fit = check_sizes("--pin-sizes", options.pin_sizes, devices.back()); !fit)
    return complain_of("memory", fit.error());
  const Results results = measure(*machine, options);
  if (options.common.json)
    print_json(to_json(*machine, options, results));
  else if (!results.rows.empty())
    print_table(*machine, results);
  if (results.rows.empty())
    return complain(Exit::failed, "bench memory",
                    "nothing could be measured: " + results.waived.front().reason);
  return Exit::ok;
}

}  // namespace

void add_memory(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<Options>();
  options->common.runs = 20;
  CLI::App* command = bench.add_subcommand("memory", "Cost of mapping GPU memory and pinning host memory");
  command->footer(kTeaching);
  add_sizes(*command, "--sizes", options->sizes, 1, kMostBytes, "Sizes of a GPU's segment (2 to 512 MiB)");
  add_sizes(*command, "--pin-sizes", options->pin_sizes, 1, kMostBytes,
            "Sizes of host memory to pin (64 MiB to 1 GiB)");
  add_common(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
