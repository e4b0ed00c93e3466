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

}  // namespace harvest::repository
