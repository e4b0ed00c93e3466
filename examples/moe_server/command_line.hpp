// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "moe_server/world.hpp"

namespace harvest::moe_server {

enum Exit : int { kOk = 0, kWrong = 1, kBadInput = 2 };

/// Says so, with where help is.
Exit refuse(const std::string& why);

/// What a user asks for.
class CommandLine {
 public:
  CommandLine(int argc, const char* const* argv);

  /// Nothing if the program is to go on; else it has said why not.
  std::optional<Exit> parse();

  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] bool verify() const { return verify_; }
  [[nodiscard]] bool is_campaign() const { return app_.count("--seeds") > 0; }
  [[nodiscard]] std::uint64_t seeds() const { return seeds_; }

  /// The options of one run of a campaign: what is not given is drawn.
  [[nodiscard]] Options draw(std::uint64_t seed) const;
  /// What repeats that run.
  [[nodiscard]] std::string again(std::uint64_t seed) const;

 private:
  void add_model();
  void add_requests();
  void add_memory();
  void add_trials();
  template <typename T>
  CLI::Option* add(const char* group, const char* name, T& target, const std::string& what) {
    auto* option = app_.add_option(name, target, what)->capture_default_str()->group(group);
    return std::is_arithmetic_v<T> ? option->check(not_negative()) : option;
  }
  void add_size(const char* group, const char* name, std::uint64_t& target, const std::string& what);
  /// CLI11 takes -1 for the largest number of an unsigned type.
  static CLI::Validator not_negative();

  int argc_;
  const char* const* argv_;
  CLI::App app_;
  Options options_;
  bool tiny_ = false;
  bool verify_ = false;
  std::string owners_ = "none";
  std::uint64_t seeds_ = 1;
};

}  // namespace harvest::moe_server
