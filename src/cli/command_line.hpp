// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <optional>

#include "cli/command.hpp"

namespace harvest::cli {

/// The program `harvest` but for its main(): what was typed is read, and then done. Good for one call.
class CommandLine {
 public:
  CommandLine();
  CommandLine(const CommandLine&) = delete;
  CommandLine& operator=(const CommandLine&) = delete;

  /// Reads the arguments, the program's name first. Answers if that was all: they are wrong and were
  /// complained of, or help was asked for and printed.
  [[nodiscard]] std::optional<Exit> parse(int argc, const char* const* argv);

  /// Does what was asked for. Requires: `parse` has answered nothing.
  [[nodiscard]] Exit act() const { return chosen_(); }

  /// The parser, with what it read.
  [[nodiscard]] const CLI::App& app() const { return app_; }

 private:
  CLI::App app_;
  Action chosen_;
};

}  // namespace harvest::cli
