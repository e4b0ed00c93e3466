// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/fetch_world.hpp"
#include "cli/bench/link.hpp"

/// `harvest bench fetch`: how much of a link a read through the cache gets.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Fetches batches of objects through a cache, from a peer and from host memory, contiguous and "
    "scattered,\n"
    "and compares every byte. Beside each: one large copy over the same link (100 %), and the naive loop of\n"
    "one copy call for each object.\n"
    "\n"
    "Example:\n"
    "  harvest bench fetch --loopback --sizes 32KiB,1MiB\n"
    "  harvest bench fetch --system dgx-h100 --from peer --json\n"
    "\n"
    "It answers 1 if a byte was wrong.";

constexpr std::uint64_t kMostObjects = 4096;
constexpr std::uint64_t kLeastObjectBytes = 4ULL << 10;
constexpr std::uint64_t kMostObjectBytes = 4ULL << 30;

struct Options {
  CommonOptions common;
  std::vector<std::uint64_t> sizes;
  std::uint64_t batch_bytes = 128ULL << 20;
  std::uint64_t consumer = 0;
  std::string from;
};

struct Row {
  FetchCase what;
  DeviceId device = kHost;
  double link_bytes_per_s = 0;
  Spread fetch;  ///< bytes per second, the GPU's time
  Spread call;   ///< the caller's time
  Spread naive;
  Spread naive_waited;
  bool gated = true;
  std::uint64_t wrong_bytes = 0;

  [[nodiscard]] double percent_of_link() const { return 100 * fetch.median / link_bytes_per_s; }
  [[nodiscard]] double over_naive() const { return call.median / naive.median; }
};

std::vector<FetchCase> cases_of(const Options& options, Tier tier) {
  std::vector<std::uint64_t> sizes = options.sizes;
  if (sizes.empty()) {
    sizes = {16ULL << 10, 32ULL << 10, 1ULL << 20};
    if (!options.common.quick)
      sizes.insert(sizes.end(), {128ULL << 10, 9ULL << 20, 36ULL << 20, 336ULL << 20});
    std::sort(sizes.begin(), sizes.end());
  }
  const std::uint64_t batch = options.common.quick ? 4ULL << 20 : options.batch_bytes;
  std::vector<FetchCase> cases;
  for (const std::uint64_t bytes : sizes) {
    const std::uint64_t objects = std::clamp<std::uint64_t>(batch / bytes, 1, kMostObjects);
    cases.push_back({tier, bytes, objects, false});
    if (objects > 1) cases.push_back({tier, bytes, objects, true});
  }
  return cases;
}

/// One copy of as many bytes as a batch has, over the same link.
class LinkBaseline {
 public:
  LinkBaseline(Backend& backend, std::uint64_t runs) : backend_(backend), runs_(runs) {}
  [[nodiscard]] Result<double> bytes_per_s(Route route, std::uint64_t bytes) {
    double& known = known_[{route.from, bytes}];
    if (known > 0) return known;
    auto meter = LinkMeter::create(backend_, route, bytes);
    if (!meter) return tl::unexpected(meter.error());
    const auto figure = meter->measure(bytes, runs_);
    if (!figure) return tl::unexpected(figure.error());
    if (figure->wrong_bytes != 0)
      return fail(ErrorCode::copy_failed,
                  fmt::format("the link from {} to {} brought {} wrong bytes", device_name(route.from),
                              device_name(route.to), figure->wrong_bytes));
    return known = figure->bytes_per_s.median;
  }

 private:
  Backend& backend_;
  std::uint64_t runs_;
  std::map<std::pair<DeviceId, std::uint64_t>, double> known_;
};

double rate(std::uint64_t bytes, TimeNs ns) {
  return static_cast<double>(bytes) * 1e9 / static_cast<double>(std::max<TimeNs>(1, ns));
}

