// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.hpp"
#include "cli/bench/bench.hpp"
#include "cli/bench/harm_report.hpp"
#include "cli/owners.hpp"

/// `harvest bench owner`: the options, and the runs.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "Owners of the peers live for days of virtual time, beside a cache that takes all they leave. Each row\n"
    "is one run of the same days: how much idle memory was harvested, and how often an allocation of an\n"
    "owner failed because the cache held the memory. A cooperative owner asks for what is missing and\n"
    "waits; in mode watermark it just allocates, and what the monitor has not freed by then fails.\n"
    "\n"
    "The owners are generated after a study of 144 GPUs of 48 GiB, or recorded: a CSV file with the header\n"
    "  time_s,device,used_bytes\n"
    "Each row is a step, in order of time. Devices are GPUs from 1 on, as GPU 0 is the consumer's; those\n"
    "without a row are left alone.\n"
    "\n"
    "How a rise reaches the device decides: at_once it is one allocation, gradual it is one of --rise-step\n"
    "after another, at --rise-rate.\n"
    "\n"
    "Example:\n"
    "  harvest bench owner --hours 24 --reserves 1GiB,2GiB,4GiB\n"
    "  harvest bench owner --owner-trace used.csv --system hgx-h200 --modes cooperative\n"
    "  harvest bench owner --hours 1 --write-owner-trace used.csv    see the format\n"
    "\n"
    "It answers 1 if an owner that asked for its memory did not get it in time.";

constexpr std::uint64_t kStudyBytes = 48ULL << 30;
constexpr std::uint64_t kMostHours = 10'000;
constexpr TimeNs kHourNs = 3'600'000'000'000;

struct Options {
  std::string system = "dgx-h100";
  std::uint64_t gpu_bytes = 0;  ///< 0: the study's for generated owners, the system's for recorded ones
  std::string owner_trace;
  std::string write_owner_trace;
  std::uint64_t hours = 0;  ///< 0: the default's
  std::vector<std::uint64_t> reserves;
  std::string modes = "watermark,cooperative";
  std::string rises = "at_once,gradual";
  std::uint64_t rise_bytes_per_s = 50ULL << 30;
  std::uint64_t rise_step_bytes = 1ULL << 30;
  std::uint64_t deadline_ms = 1000;
  std::string backing = "external_host";
  std::uint64_t seed = 1;
  bool every_poll = false;
  bool quick = false;
  bool json = false;
};

/// Parts of a list that each are one of `known`. Errors: invalid_argument.
template <typename Value>
Result<std::vector<Value>> parse_names(const char* option, const std::string& text,
                                       const std::vector<std::pair<std::string_view, Value>>& known) {
  std::vector<Value> values;
  for (const std::string& name : split_list(text)) {
    const auto found =
        std::find_if(known.begin(), known.end(), [&](const auto& entry) { return entry.first == name; });
    if (found != known.end()) {
      values.push_back(found->second);
      continue;
    }
    std::string names;
    for (const auto& [known_name, value] : known)
      names += fmt::format("{}{}", names.empty() ? "" : ", ", known_name);
    return fail(ErrorCode::invalid_argument, fmt::format("{}: '{}' is none of {}", option, name, names));
  }
  return values;
}

