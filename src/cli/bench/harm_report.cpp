// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/harm_report.hpp"

#include <fmt/format.h>
#include <harvest/simulated_backend.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "cli/bench/machine.hpp"
#include "cli/workload.hpp"

namespace harvest::cli::bench {
namespace {

constexpr double kGiB = 1ULL << 30;

const char* name_of(const RiseShape& rise) {
  return rise.bytes_per_s == 0 ? "at_once" : "gradual";
}

double percent_of_idle(const HarmFigures& figures) {
  return figures.idle_gib_hours > 0 ? 100 * figures.harvested_gib_hours / figures.idle_gib_hours : 0;
}

/// What the odds are not above, with 95 % confidence, where `seen` failures were: 3 for none (the rule of
/// three), else Byar's approximation of the Poisson distribution's bound, which is within a percent.
double at_most_per_owner_hour(std::uint64_t seen, const HarmPlan& plan) {
  constexpr double kNormal95 = 1.645;
  const double n = static_cast<double>(seen) + 1;
  const double bound = n * std::pow(1 - 1 / (9 * n) + kNormal95 / (3 * std::sqrt(n)), 3);
  return (seen == 0 ? 3 : bound) / plan.owner_hours();
}

TimeNs most_of(const std::vector<TimeNs>& times_ns) {
  return times_ns.empty() ? 0 : *std::max_element(times_ns.begin(), times_ns.end());
}

struct OwnersSummary {
  double used_gib_p50 = 0;
  double used_gib_p99 = 0;
};

/// What the owners use, by the time for which they do.
OwnersSummary summarize_owners(const OwnerTrace& trace, const std::vector<DeviceId>& devices) {
  std::vector<std::pair<std::uint64_t, TimeNs>> spans;
  TimeNs total_ns = 0;
  for (const DeviceId device : devices) {
    std::uint64_t used = 0;
    TimeNs since_ns = 0;
    bool first = true;
    for (const OwnerStep& step : trace.steps) {
      if (step.device != device) continue;
      spans.emplace_back(first ? step.used_bytes : used, step.at_ns - since_ns);
      first = false;
      used = step.used_bytes;
      since_ns = step.at_ns;
    }
    spans.emplace_back(used, trace.duration_ns() - since_ns);
    total_ns += trace.duration_ns();
  }
  std::sort(spans.begin(), spans.end());
  const auto quantile = [&](double share) {
    double seen_ns = 0;
    for (const auto& [used, span_ns] : spans) {
      seen_ns += static_cast<double>(span_ns);
      if (seen_ns >= share * static_cast<double>(total_ns)) return static_cast<double>(used) / kGiB;
    }
    return 0.0;
  };
  return {quantile(.5), quantile(.99)};
}

Json to_json(const HarmPlan& plan, const HarmRow& row) {
  const HarmSetting& setting = row.setting;
  const HarmFigures& figures = row.figures;
  const auto failed = static_cast<double>(figures.failed_rises);
  const bool asked = !figures.reclaim_ns.empty();
  const TimeSummary reclaim = summarize(figures.reclaim_ns);
  Json json{{"mode", to_string(setting.mode)},
            {"rise", name_of(setting.rise)},
            {"reserve_bytes", setting.reserve_bytes},
            {"harvested_gib_hours", figures.harvested_gib_hours},
            {"idle_gib_hours", figures.idle_gib_hours},
            {"percent_of_idle", percent_of_idle(figures)},
            {"rises", figures.rises},
            {"failed_rises", figures.failed_rises},
            {"failed_per_owner_hour", failed / plan.owner_hours()}};
  json["failed_per_owner_hour_at_most"] = at_most_per_owner_hour(figures.failed_rises, plan);
  json["reclaims"] = figures.reclaim_ns.size();
  json["reclaim_ns_p50"] = asked ? Json(reclaim.p50_ns) : Json();
  json["reclaim_ns_p99"] = asked ? Json(reclaim.p99_ns) : Json();
  json["reclaim_ns_max"] = asked ? Json(most_of(figures.reclaim_ns)) : Json();
  json["late"] = figures.late;
  json["monitor_reclaims"] = figures.monitor_reclaims;
  json["populated_bytes"] = figures.populated_bytes;
  json["spilled_bytes"] = figures.spilled_bytes;
  return json;
}

std::vector<std::string> cells_of(const HarmPlan& plan, const HarmRow& row) {
  const HarmFigures& figures = row.figures;
  const TimeSummary reclaim = summarize(figures.reclaim_ns);
  const bool asked = !figures.reclaim_ns.empty();
  const auto time = [&](TimeNs ns) { return asked ? format_ns(static_cast<double>(ns)) : "-"; };
  const double odds = static_cast<double>(figures.failed_rises) / plan.owner_hours();
  return {std::string(to_string(row.setting.mode)),
          name_of(row.setting.rise),
          format_bytes(row.setting.reserve_bytes),
          fmt::format("{:.0f}", figures.harvested_gib_hours),
          fmt::format("{:.1f} %", percent_of_idle(figures)),
          format_count(figures.failed_rises),
          figures.failed_rises == 0 ? fmt::format("< {:.2g}", at_most_per_owner_hour(0, plan))
                                    : fmt::format("{:.3g}", odds),
          format_count(figures.reclaim_ns.size()),
          time(reclaim.p50_ns),
          time(reclaim.p99_ns),
          time(most_of(figures.reclaim_ns)),
          format_count(figures.late),
          format_bytes(figures.populated_bytes),
          format_bytes(figures.spilled_bytes)};
}

}  // namespace

double HarmPlan::hours() const {
  return static_cast<double>(trace.duration_ns()) / 3600e9;
}

double HarmPlan::owner_hours() const {
  return hours() * static_cast<double>(devices.size());
}

Result<Json> to_json(const HarmPlan& plan, const std::vector<HarmRow>& rows) {
  const auto backend = make_simulated_backend(plan.machine, {.bytes = SimulatedBytes::phantom});
  if (!backend) return tl::unexpected(backend.error());
  Json json = header_of(**backend, false, "owner");
  const OwnersSummary owners = summarize_owners(plan.trace, plan.devices);
  json["owners"] = {{"source", plan.source.empty() ? "generated" : plan.source},
                    {"devices", plan.devices},
                    {"hours", plan.hours()},
                    {"owner_hours", plan.owner_hours()},
                    {"used_gib_p50", owners.used_gib_p50},
                    {"used_gib_p99", owners.used_gib_p99}};
  const HarmSetting& setting = plan.settings.front();  // alike in all of them:
  json["seed"] = setting.seed;
  json["backing"] = to_string(setting.backing);
  json["deadline_ns"] = setting.deadline_ns;
  json["rise_bytes_per_s"] = plan.gradual.bytes_per_s;
  json["rise_step_bytes"] = plan.gradual.step_bytes;
  json["rows"] = Json::array();
  for (const HarmRow& row : rows) json["rows"].push_back(to_json(plan, row));
  return json;
}

void print_table(const HarmPlan& plan, const std::vector<HarmRow>& rows) {
  const OwnersSummary owners = summarize_owners(plan.trace, plan.devices);
  const auto first = static_cast<std::size_t>(plan.devices.front());
  fmt::print("What harvesting does to owners of {} (SIMULATED)\n\n", plan.machine.name);
  fmt::print("Owners: {}, {}, {:.6g} hours each, with {} rises.\n", plan.devices.size(),
             plan.source.empty() ? fmt::format("generated with seed {}", plan.settings.front().seed)
                                 : "recorded in " + plan.source,
             plan.hours(), format_count(rows.front().figures.rises));
  fmt::print("Of {} on a GPU they use {:.1f} GiB at the median, {:.1f} at p99; the cache takes the rest.\n\n",
             format_bytes(plan.machine.devices[first].info.total_bytes), owners.used_gib_p50,
             owners.used_gib_p99);
  Table table({"mode", "rise", "reserve", "GiB-hours", "of idle", "failed", "per owner-hour", "reclaims",
               "p50", "p99", "max", "late", "filled", "spilled"});
  for (const HarmRow& row : rows) table.add(cells_of(plan, row));
  fmt::print("{}\n", table.text());
  fmt::print("at_once: a rise is one allocation. gradual: one of {} after another, {} a second.\n",
             format_bytes(plan.gradual.step_bytes), format_bytes(plan.gradual.bytes_per_s));
  fmt::print("failed: rises in which an allocation did not fit because of the cache.\n");
  fmt::print("<: none was seen in {:.6g} owner-hours; with 95 % confidence the odds are below that.\n",
             plan.owner_hours());
}

}  // namespace harvest::cli::bench