/// `runs` measurements of one kind.
template <typename Measure>
Result<Spread> rates_of(std::uint64_t bytes, std::uint64_t runs, Measure measure) {
  std::vector<double> rates;
  for (std::uint64_t i = 0; i < runs; ++i) {
    const Result<TimeNs> ns = measure();
    if (!ns) return tl::unexpected(ns.error());
    rates.push_back(rate(bytes, *ns));
  }
  return spread_of(std::move(rates));
}

Status measure_fetches(FetchWorld& world, std::uint64_t runs, const Backend& backend, Row& row) {
  const std::uint64_t bytes = row.what.bytes();
  const auto warm_up = world.fetch_gated(1);
  if (!warm_up) return tl::unexpected(warm_up.error());
  const std::uint64_t repeats = repeats_for(backend, warm_up->duration_ns);
  const auto gated = rates_of(bytes * repeats, runs, [&]() -> Result<TimeNs> {
    const auto run = world.fetch_gated(repeats);
    if (!run) return tl::unexpected(run.error());
    row.gated = row.gated && run->gated;
    return run->duration_ns;
  });
  if (!gated) return tl::unexpected(gated.error());
  row.fetch = *gated;
  for (const auto& [spread, measure] :
       std::initializer_list<std::pair<Spread*, std::function<Result<TimeNs>()>>>{
           {&row.call, [&] { return world.fetch_from_call(); }},
           {&row.naive, [&] { return world.naive(false); }},
           {&row.naive_waited, [&] { return world.naive(true); }}}) {
    const auto measured = rates_of(bytes, runs, measure);
    if (!measured) return tl::unexpected(measured.error());
    *spread = *measured;
  }
  row.wrong_bytes = world.wrong_bytes();
  return {};
}

Result<std::vector<Row>> measure(const MeasuredMachine& machine, const Options& options,
                                 const std::vector<std::pair<Tier, std::optional<DeviceId>>>& sources) {
  Backend& backend = machine.backend();
  const auto consumer = static_cast<DeviceId>(options.consumer);
  LinkBaseline baseline(backend, options.common.runs);
  std::vector<Row> rows;
  Progress progress("fetching", cases_of(options, Tier::host).size() * sources.size());
  for (const auto& [tier, peer] : sources) {
    for (const FetchCase& what : cases_of(options, tier)) {
      Row row;
      row.what = what;
      row.device = tier == Tier::peer ? *peer : kHost;
      const auto link = baseline.bytes_per_s({row.device, consumer}, what.bytes());
      if (!link) return tl::unexpected(link.error());
      row.link_bytes_per_s = *link;
      auto world = FetchWorld::create(backend, consumer, peer, what);
      if (!world) return tl::unexpected(world.error());
      if (Status measured = measure_fetches(**world, options.common.runs, backend, row); !measured)
        return tl::unexpected(measured.error());
      rows.push_back(row);
      progress.at(rows.size());
    }
  }
  return rows;
}

std::uint64_t wrong_bytes_of(const std::vector<Row>& rows) {
  std::uint64_t wrong = 0;
  for (const Row& row : rows) wrong += row.wrong_bytes;
  return wrong;
}

Json to_json(const MeasuredMachine& machine, const Options& options, const std::vector<Row>& rows) {
  Json json = machine.header("fetch");
  json["consumer"] = options.consumer;
  json["runs"] = options.common.runs;
  json["rows"] = Json::array();
  for (const Row& row : rows) {
    Json line{{"from", to_string(row.what.tier)},
              {"device", row.device},
              {"layout", row.what.scattered ? "scattered" : "contiguous"},
              {"object_bytes", row.what.object_bytes},
              {"objects", row.what.objects},
              {"bytes", row.what.bytes()}};
    add_spread(line, "fetch_bytes_per_s", row.fetch);
    line["link_bytes_per_s"] = row.link_bytes_per_s;
    line["percent_of_link"] = row.percent_of_link();
    add_spread(line, "call_bytes_per_s", row.call);
    add_spread(line, "naive_bytes_per_s", row.naive);
    add_spread(line, "naive_waited_bytes_per_s", row.naive_waited);
    line["call_over_naive"] = row.over_naive();
    line["gated"] = row.gated;
    line["checked"] = row.wrong_bytes == 0;
    line["wrong_bytes"] = row.wrong_bytes;
    json["rows"].push_back(std::move(line));
  }
  json["wrong_bytes"] = wrong_bytes_of(rows);
  return json;
}

