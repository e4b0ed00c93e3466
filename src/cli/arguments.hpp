// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/machine.hpp>
#include <harvest/status.hpp>
#include <harvest/trace.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/parser.hpp"

/// What people type: sizes, counts, lists. A wrong value is answered with itself and what is allowed.
namespace harvest::cli {

/// "1024", "16GiB", "1.5 GiB" (powers of 1024), "60GB" (powers of 1000). Errors: invalid_argument.
[[nodiscard]] Result<std::uint64_t> parse_bytes(std::string_view text);

/// A whole number in [`least`, `most`]. Errors: invalid_argument.
[[nodiscard]] Result<std::uint64_t> parse_count(std::string_view text, std::uint64_t least,
                                                std::uint64_t most);

/// Whole numbers in [`least`, `most`] between commas, and ranges of them: "1000..5000+1000" goes by steps,
/// "1000..64000x2" by a factor; the last is the last that does not pass the end. At most 10,000 numbers.
/// Errors: invalid_argument.
[[nodiscard]] Result<std::vector<std::uint64_t>> parse_counts(std::string_view text, std::uint64_t least,
                                                              std::uint64_t most);

/// The parts between commas, without spaces around them; nothing for an empty text.
[[nodiscard]] std::vector<std::string> split_list(std::string_view text);

/// Options that parse with the functions above. The value in `target` is the default that help shows.
CLI::Option* add_bytes(CLI::App& app, const std::string& name, std::uint64_t& target,
                       const std::string& description);
/// Any text but an empty one.
CLI::Option* add_name(CLI::App& app, const std::string& name, std::string& target,
                      const std::string& description);
/// `--json`.
void add_json(CLI::App& app, bool& target);
struct CountRange {
  std::uint64_t least = 0;
  std::uint64_t most = UINT64_MAX;
};
CLI::Option* add_count(CLI::App& app, const std::string& name, std::uint64_t& target, CountRange range,
                       const std::string& description);
CLI::Option* add_counts(CLI::App& app, const std::string& name, std::vector<std::uint64_t>& target,
                        CountRange range, const std::string& description);  ///< see `parse_counts`

/// "NAME,NAME": at least one.
CLI::Option* add_names(CLI::App& app, const std::string& name, std::vector<std::string>& target,
                       const std::string& description);

/// The machine that `--system` names, for what needs a consumer and a peer. Errors: as `load_machine`;
/// invalid_argument (one GPU).
[[nodiscard]] Result<Machine> read_system_with_peer(const std::string& name);

/// `--trace FILE --format NAME`, required.
struct TraceOptions {
  std::string path;
  std::string format = "mooncake";
};
void add_trace(CLI::App& app, TraceOptions& target);

/// Errors: as the format's reader.
[[nodiscard]] Result<Trace> read_trace(const TraceOptions& options);

}  // namespace harvest::cli
