// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>

#include "cli/arguments.hpp"
#include "cli/command.hpp"
#include "cli/models.hpp"
#include "cli/output.hpp"
#include "cli/workload.hpp"

/// `harvest replay`: the options, and what is printed of the two runs.
namespace harvest::cli {
namespace {

constexpr const char* kTeaching =
    "Drives a real cache on a simulated machine with recorded requests, in virtual time. Each request\n"
    "brings the KV blocks of its known prefix back (512 tokens each), from the local tier, from peers or\n"
    "from host memory; the blocks after the first unknown one are computed and stored. The same requests\n"
    "run twice: with the peers, and without them as the baseline. Reload time is what requests waited for\n"
    "blocks; the time to compute is not modelled. The ceiling is what a clairvoyant could reach.\n"
    "\n"
    "Owners of the peers use their own memory meanwhile: `bursty` ones rise and fall as GPUs of a public\n"
    "inference cluster did, and ask for their memory back when they need it.\n"
    "\n"
    "Example:\n"
    "  harvest replay --trace conversation_trace.jsonl.gz --system dgx-h100 --model llama-3-8b\n"
    "                 --local 16GiB --peer 50GiB --host 400GiB --owner-activity bursty\n"
    "\n"
    "It answers 1 if a byte was wrong, an object was lost or an owner did not get its memory.";

constexpr std::uint64_t kMostRequests = 1ULL << 31;
/// Of virtual time, each minute of which takes a moment even if nothing comes. Times that count from 1970 and
/// not from the trace's begin are beyond it.
constexpr TimeNs kHourNs = 3'600'000'000'000;
constexpr TimeNs kMostHours = 7 * 24;

struct Options {
  TraceOptions trace;
  std::string system = "2xh100-nvl";
  std::string model = "llama-3-8b";
  std::uint64_t local_bytes = 16ULL << 30;
  std::uint64_t peer_bytes = 50ULL << 30;
  std::uint64_t host_bytes = 400ULL << 30;
  std::string policy;
  std::string owner_activity = "bursty";
  std::uint64_t seed = 1;
  std::uint64_t requests = kMostRequests;
  bool json = false;
};

struct Comparison {
  RunFigures with_peers;
  RunFigures baseline;
  Ceiling ceiling;
  double wires = 0;  ///< bandwidth of a peer's link by that of the host's
};

/// `wanted` bytes, of which a device has `limit`.
Status check_size(const char* option, std::uint64_t wanted, std::uint64_t limit, const std::string& whose) {
  if (wanted <= limit) return {};
  std::string much = format_bytes(wanted);
  std::string most = format_bytes(limit);
  if (much == most) {  // they differ in digits that this does not show
    much = fmt::format("{} B", wanted);
    most = fmt::format("{} B", limit);
  }
  return fail(ErrorCode::invalid_argument,
              fmt::format("{}: {} do not fit: {} has {}", option, much, whose, most));
}

/// A tier that cannot hold one block would hold none: who wants none says 0.
Status check_block(const char* option, std::uint64_t bytes, std::uint64_t block_bytes) {
  if (bytes >= block_bytes || (bytes == 0 && std::string_view(option) != "--host")) return {};
  return fail(ErrorCode::invalid_argument,
              fmt::format("{}: {} are less than one block of {}{}", option, format_bytes(bytes),
                          format_bytes(block_bytes), bytes == 0 ? "" : "; 0 is for none"));
}

Status check_sizes(const Options& options, const Workload& workload) {
  const auto& devices = workload.machine.devices;
  const std::uint64_t gpu = devices.front().info.total_bytes;
  const std::string buffer_for =
      fmt::format("{} less the buffer for the longest request ({} blocks of {})", device_name(0),
                  workload.most_blocks(), format_bytes(workload.block_bytes));
  const std::uint64_t buffer = workload.block_bytes * workload.most_blocks();
  if (Status fits = check_size("--model", buffer, gpu, device_name(0)); !fits) return fits;
  if (Status fits = check_size("--local", options.local_bytes, gpu - buffer, buffer_for); !fits) return fits;
  for (std::size_t peer = 1; peer + 1 < devices.size(); ++peer) {
    const DeviceInfo& info = devices[peer].info;
    if (Status fits = check_size("--peer", options.peer_bytes, info.total_bytes, device_name(info.id)); !fits)
      return fits;
  }
  if (Status fits = check_size("--host", options.host_bytes, devices.back().info.total_bytes, "the host");
      !fits)
    return fits;
  for (const auto& [option, bytes] : {std::pair{"--local", options.local_bytes},
                                      {"--peer", options.peer_bytes},
                                      {"--host", options.host_bytes}})
    if (Status fits = check_block(option, bytes, workload.block_bytes); !fits) return fits;
  return {};
}

Result<Workload> read_workload(const Options& options) {
  const auto model = find_model(options.model);
  if (!model) return fail(model.error().code, "--model: " + model.error().message);
  const auto activity = parse_owner_activity(options.owner_activity);
  if (!activity) return fail(activity.error().code, "--owner-activity: " + activity.error().message);
  if (!options.policy.empty())
    if (const auto policy = make_eviction_policy(options.policy, 1); !policy)
      return fail(policy.error().code, "--policy: " + policy.error().message);
  auto machine = read_system_with_peer(options.system);
  if (!machine) return tl::unexpected(machine.error());
  auto trace = read_trace(options.trace);
  if (!trace) return tl::unexpected(trace.error());
  if (options.requests < trace->requests.size()) trace->requests.resize(options.requests);
  if (const TimeNs last_ns = trace->requests.back().arrival_ns; last_ns > kMostHours * kHourNs)
    return fail(ErrorCode::invalid_argument,
                fmt::format("--trace: the last request comes {} hours after the begin, the limit is {}; see "
                            "--requests",
                            last_ns / kHourNs, kMostHours));
  spread_arrivals(*trace);

  Workload workload;
  workload.trace = std::move(*trace);
  workload.machine = std::move(*machine);
  workload.block_bytes = kMooncakeBlockTokens * model->kv_bytes_per_token();
  workload.local_bytes = options.local_bytes;
  workload.peer_bytes = options.peer_bytes;
  workload.host_bytes = options.host_bytes;
  workload.policy = options.policy;
  workload.activity = *activity;
  workload.seed = options.seed;
  if (Status fits = check_sizes(options, workload); !fits) return tl::unexpected(fits.error());
  return workload;
}

Result<Comparison> compare(const Workload& workload) {
  Comparison comparison;
  for (const bool with_peers : {true, false}) {
    Progress progress(with_peers ? "local+peer+host" : "local+host", workload.trace.requests.size());
    auto run = run_workload(workload, with_peers, progress);
    if (!run) return tl::unexpected(run.error());
    (with_peers ? comparison.with_peers : comparison.baseline) = std::move(*run);
  }
  const Machine& machine = workload.machine;
  const auto wire = [&](DeviceId from) {
    const MachineLink* link = machine.find_link(from, 0);
    if (link == nullptr) return Wire{};
    return Wire{static_cast<double>(link->info.issue_ns + link->info.latency_ns),
                link->info.bandwidth_bytes_per_s};
  };
  const Wire host = wire(kHost);
  Wire peer{};
  for (const DeviceId device : comparison.with_peers.peers)
    if (const Wire other = wire(device); other.bandwidth_bytes_per_s > peer.bandwidth_bytes_per_s)
      peer = other;
  const std::uint64_t capacity =
      workload.peer_bytes / workload.block_bytes * comparison.with_peers.peers.size();
  comparison.ceiling = find_ceiling(comparison.baseline.uses, capacity, workload.block_bytes, peer, host);
  comparison.wires = peer.bandwidth_bytes_per_s / host.bandwidth_bytes_per_s;
  return comparison;
}

/// Nothing to reload in either run is no gain and no loss.
double ratio(double baseline_ns, double ns) {
  return ns > 0 ? baseline_ns / ns : 1.0;
}

Json to_json(const RunFigures& run) {
  const EngineFigures& engine = run.engine;
  const auto by_tier = [](const auto& figures, Tier tier) { return figures[static_cast<std::size_t>(tier)]; };
  const TimeSummary reload = summarize(engine.reload_ns);
  const TimeSummary reclaim = summarize(run.owners.reclaim_ns);
  Json json;
  json["tiers"] = run.with_peers ? Json{"local", "peer", "host"} : Json{"local", "host"};
  json["peers"] = run.peers;
  json["accesses"] = engine.accesses;
  json["hits"] = {{"local", by_tier(engine.hits, Tier::local)},
                  {"peer", by_tier(engine.hits, Tier::peer)},
                  {"host", by_tier(engine.hits, Tier::host)}};
  json["misses"] = engine.misses;
  json["bytes_from"] = {{"local", by_tier(engine.bytes_from, Tier::local)},
                        {"peer", by_tier(engine.bytes_from, Tier::peer)},
                        {"host", by_tier(engine.bytes_from, Tier::host)}};
  json["reload_ns"] = {{"count", engine.reload_ns.size()},
                       {"p50", reload.p50_ns},
                       {"p99", reload.p99_ns},
                       {"total", reload.total_ns}};
  json["reclaims"] = {{"count", run.owners.reclaim_ns.size()},
                      {"bytes_requested", run.owners.bytes_requested},
                      {"bytes_returned", run.owners.bytes_returned},
                      {"late", run.owners.late},
                      {"ns_p50", reclaim.p50_ns},
                      {"ns_p99", reclaim.p99_ns}};
  json["monitor_reclaims"] = {
      {"count", run.cache.reclaims - run.owners.reclaim_ns.size()},
      {"bytes_requested", run.cache.reclaim_requested_bytes - run.owners.bytes_requested}};
  json["owners"] = {{"rises", run.owners.rises}, {"refused", run.owners.refused}};
  json["promotions"] = run.cache.promotions_completed;
  json["puts_refused"] = engine.puts_refused;
  json["evicted"] = run.cache.objects_evicted;
  json["lost"] = engine.lost;
  json["wrong_bytes"] = engine.wrong_bytes;
  json["shadow"] = Json::object();
  for (const Tier tier : {Tier::peer, Tier::host})
    for (const ShadowPoint& point : by_tier(run.cache.shadow, tier))
      json["shadow"][std::string(to_string(tier))].push_back(
          {{"capacity_bytes", point.capacity_bytes}, {"hit_ratio", point.hit_ratio}});
  json["simulated_ns"] = run.duration_ns;
  return json;
}

Json to_json(const Options& options, const Workload& workload, const Comparison& comparison) {
  const Ceiling& ceiling = comparison.ceiling;
  const auto baseline = static_cast<double>(summarize(comparison.baseline.engine.reload_ns).total_ns);
  const auto with_peers = static_cast<double>(summarize(comparison.with_peers.engine.reload_ns).total_ns);
  Json json;
  json["simulated"] = true;
  json["system"] = workload.machine.name;
  json["trace"] = options.trace.path;
  json["requests"] = workload.trace.requests.size();
  json["model"] = options.model;
  json["block_bytes"] = workload.block_bytes;
  json["local_bytes"] = workload.local_bytes;
  json["peer_bytes"] = workload.peer_bytes;
  json["host_bytes"] = workload.host_bytes;
  json["policy"] = workload.policy.empty() ? "default" : workload.policy;
  json["owner_activity"] = options.owner_activity;
  json["seed"] = workload.seed;
  json["runs"] = {to_json(comparison.with_peers), to_json(comparison.baseline)};
  json["speedup"] = {{"reload_total", ratio(baseline, with_peers)},
                     {"ceiling_one_after_other", ratio(baseline, ceiling.one_after_other_ns)},
                     {"ceiling_overlapping", ratio(baseline, ceiling.overlapping_ns)},
                     {"ceiling_wires", comparison.wires}};
  json["ceiling"] = {{"capacity_blocks", ceiling.capacity_blocks},
                     {"reloads", ceiling.reloads},
                     {"from_peer", ceiling.from_peer}};
  return json;
}

std::string share(std::uint64_t part, std::uint64_t whole) {
  if (whole == 0) return "0";
  return fmt::format("{} ({:.1f} %)", format_count(part),
                     100 * static_cast<double>(part) / static_cast<double>(whole));
}

void print_runs(const Comparison& comparison) {
  const RunFigures& a = comparison.with_peers;
  const RunFigures& b = comparison.baseline;
  Table table({"", "local+peer+host", "local+host"});
  const auto row = [&](const char* name, auto cell) { table.add({name, cell(a), cell(b)}); };
  row("block accesses", [](const RunFigures& r) { return format_count(r.engine.accesses); });
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host}) {
    const auto t = static_cast<std::size_t>(tier);
    row(tier == Tier::local  ? "  hits, local"
        : tier == Tier::peer ? "  hits, peer"
                             : "  hits, host",
        [t](const RunFigures& r) { return share(r.engine.hits[t], r.engine.accesses); });
  }
  row("  misses", [](const RunFigures& r) { return share(r.engine.misses, r.engine.accesses); });
  row("requests that reloaded", [](const RunFigures& r) { return format_count(r.engine.reload_ns.size()); });
  const auto reload = [&](const char* name, auto member) {
    row(name, [member](const RunFigures& r) {
      return format_ns(static_cast<double>(summarize(r.engine.reload_ns).*member));
    });
  };
  reload("  reload time, p50", &TimeSummary::p50_ns);
  reload("  reload time, p99", &TimeSummary::p99_ns);
  reload("  reload time, total", &TimeSummary::total_ns);
  row("owners asked memory back",
      [](const RunFigures& r) { return format_count(r.owners.reclaim_ns.size()); });
  row("  asked for", [](const RunFigures& r) { return format_bytes(r.owners.bytes_requested); });
  row("  returned", [](const RunFigures& r) { return format_bytes(r.owners.bytes_returned); });
  row("  late", [](const RunFigures& r) { return format_count(r.owners.late); });
  row("  time, p50", [](const RunFigures& r) {
    return format_ns(static_cast<double>(summarize(r.owners.reclaim_ns).p50_ns));
  });
  row("  time, p99", [](const RunFigures& r) {
    return format_ns(static_cast<double>(summarize(r.owners.reclaim_ns).p99_ns));
  });
  row("  owners harmed", [](const RunFigures& r) { return format_count(r.owners.refused); });
  row("objects lost", [](const RunFigures& r) { return format_count(r.engine.lost); });
  row("wrong bytes", [](const RunFigures& r) { return format_count(r.engine.wrong_bytes); });
  fmt::print("{}\n", table.text());
  if (a.peers.empty()) fmt::print("No peer can be read faster than host memory here, so none was used.\n");
}

