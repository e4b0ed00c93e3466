// SPDX-License-Identifier: Apache-2.0
#include "transformer/program.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <sstream>

namespace harvest::transformer {

Progress::Progress() : terminal_(::isatty(STDERR_FILENO) != 0) {}

void Progress::show(const std::string& line) {
  if (!terminal_) return;
  fmt::print(stderr, "\r{:<60}", line);
  shown_ = true;
}

void Progress::clear() {
  if (shown_) fmt::print(stderr, "\r{:<60}\r", "");
  shown_ = false;
}

ServerCommandLine::ServerCommandLine(int argc, const char* const* argv, const char* name, const char* about,
                                     const char* first_steps)
    : argc_(argc), argv_(argv), name_(name), app_(about, name) {
  app_.footer(first_steps);
}

bool ServerCommandLine::has_word(std::string_view word) const {
  return std::find(argv_, argv_ + argc_, word) != argv_ + argc_;
}

void ServerCommandLine::add_flag(const char* group, const char* name, bool& target, const std::string& what) {
  app_.add_flag(name, target, what)->group(group);
}

void ServerCommandLine::add_size(const char* group, const char* name, std::uint64_t& target,
                                 const std::string& what) {
  // The last transformation that is given is the first that is tried.
  app_.add_option(name, target, what)
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->transform(not_negative())
      ->option_text("SIZE")
      ->group(group);
}

CLI::Validator ServerCommandLine::not_negative() {
  const auto judge = [](const std::string& text) {
    return text.starts_with('-') ? text + " is less than 0" : std::string();
  };
  return {judge, ""};
}

void ServerCommandLine::add_shape(Shape& shape) {
  const char* group = "The model";
  add_flag(group, "--tiny", tiny_, "A small model and few requests, for tests; other options still hold");
  add(group, "--layers", shape.layers, "Layers");
  add(group, "--experts", shape.experts, "Experts of each layer");
  add(group, "--top-k", shape.top_k, "Experts that a token is sent to");
  add(group, "--hidden", shape.hidden, "Width");
  add(group, "--intermediate", shape.intermediate, "Width inside of an expert");
  add(group, "--heads", shape.heads, "Heads of attention");
  add(group, "--kv-heads", shape.kv_heads, "Heads of keys and values");
  add(group, "--vocabulary", shape.vocabulary, "Different tokens");
  add(group, "--skew", shape.skew, "How much routers prefer some experts; 0: not at all");
}

void ServerCommandLine::add_batching(const char* group, ServerLimits& limits, double& temperature) {
  add(group, "--batch", limits.sequences, "Sequences that are served at once");
  add(group, "--step-tokens", limits.tokens_per_step, "The most tokens of a step, prompts included");
  add(group, "--temperature", temperature, "0: always the likeliest token");
}

void ServerCommandLine::add_trials(const std::string& verify, double& owner_period_us, double& fault_rate,
                                   std::uint64_t& seed) {
  const char* group = "What is tried";
  add_flag(group, "--verify", verify_, verify);
  add(group, "--owners", owners_, "Of the peers: none that stir, or bursty ones")
      ->check(CLI::IsMember({"none", "bursty"}));
  add(group, "--owner-period-us", owner_period_us, "Between two of an owner's deeds, on average");
  add(group, "--faults", fault_rate,
      "Share of batches of copies that fail in flight; as many are refused, and as many slow");
  add(group, "--seed", seed, "Of weights, requests, owners and faults");
  add(group, "--seeds", seeds_, "A campaign: so many seeds, from --seed on; each draws what is not given")
      ->check(CLI::Range(1, 1'000'000));
}

std::optional<Exit> ServerCommandLine::parse_words() {
  try {
    app_.parse(argc_, argv_);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) return refuse(error.what());
    std::ostringstream text;  // --help
    app_.exit(error, text, text);
    fmt::print("{}", text.str());
    return kOk;
  }
  return std::nullopt;
}

Exit ServerCommandLine::refuse(const std::string& why) const {
  fmt::print(stderr, "{}: {} (see {} --help)\n", name_, why, name_);
  return kBadInput;
}

Exit ServerCommandLine::report(const Trouble& trouble) const {
  if (!trouble.refused.empty()) return refuse(trouble.refused);
  fmt::print(stderr, "{}: WRONG: {}\n", name_, trouble.wrong);
  return kWrong;
}

Exit ServerCommandLine::run_campaign(std::uint64_t first, const Run& run) const {
  // Harvest warns of each peer that leaves service, and here they all do.
  spdlog::register_logger(std::make_shared<spdlog::logger>("harvest"));
  Progress progress;
  for (std::uint64_t i = 0; i < seeds_; ++i) {
    const std::uint64_t seed = first + i;
    const Trouble trouble = run(seed, fmt::format("seed {} ({} of {})", seed, i + 1, seeds_), progress);
    if (!trouble) continue;
    progress.clear();
    if (!trouble.refused.empty()) return refuse(trouble.refused);
    fmt::print("FAILED with seed {}: {}\nagain: {}\n", seed, trouble.wrong, again(seed));
    return kWrong;
  }
  return kOk;
}

std::string ServerCommandLine::again(std::uint64_t seed) const {
  std::string line = name_;
  for (int i = 1; i < argc_; ++i) {
    const std::string_view word = argv_[i];
    if (word == "--seed" || word == "--seeds")
      ++i;  // and its value
    else if (!word.starts_with("--seed=") && !word.starts_with("--seeds="))
      line += fmt::format(" {}", word);
  }
  return line + fmt::format(" --seed {} --seeds 1", seed);
}

}  // namespace harvest::transformer
