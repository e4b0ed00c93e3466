// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

/// The repository's rules as functions from a file's path (relative to the root, with '/') and its text to
/// what is wrong with it. Pure, so that a test can plant a violation without writing a file.
namespace harvest::repository {

/// Each answers one line for each violation, "path:line: what is wrong"; none if the file keeps the rule.
using Violations = std::vector<std::string>;

/// DESIGN's floors: a file includes its own folder, or a lower floor, or public headers no higher than its
/// own floor. Folders of floor 4 stand on the public headers and on base alone. Public headers include
/// nothing but each other, C++'s own headers and tl::expected; only cuda.hpp may name CUDA's.
[[nodiscard]] Violations check_includes(std::string_view path, std::string_view text);

/// The core reads no clock and starts no thread: policy, memory and core, but for the runner.
[[nodiscard]] Violations check_clock_and_threads(std::string_view path, std::string_view text);

/// The licence stands in the first two lines of each source and script.
[[nodiscard]] Violations check_licence_line(std::string_view path, std::string_view text);

/// No notes of unfinished work.
[[nodiscard]] Violations check_unfinished(std::string_view path, std::string_view text);

/// No path that exists on one machine only.
[[nodiscard]] Violations check_machine_paths(std::string_view path, std::string_view text);

/// The tables of docs/reliability.md under "## Wrong input": their headings, without the "### ".
[[nodiscard]] std::vector<std::string> wrong_input_tables(std::string_view page);

/// The section "## Wrong input" itself; empty if there is none.
[[nodiscard]] std::string_view wrong_input_section(std::string_view page);

/// The names of the fields of `struct name` in a header's text, whose fields stand on a line each.
[[nodiscard]] std::vector<std::string> fields_of(std::string_view header, std::string_view name);

}  // namespace harvest::repository