/// What the run with peers learnt of other sizes; nothing if it learnt nothing.
void print_shadow(const CacheStats& stats) {
  Table table({"tier", "of", "would hit"});
  bool any = false;
  for (const Tier tier : {Tier::peer, Tier::host})
    for (const ShadowPoint& point : stats.shadow[static_cast<std::size_t>(tier)]) {
      table.add({std::string(to_string(tier)), format_bytes(point.capacity_bytes),
                 fmt::format("{:.3f}", point.hit_ratio)});
      any = true;
    }
  if (!any) return;
  fmt::print(
      "What other sizes would give, of the reads that reach the tier, if it were LRU and let everything in\n"
      "(an estimate, as CacheStats::shadow has it; the second line of each is the size at the end):\n\n{}\n",
      table.text());
}

void print(const Options& options, const Workload& workload, const Comparison& comparison) {
  fmt::print("Replay on {} (simulated): {} requests, {} with blocks of {}, {} owners\n\n",
             workload.machine.name, format_count(workload.trace.requests.size()), options.model,
             format_bytes(workload.block_bytes), options.owner_activity);
  print_runs(comparison);
  print_shadow(comparison.with_peers.cache);
  const Ceiling& ceiling = comparison.ceiling;
  const auto baseline = static_cast<double>(summarize(comparison.baseline.engine.reload_ns).total_ns);
  const auto with_peers = static_cast<double>(summarize(comparison.with_peers.engine.reload_ns).total_ns);
  fmt::print("Reload time in total: {:.2f} times better with peers than without.\n",
             ratio(baseline, with_peers));
  fmt::print(
      "The ceiling: {} blocks on peers, chosen with knowledge of the future, would serve {} of {} reloads:\n"
      "{:.2f} times with one wire after the other, {:.2f} with both at once; the wires alone are {:.2f} "
      "apart.\n",
      format_count(ceiling.capacity_blocks), format_count(ceiling.from_peer), format_count(ceiling.reloads),
      ratio(baseline, ceiling.one_after_other_ns), ratio(baseline, ceiling.overlapping_ns), comparison.wires);
}