Result<std::vector<HarmSetting>> make_settings(const Options& options) {
  const auto modes = parse_names<ReclaimMode>(
      "--modes", options.modes,
      {{"watermark", ReclaimMode::watermark}, {"cooperative", ReclaimMode::cooperative}});
  if (!modes) return tl::unexpected(modes.error());
  const auto rises = parse_names<RiseShape>(
      "--rises", options.rises,
      {{"at_once", RiseShape{}}, {"gradual", RiseShape{options.rise_bytes_per_s, options.rise_step_bytes}}});
  if (!rises) return tl::unexpected(rises.error());
  const auto backings = parse_names<Backing>(
      "--backing", options.backing, {{"external_host", Backing::external_host}, {"spill", Backing::spill}});
  if (!backings) return tl::unexpected(backings.error());
  if (backings->size() != 1)
    return fail(ErrorCode::invalid_argument, fmt::format("--backing: '{}' is not one name", options.backing));
  std::vector<std::uint64_t> reserves = options.reserves;
  if (reserves.empty()) {
    reserves = {0, 512ULL << 20, 1ULL << 30, 2ULL << 30, 4ULL << 30, 8ULL << 30, 16ULL << 30};
    if (options.quick) reserves = {0, 2ULL << 30};
  }
  std::vector<HarmSetting> settings;
  for (const RiseShape& rise : *rises)
    for (const ReclaimMode mode : *modes)
      for (const std::uint64_t reserve : reserves)
        settings.push_back({mode, reserve, rise, static_cast<TimeNs>(options.deadline_ms) * 1'000'000,
                            backings->front(), options.seed, options.every_poll});
  return settings;
}

Result<Machine> make_machine(const Options& options) {
  auto machine = read_system_with_peer(options.system);
  if (!machine) return machine;
  std::uint64_t bytes = options.gpu_bytes;
  if (bytes == 0 && options.owner_trace.empty()) bytes = kStudyBytes;
  if (bytes == 0) return machine;
  for (MachineDevice& device : machine->devices) {
    device.tenant_bytes = 0;  // the owners are all that is there
    if (device.info.id != kHost) device.info.total_bytes = bytes;
  }
  return machine;
}

Result<OwnerTrace> make_trace(const Options& options, const Machine& machine) {
  std::vector<OwnedDevice> owned;
  for (const MachineDevice& device : machine.devices)
    if (device.info.id > 0) owned.push_back({device.info.id, device.info.total_bytes});
  if (options.owner_trace.empty()) {
    const std::uint64_t hours = options.hours != 0 ? options.hours : options.quick ? 1 : 143;
    return generate_owner_trace(owned, static_cast<TimeNs>(hours) * kHourNs, options.seed);
  }
  auto trace = read_owner_trace(options.owner_trace, owned);
  if (!trace) return fail(trace.error().code, "--owner-trace: " + trace.error().message);
  const auto limit_ns = static_cast<TimeNs>(options.hours) * kHourNs;
  if (options.hours != 0 && trace->duration_ns() > limit_ns) {
    std::erase_if(trace->steps, [&](const OwnerStep& step) { return step.at_ns > limit_ns; });
    const OwnerStep last = trace->steps.back();
    trace->steps.push_back({limit_ns, last.device, last.used_bytes});
  }
  return trace;
}

Result<HarmPlan> make_plan(const Options& options) {
  HarmPlan plan;
  auto settings = make_settings(options);
  if (!settings) return tl::unexpected(settings.error());
  plan.settings = std::move(*settings);
  auto machine = make_machine(options);
  if (!machine) return tl::unexpected(machine.error());
  plan.machine = std::move(*machine);
  auto trace = make_trace(options, plan.machine);
  if (!trace) return tl::unexpected(trace.error());
  plan.trace = std::move(*trace);
  plan.devices = plan.trace.devices();
  plan.source = options.owner_trace;
  plan.gradual = {options.rise_bytes_per_s, options.rise_step_bytes};
  const std::uint64_t total = plan.machine.devices[1].info.total_bytes;
  for (const HarmSetting& setting : plan.settings)
    if (setting.reserve_bytes >= total)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("--reserves: {} leave nothing to harvest: {} has {}",
                              format_bytes(setting.reserve_bytes), device_name(1), format_bytes(total)));
  if (!options.write_owner_trace.empty())
    if (Status written = write_owner_trace(options.write_owner_trace, plan.trace); !written)
      return fail(written.error().code, "--write-owner-trace: " + written.error().message);
  return plan;
}