void print_table(const MeasuredMachine& machine, const Options& options, const std::vector<Row>& rows) {
  Table table({"from", "objects", "layout", "fetch", "link", "of link", "from call", "naive loop",
               "naive, waited", "over naive", "bytes checked"});
  for (const Row& row : rows)
    table.add({device_name(row.device),
               fmt::format("{} x {}", format_count(row.what.objects), format_bytes(row.what.object_bytes)),
               row.what.scattered ? "scattered" : "contiguous",
               format_bandwidth(row.fetch.median) + (row.gated ? "" : " *"),
               format_bandwidth(row.link_bytes_per_s), fmt::format("{:.1f} %", row.percent_of_link()),
               format_bandwidth(row.call.median), format_bandwidth(row.naive.median),
               format_bandwidth(row.naive_waited.median), fmt::format("{:.1f}x", row.over_naive()),
               row.wrong_bytes == 0 ? "right" : format_count(row.wrong_bytes) + " WRONG"});
  fmt::print("{}\n\n{}",
             machine.title(fmt::format("Reads of {} through the cache",
                                       device_name(static_cast<DeviceId>(options.consumer)))),
             table.text());
  if (std::any_of(rows.begin(), rows.end(), [](const Row& row) { return !row.gated; }))
    fmt::print("\n* the stream could not be held long enough: the time to submit is part of this\n");
}

Result<std::vector<std::pair<Tier, std::optional<DeviceId>>>> sources_of(const MeasuredMachine& machine,
                                                                         const Options& options) {
  const auto gpus = gpus_of(machine.backend());
  if (options.consumer >= gpus.size())
    return fail(ErrorCode::invalid_argument,
                fmt::format("--consumer: {} is not a GPU from 0 to {}", options.consumer, gpus.size() - 1));
  if (!options.from.empty() && options.from != "peer" && options.from != "host")
    return fail(ErrorCode::invalid_argument,
                fmt::format("--from: '{}' is not a tier to read from: peer or host", options.from));
  std::vector<std::pair<Tier, std::optional<DeviceId>>> sources;
  if (options.from != "host") {
    const auto peer = machine.best_peer(static_cast<DeviceId>(options.consumer));
    if (!peer && options.from == "peer") return tl::unexpected(peer.error());
    if (peer) sources.emplace_back(Tier::peer, *peer);
    if (!peer) fmt::print(stderr, "harvest bench fetch: no peer is measured: {}\n", peer.error().message);
  }
  if (options.from != "peer") sources.emplace_back(Tier::host, std::nullopt);
  return sources;
}

Exit run(const Options& options) {
  const auto machine = MeasuredMachine::open(options.common.machine);
  if (!machine) return complain_of("fetch", machine.error());
  const auto sources = sources_of(*machine, options);
  if (!sources) return complain_of("fetch", sources.error());
  const auto rows = measure(*machine, options, *sources);
  if (!rows) return complain_of("fetch", rows.error());
  if (options.common.json)
    print_json(to_json(*machine, options, *rows));
  else
    print_table(*machine, options, *rows);
  return wrong_bytes_of(*rows) == 0 ? Exit::ok : Exit::failed;
}

}  // namespace

void add_fetch(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand("fetch", "Reads through the cache, as a share of the link");
  command->footer(kTeaching);
  add_sizes(*command, "--sizes", options->sizes, kLeastObjectBytes, kMostObjectBytes,
            "Sizes of one object (16 KiB to 336 MiB)");
  add_size(*command, "--batch", options->batch_bytes, kLeastObjectBytes, kMostObjectBytes,
           "Bytes of one batch; at most 4,096 objects");
  add_count(*command, "--consumer", options->consumer, {0, 63}, "The GPU that reads");
  add_name(*command, "--from", options->from, "Only from this tier: peer or host")->type_name("TIER");
  add_common(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
