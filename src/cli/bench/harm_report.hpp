// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/machine.hpp>
#include <harvest/status.hpp>

#include <string>
#include <vector>

#include "cli/bench/harm_world.hpp"
#include "cli/output.hpp"
#include "cli/owner_trace.hpp"

/// What `harvest bench owner` runs, and how it tells what came out.
namespace harvest::cli::bench {

/// The settings, each on the same machine with the same owners.
struct HarmPlan {
  Machine machine;
  OwnerTrace trace;
  std::string source;  ///< the file that the trace is from; empty: generated
  std::vector<DeviceId> devices;
  RiseShape gradual;  ///< of the settings that have gradual rises
  std::vector<HarmSetting> settings;

  [[nodiscard]] double hours() const;
  /// Of all owners together.
  [[nodiscard]] double owner_hours() const;
};

struct HarmRow {
  HarmSetting setting;
  HarmFigures figures;
};

/// Both require at least one row. Errors: of the simulated machine.
[[nodiscard]] Result<Json> to_json(const HarmPlan& plan, const std::vector<HarmRow>& rows);
void print_table(const HarmPlan& plan, const std::vector<HarmRow>& rows);

}  // namespace harvest::cli::bench
