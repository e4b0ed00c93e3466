// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/owner.hpp"
#include "cli/bench/reclaim_world.hpp"

/// `harvest bench reclaim`: how long an owner waits for its memory, and what else it costs the owner.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Fills a peer through a cache, takes all but half as much again for its owner, and asks for the bytes\n"
    "back. Timed is the way from the request until the device's free count shows them; then the owner, "
    "which\n"
    "is another process on real GPUs, allocates them. Idle, and while the owner's GPU is busy with fills: "
    "how\n"
    "much later those end, as a share of the reclaim's time, is the owner's slowdown.\n"
    "\n"
    "Example:\n"
    "  harvest bench reclaim --loopback --sizes 1GiB,8GiB --runs 50\n"
    "  harvest bench reclaim --system dgx-h100 --json\n"
    "\n"
    "It answers 1 if bytes came late, or if the owner did not get what was returned.";

constexpr std::uint64_t kObjectBytes = 8ULL << 20;
constexpr std::uint64_t kMostBytes = 1ULL << 40;
constexpr TimeNs kShortestLoadNs = 2'000'000;

struct Options {
  CommonOptions common;
  std::vector<std::uint64_t> sizes;
  std::uint64_t consumer = 0;
  bool no_owner = false;
  std::uint64_t owner_process = 0;
};

struct Row {
  std::uint64_t bytes = 0;
  bool busy = false;
  Spread call_ns;
  Spread free_ns;
  std::uint64_t returned_bytes = UINT64_MAX;  ///< in the worst run
  std::uint64_t late = 0;                     ///< runs in which bytes came late or were not seen
  std::uint64_t owner_got = 0;                ///< runs in which the owner allocated the bytes
  std::optional<Spread> owner_ns;
  // Of a busy owner:
  std::optional<Spread> slowdown_percent;
  std::optional<Spread> delay_ns;
  double noise_percent = 0;  ///< how far runs without a reclaim lie apart
  std::uint64_t outlasted =
      0;  ///< runs in which the owner's work was as long as the reclaim: only these count
};

struct Waived {
  std::uint64_t bytes = 0;
  std::string reason;
};

struct Results {
  std::vector<Row> rows;
  std::vector<Waived> waived;
  std::string owner;          ///< who
  std::string owner_skipped;  ///< why there is none
  [[nodiscard]] bool failed(std::uint64_t runs) const {
    return std::any_of(rows.begin(), rows.end(), [&](const Row& row) {
      return row.late != 0 || (owner_skipped.empty() && row.owner_got != runs);
    });
  }
};

/// All runs of one size.
class ReclaimBench {
 public:
  ReclaimBench(const MeasuredMachine& machine, const ReclaimSetting& setting, const SharedObject& object,
               Owner* owner, std::uint64_t runs)
      : machine_(machine), setting_(setting), object_(object), owner_(owner), runs_(runs) {}

  [[nodiscard]] Result<Row> idle() {
    return measure([this](PeerCache& cache) { return reclaim_all(machine_.backend(), cache, setting_); });
  }

  /// `expected_ns` is what a reclaim takes.
  [[nodiscard]] Result<Row> busy(OwnerLoad& load, double expected_ns) {
    const auto length = std::max(kShortestLoadNs, static_cast<TimeNs>(2 * expected_ns));
    if (Status sized = load.resize(length); !sized) return tl::unexpected(sized.error());
    std::vector<double> alone;
    for (std::uint64_t i = 0; i < runs_; ++i) {
      const auto run = load.run();
      if (!run) return tl::unexpected(run.error());
      alone.push_back(static_cast<double>(run->duration_ns));
    }
    const Spread baseline = spread_of(std::move(alone));
    std::vector<double> slowdowns;
    std::vector<double> delays;
    auto row = measure([&](PeerCache& cache) -> Result<ReclaimRun> {
      Result<ReclaimRun> run = ReclaimRun{};
      const auto beside = load.run([&]() -> Status {
        run = reclaim_all(machine_.backend(), cache, setting_);
        return run ? Status{} : tl::unexpected(run.error());
      });
      if (!beside) return tl::unexpected(beside.error());
      if (!beside->outlasted) return run;
      delays.push_back(static_cast<double>(beside->duration_ns) - baseline.median);
      slowdowns.push_back(100 * delays.back() / static_cast<double>(run->free_ns));
      return run;
    });
    if (!row) return row;
    row->busy = true;
    row->outlasted = delays.size();
    row->noise_percent = 100 * (baseline.most - baseline.least) / baseline.median;
    if (!delays.empty()) {
      row->delay_ns = spread_of(std::move(delays));
      row->slowdown_percent = spread_of(std::move(slowdowns));
    }
    return row;
  }

