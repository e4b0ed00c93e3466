// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Recordings of how much memory owners use, and the file that holds one:
///
///     time_s,device,used_bytes
///     0,1,24696061952
///     0,2,23622320128
///     57.25,1,27917287424
///
/// CSV with that header, ordered by time. A row is a step: from then on the owner of `device` uses that much,
/// until its next row. Before its first row it uses what that row says. Times may begin anywhere; the
/// recording lasts from the first row to the last.
namespace harvest::cli {

struct OwnerStep {
  TimeNs at_ns = 0;  ///< since the recording began
  DeviceId device = kHost;
  std::uint64_t used_bytes = 0;
  friend bool operator==(const OwnerStep&, const OwnerStep&) = default;
};

/// Ordered by time; the last step's time is the recording's length.
struct OwnerTrace {
  std::vector<OwnerStep> steps;
  [[nodiscard]] TimeNs duration_ns() const { return steps.empty() ? 0 : steps.back().at_ns; }
  /// Those that have an owner, in order.
  [[nodiscard]] std::vector<DeviceId> devices() const;
};

/// A device that may have an owner, and how much memory that has.
struct OwnedDevice {
  DeviceId device = kHost;
  std::uint64_t total_bytes = 0;
};

/// Reads the format from `text`; `name` is the file's in messages, "name:line: what". Errors: malformed.
[[nodiscard]] Result<OwnerTrace> parse_owner_trace(std::string_view text, std::string_view name,
                                                   std::span<const OwnedDevice> known);

/// The same from a file of at most 256 MiB. Errors: not_found (it cannot be read, or is a folder), malformed.
[[nodiscard]] Result<OwnerTrace> read_owner_trace(const std::string& path,
                                                  std::span<const OwnedDevice> known);

/// The trace in the format: reading it back gives the same trace.
[[nodiscard]] std::string to_csv(const OwnerTrace& trace);

/// Errors: not_found (it cannot be written).
[[nodiscard]] Status write_owner_trace(const std::string& path, const OwnerTrace& trace);

}  // namespace harvest::cli