Exit run(const Options& options) {
  const auto workload = read_workload(options);
  if (!workload) return complain(Exit::bad_input, "replay", workload.error().message);
  const auto comparison = compare(*workload);
  if (!comparison) return complain(Exit::failed, "replay", comparison.error().message);
  if (options.json)
    print_json(to_json(options, *workload, *comparison));
  else
    print(options, *workload, *comparison);
  const auto harmless = [](const RunFigures& run) {
    return run.engine.lost == 0 && run.engine.wrong_bytes == 0 && run.owners.refused == 0;
  };
  return harmless(comparison->with_peers) && harmless(comparison->baseline) ? Exit::ok : Exit::failed;
}

}  // namespace

void add_replay(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("replay", "Replay KV-cache traffic with and without peers (simulated)");
  command->footer(kTeaching);
  add_trace(*command, options->trace);
  add_name(*command, "--system", options->system,
           "The machine: a preset (see harvest topo --help) or a JSON file")
      ->type_name("NAME|FILE");
  add_name(*command, "--model", options->model, "Whose KV cache: " + model_names());
  add_bytes(*command, "--local", options->local_bytes, "The consumer's own memory for blocks");
  add_bytes(*command, "--peer", options->peer_bytes, "Memory used on each peer, at most");
  add_bytes(*command, "--host", options->host_bytes, "Pinned host memory for blocks");
  std::string policies;
  for (const std::string_view name : eviction_policy_names())
    policies += fmt::format("{}{}", policies.empty() ? "" : ", ", name);
  add_name(*command, "--policy", options->policy,
           "Eviction in all tiers: " + policies + " (default: the library's, by tier)");
  add_name(*command, "--owner-activity", options->owner_activity,
           "What the peers' owners do: none, steady, bursty");
  add_count(*command, "--seed", options->seed, {0, UINT32_MAX}, "Of the owners' activity");
  add_count(*command, "--requests", options->requests, {1, kMostRequests}, "Only the first N requests")
      ->default_str("all");
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli
