// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "transformer/model.hpp"
#include "transformer/server.hpp"

/// What the programs of the examples' servers have in common: their command lines, and how they go on and
/// end.
namespace harvest::transformer {

enum Exit : int { kOk = 0, kWrong = 1, kBadInput = 2 };

/// One line on a terminal; nothing where there is none.
class Progress {
 public:
  Progress();
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(const std::string& line);
  void clear();

 private:
  bool terminal_;
  bool shown_ = false;
};

/// How a run ended that did not end well.
struct Trouble {
  std::string refused;  ///< why there was no run; empty if there was
  std::string wrong;    ///< empty if nothing is
  [[nodiscard]] explicit operator bool() const { return !refused.empty() || !wrong.empty(); }
};

/// What a user asks for, as far as it is the same everywhere.
class ServerCommandLine {
 public:
  ServerCommandLine(int argc, const char* const* argv, const char* name, const char* about,
                    const char* first_steps);
  ServerCommandLine(const ServerCommandLine&) = delete;
  ServerCommandLine& operator=(const ServerCommandLine&) = delete;

  /// Says so, with where help is.
  [[nodiscard]] Exit refuse(const std::string& why) const;
  /// Says what it was.
  [[nodiscard]] Exit report(const Trouble& trouble) const;

  [[nodiscard]] bool verify() const { return verify_; }
  [[nodiscard]] bool is_campaign() const { return is_given("--seeds"); }
  [[nodiscard]] std::uint64_t seeds() const { return seeds_; }

  /// `run` is one run of a campaign; what it shows begins with `name`.
  using Run = std::function<Trouble(std::uint64_t seed, const std::string& name, Progress& progress)>;
  /// Runs all seeds from `first` on, or until one has trouble: says that, with what repeats it.
  [[nodiscard]] Exit run_campaign(std::uint64_t first, const Run& run) const;

 protected:
  ~ServerCommandLine() = default;

  /// Nothing if the program is to go on; else it has said why not.
  std::optional<Exit> parse_words();
  /// Of words that change what other options are if they are not given.
  [[nodiscard]] bool has_word(std::string_view word) const;
  [[nodiscard]] bool is_given(const char* name) const { return app_.count(name) > 0; }
  [[nodiscard]] bool bursty_owners() const { return owners_ == "bursty"; }

  template <typename T>
  CLI::Option* add(const char* group, const char* name, T& target, const std::string& what) {
    auto* option = app_.add_option(name, target, what)->capture_default_str()->group(group);
    return std::is_arithmetic_v<T> ? option->check(not_negative()) : option;
  }
  void add_flag(const char* group, const char* name, bool& target, const std::string& what);
  void add_size(const char* group, const char* name, std::uint64_t& target, const std::string& what);

  void add_shape(Shape& shape);
  void add_batching(const char* group, ServerLimits& limits, double& temperature);
  void add_trials(const std::string& verify, double& owner_period_us, double& fault_rate,
                  std::uint64_t& seed);

 private:
  /// CLI11 takes -1 for the largest number of an unsigned type.
  static CLI::Validator not_negative();
  [[nodiscard]] std::string again(std::uint64_t seed) const;

  int argc_;
  const char* const* argv_;
  std::string name_;
  CLI::App app_;
  bool tiny_ = false;
  bool verify_ = false;
  std::string owners_ = "none";
  std::uint64_t seeds_ = 1;
};

}  // namespace harvest::transformer