Result<std::vector<HarmRow>> run_plan(const HarmPlan& plan) {
  constexpr TimeNs kSecondNs = 1'000'000'000;
  const auto length_s = static_cast<std::uint64_t>(plan.trace.duration_ns() / kSecondNs);
  Progress progress("simulating seconds of owners", length_s * plan.settings.size());
  std::vector<HarmRow> rows;
  for (const HarmSetting& setting : plan.settings) {
    auto figures = run_harm(plan.machine, plan.trace, setting, [&](TimeNs at_ns) {
      progress.at(rows.size() * length_s + static_cast<std::uint64_t>(at_ns / kSecondNs));
    });
    if (!figures) return tl::unexpected(figures.error());
    rows.push_back({setting, std::move(*figures)});
  }
  return rows;
}

Exit run(const Options& options) {
  const auto plan = make_plan(options);
  if (!plan) return complain_of("owner", plan.error());
  const auto rows = run_plan(*plan);
  if (!rows) return complain_of("owner", rows.error());
  if (options.json) {
    const auto json = to_json(*plan, *rows);
    if (!json) return complain_of("owner", json.error());
    print_json(*json);
  } else {
    print_table(*plan, *rows);
  }
  const bool broken = std::any_of(rows->begin(), rows->end(), [](const HarmRow& row) {
    return row.setting.mode == ReclaimMode::cooperative &&
           (row.figures.failed_rises != 0 || row.figures.late != 0);
  });
  if (!broken) return Exit::ok;
  return complain(Exit::failed, "bench owner",
                  "an owner that asked for its memory did not get it, or got it late: see the rows");
}

}  // namespace

void add_owner(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand("owner", "What harvesting does to owners, over days (simulated)");
  command->footer(kTeaching);
  constexpr std::uint64_t kMostBytes = 1ULL << 40;
  add_name(*command, "--system", options->system,
           "The simulated machine: " + simulated_names() + ", or a JSON file")
      ->type_name("NAME|FILE");
  add_size(*command, "--gpu-bytes", options->gpu_bytes, 1ULL << 30, kMostBytes,
           "Memory of each GPU (generated owners: 48 GiB, as in the study; recorded ones: the system's)");
  command->get_option("--gpu-bytes")->default_str("");
  add_count(*command, "--hours", options->hours, {1, kMostHours},
            "Hours that each owner lives (generated: 143; recorded: all)")
      ->default_str("");
  add_sizes(*command, "--reserves", options->reserves, 0, kMostBytes,
            "Bytes of each peer that the cache leaves free (0 to 16 GiB in 7 steps)");
  add_name(*command, "--modes", options->modes, "How owners get memory back")->type_name("NAME,...");
  add_name(*command, "--rises", options->rises, "How a rise reaches the device")->type_name("NAME,...");
  add_size(*command, "--rise-rate", options->rise_bytes_per_s, 1ULL << 30, kMostBytes,
           "Bytes a second of a gradual rise");
  add_size(*command, "--rise-step", options->rise_step_bytes, 2ULL << 20, kMostBytes,
           "Bytes of one allocation of a gradual rise");
  add_count(*command, "--deadline-ms", options->deadline_ms, {0, 600'000},
            "How long a cooperative owner waits for its memory");
  add_name(*command, "--backing", options->backing,
           "Objects that host memory has too (external_host), or the peers alone (spill)");
  add_name(*command, "--owner-trace", options->owner_trace, "Owners as recorded in a file")
      ->type_name("FILE");
  add_name(*command, "--write-owner-trace", options->write_owner_trace,
           "Write what the owners use to a file of the same format")
      ->type_name("FILE");
  add_count(*command, "--seed", options->seed, {0, UINT32_MAX},
            "Of the owners, and of when samples are taken");
  command
      ->add_flag("--every-poll", options->every_poll,
                 "Leave out no poll while nothing changes: slow, and counts the same")
      ->disable_flag_override();
  command->add_flag("--quick", options->quick, "One hour, two reserves: shows that it works")
      ->disable_flag_override();
  add_json(*command, options->json);
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace harvest::cli::bench
