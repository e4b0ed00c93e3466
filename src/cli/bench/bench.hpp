// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/bench/machine.hpp"
#include "cli/command.hpp"
#include "cli/parser.hpp"

/// The commands of `harvest bench`: one file each, like the program's own.
namespace harvest::cli::bench {

/// What every benchmark takes.
struct CommonOptions {
  MachineChoice machine;
  std::uint64_t runs = 5;
  bool quick = false;
  bool json = false;
};
/// `--system`, `--loopback`, `--runs`, `--quick`, `--json`.
void add_common(CLI::App& command, CommonOptions& target);

/// A size between `least` and `most`. The value in `target` is the default that help shows.
void add_size(CLI::App& command, const std::string& name, std::uint64_t& target, std::uint64_t least,
              std::uint64_t most, const std::string& description);
/// "4KiB,1MiB": sizes between `least` and `most`.
void add_sizes(CLI::App& command, const std::string& name, std::vector<std::uint64_t>& target,
               std::uint64_t least, std::uint64_t most, const std::string& description);

/// Errors of a benchmark's machine, options or measurement as the program's answer: bad input where another
/// call can help, else failure.
[[nodiscard]] Exit complain_of(const std::string& benchmark, const Error& error);

void add_link(CLI::App& bench, Action& chosen);
void add_fetch(CLI::App& bench, Action& chosen);
void add_reclaim(CLI::App& bench, Action& chosen);
void add_owner(CLI::App& bench, Action& chosen);
void add_moe(CLI::App& bench, Action& chosen);
void add_kv(CLI::App& bench, Action& chosen);
void add_memory(CLI::App& bench, Action& chosen);
void add_lookup(CLI::App& bench, Action& chosen);
void add_calibrate(CLI::App& bench, Action& chosen);

}  // namespace harvest::cli::bench