 private:
  template <typename Reclaim>
  [[nodiscard]] Result<Row> measure(Reclaim reclaim) {
    Row row;
    row.bytes = setting_.bytes;
    std::vector<double> calls;
    std::vector<double> frees;
    std::vector<double> owners;
    for (std::uint64_t i = 0; i < runs_; ++i) {
      auto cache = fill_peer(machine_.backend(), setting_, object_);
      if (!cache) return tl::unexpected(cache.error());
      if (owner_ != nullptr)
        if (Status taken = owner_->take_all_but(setting_.bytes / 2); !taken)
          return tl::unexpected(taken.error());
      const Result<ReclaimRun> run = reclaim(**cache);
      if (!run) return tl::unexpected(run.error());
      calls.push_back(static_cast<double>(run->call_ns));
      frees.push_back(static_cast<double>(run->free_ns));
      row.returned_bytes = std::min(row.returned_bytes, run->report.returned_bytes);
      if (!run->report.finished || run->report.late_bytes != 0 || !run->was_seen) ++row.late;
      if (owner_ == nullptr) continue;
      if (const auto took_ns = owner_->allocate(setting_.bytes)) {
        ++row.owner_got;
        owners.push_back(static_cast<double>(*took_ns));
      }
      if (Status back = owner_->give_back(); !back) return tl::unexpected(back.error());
    }
    row.call_ns = spread_of(std::move(calls));
    row.free_ns = spread_of(std::move(frees));
    if (!owners.empty()) row.owner_ns = spread_of(std::move(owners));
    return row;
  }

  const MeasuredMachine& machine_;
  ReclaimSetting setting_;
  const SharedObject& object_;
  Owner* owner_;
  std::uint64_t runs_;
};

std::vector<std::uint64_t> sizes_of(const Options& options) {
  if (!options.sizes.empty()) return options.sizes;
  if (options.common.quick) return {64ULL << 20, 256ULL << 20};
  return {64ULL << 20, 256ULL << 20, 1ULL << 30, 4ULL << 30, 8ULL << 30, 16ULL << 30};
}

/// Both rows of one size. Where the peer has no room for it that is waived.
Status measure_size(const MeasuredMachine& machine, const ReclaimSetting& setting, const SharedObject& object,
                    Owner* owner, std::uint64_t runs, OwnerLoad& load, Results& results) {
  ReclaimBench bench(machine, setting, object, owner, runs);
  auto idle = bench.idle();
  if (!idle && idle.error().code == ErrorCode::out_of_memory) {
    results.waived.push_back({setting.bytes, idle.error().message});
    if (owner != nullptr) return owner->give_back();
    return {};
  }
  if (!idle) return tl::unexpected(idle.error());
  results.rows.push_back(*idle);
  auto busy = bench.busy(load, idle->free_ns.median);
  if (!busy) return tl::unexpected(busy.error());
  results.rows.push_back(*busy);
  return {};
}

Result<Results> measure(const MeasuredMachine& machine, const Options& options, DeviceId peer) {
  Backend& backend = machine.backend();
  Results results;
  std::unique_ptr<Owner> owner;
  if (options.no_owner) {
    results.owner_skipped = "--no-owner";
  } else if (auto made = make_owner(machine, peer)) {
    owner = std::move(*made);
    results.owner = owner->who();
  } else {
    results.owner_skipped = made.error().message;
  }
  const auto object = SharedObject::create(machine, kObjectBytes);
  if (!object) return tl::unexpected(object.error());
  const std::uint64_t scratch = options.common.quick ? 64ULL << 20 : 256ULL << 20;
  const auto load = OwnerLoad::create(backend, peer, scratch);
  if (!load) return tl::unexpected(load.error());
  const auto sizes = sizes_of(options);
  Progress progress("reclaiming", sizes.size());
  for (const std::uint64_t bytes : sizes) {
    const ReclaimSetting setting{static_cast<DeviceId>(options.consumer), peer,
                                 bytes / kObjectBytes * kObjectBytes, kObjectBytes};
    if (Status done =
            measure_size(machine, setting, *object, owner.get(), options.common.runs, **load, results);
        !done)
      return tl::unexpected(done.error());
    progress.at(results.rows.size() / 2 + results.waived.size());
  }
  return results;
}

/// Null where there is nothing to tell.
void add_percentiles(Json& json, const std::string& name, const std::optional<Spread>& spread) {
  json[name + "_p50"] = spread ? Json(spread->median) : Json();
  json[name + "_p99"] = spread ? Json(spread->p99) : Json();
  json[name + "_max"] = spread ? Json(spread->most) : Json();
}

Json to_json(const MeasuredMachine& machine, const Options& options, DeviceId peer, const Results& results) {
  Json json = machine.header("reclaim");
  json["consumer"] = options.consumer;
  json["peer"] = peer;
  json["runs"] = options.common.runs;
  json["object_bytes"] = kObjectBytes;
  json["owner"] = results.owner;
  json["owner_skipped"] = results.owner_skipped;
  json["rows"] = Json::array();
  for (const Row& row : results.rows) {
    Json line{{"bytes", row.bytes}, {"load", row.busy ? "busy" : "idle"}};
    add_percentiles(line, "reclaim_ns", row.free_ns);
    add_percentiles(line, "call_ns", row.call_ns);
    line["returned_bytes"] = row.returned_bytes;
    line["late"] = row.late;
    line["owner_got"] = row.owner_got;
    add_percentiles(line, "owner_allocate_ns", row.owner_ns);
    if (row.busy) {
      line["owner_slowdown_percent"] = row.slowdown_percent ? Json(row.slowdown_percent->median) : Json();
      line["owner_delay_ns"] = row.delay_ns ? Json(row.delay_ns->median) : Json();
      line["owner_noise_percent"] = row.noise_percent;
      line["owner_compared"] = row.outlasted;
    }
    json["rows"].push_back(std::move(line));
  }
  json["waived"] = Json::array();
  for (const Waived& waived : results.waived)
    json["waived"].push_back({{"bytes", waived.bytes}, {"reason", waived.reason}});
  return json;
}

void print_table(const MeasuredMachine& machine, DeviceId peer, const Options& options,
                 const Results& results) {
  Table table({"bytes", "owner", "p50", "p99", "max", "late", "owner got it", "in", "slowed by", "noise"});
  for (const Row& row : results.rows) {
    table.add(
        {format_bytes(row.bytes), row.busy ? "busy" : "idle", format_ns(row.free_ns.median),
         format_ns(row.free_ns.p99), format_ns(row.free_ns.most), format_count(row.late),
         results.owner_skipped.empty() ? fmt::format("{} of {}", row.owner_got, options.common.runs) : "-",
         row.owner_ns ? format_ns(row.owner_ns->median) : "-",
         row.slowdown_percent ? fmt::format("{:.2f} %", row.slowdown_percent->median) : "-",
         row.busy ? fmt::format("{:.2f} %", row.noise_percent) : "-"});
  }
  fmt::print("{}\n\n{}", machine.title(fmt::format("Time to give memory of {} back", device_name(peer))),
             table.text());
  if (results.owner_skipped.empty())
    fmt::print("\nThe owner is {}; it allocates what was returned, and could not before.\n", results.owner);
  else
    fmt::print("\nSKIPPED: whether another process gets the bytes was not tried: {}\n",
               results.owner_skipped);
  for (const Waived& waived : results.waived)
    fmt::print("\nwaived: {}: {}\n", format_bytes(waived.bytes), waived.reason);
}

/// What was named and can never be had. What is only not free now is waived later.
Status check_sizes(const Options& options, const DeviceInfo& peer) {
  for (const std::uint64_t bytes : options.sizes)
    if (bytes > peer.total_bytes)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("--sizes: {} do not fit: {} has {}", format_bytes(bytes), device_name(peer.id),
                              format_bytes(peer.total_bytes)));
  return {};
}

Exit run(const Options& options) {
  for (const std::uint64_t bytes : options.sizes)
    if (bytes % kObjectBytes != 0)
      return complain(Exit::bad_input, "bench reclaim",
                      fmt::format("--sizes: {} bytes is not a multiple of {}", bytes, kObjectBytes));
  // No byte is looked at here, and none is there to look at: 16 GiB fit into any simulated machine.
  const auto machine = MeasuredMachine::open(options.common.machine, SimulatedBytes::phantom);
  if (!machine) return complain_of("reclaim", machine.error());
  const auto gpus = gpus_of(machine->backend());
  if (options.consumer >= gpus.size())
    return complain(
        Exit::bad_input, "bench reclaim",
        fmt::format("--consumer: {} is not a GPU from 0 to {}", options.consumer, gpus.size() - 1));
  const auto peer = machine->best_peer(static_cast<DeviceId>(options.consumer));
  if (!peer) return complain_of("reclaim", peer.error());
  const DeviceInfo& info = machine->backend().devices()[static_cast<std::size_t>(*peer)];
  if (Status fit = check_sizes(options, info); !fit) return complain_of("reclaim", fit.error());
  const auto results = measure(*machine, options, *peer);
  if (!results) return complain_of("reclaim", results.error());
  if (options.common.json)
    print_json(to_json(*machine, options, *peer, *results));
  else if (!results->rows.empty())
    print_table(*machine, *peer, options, *results);
  if (results->rows.empty())
    return complain(Exit::failed, "bench reclaim",
                    "nothing could be measured: " + results->waived.front().reason);
  if (!results->failed(options.common.runs)) return Exit::ok;
  return complain(Exit::failed, "bench reclaim",
                  "bytes were late, or what was returned could not be allocated by the owner: see the rows");
}

}  // namespace

void add_reclaim(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<Options>();
  options->common.runs = 20;
  CLI::App* command = bench.add_subcommand("reclaim", "From an owner's request to its memory");
  command->footer(kTeaching);
  add_sizes(*command, "--sizes", options->sizes, kObjectBytes, kMostBytes,
            "Bytes asked for, in multiples of 8 MiB (64 MiB to 16 GiB)");
  add_count(*command, "--consumer", options->consumer, {0, 63}, "The GPU that the peer serves");
  command->add_flag("--no-owner", options->no_owner, "Let no other process take the peer's free memory")
      ->disable_flag_override();
  add_common(*command, options->common);
  CLI::Option* owner = add_count(*command, kOwnerOption, options->owner_process, {0, 63}, "")->group("");
  command->callback([options, owner, &chosen] {
    if (owner->count() > 0)
      chosen = [options] { return run_owner(static_cast<DeviceId>(options->owner_process)); };
    else
      chosen = [options] { return run(*options); };
  });
}

}  // namespace harvest::cli::bench
