// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "simulator/planted.hpp"
#include "simulator/shrink.hpp"
#include "simulator/trial.hpp"

/// The program `simulator`: random lives of a cache on simulated machines, see docs/reliability.md.
namespace harvest::simulator {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::uint64_t seed = 1;
  std::uint64_t seeds = 1;
  std::uint32_t operations = 5000;
  std::uint32_t jobs = 0;
  std::optional<std::uint32_t> gpus, keys, streams;
  std::string faults;
  std::string only;
  std::string nth;
  std::string sweep;
  bool trace = false;
  bool once = false;
  bool no_shrink = false;
  std::string plant;
  bool planted = false;
};

std::optional<std::uint64_t> number_in(const std::string& text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// Errors: a sentence for people.
Result<Faults> parse_faults(const std::string& text) {
  Faults faults;
  if (text == "none") return faults;
  for (const std::string& name : CLI::detail::split(text, ',')) {
    const auto fault = parse_fault(name);
    if (!fault) {
      std::string known = "none";
      for (std::size_t i = 0; i < kFaults; ++i)
        known += fmt::format(", {}", to_string(static_cast<Fault>(i)));
      return fail(ErrorCode::invalid_argument,
                  fmt::format("--faults: there is no '{}'; there are {}", name, known));
    }
    faults.add(*fault);
  }
  return faults;
}

Status parse_only(const std::string& text, Case& life) {
  for (const std::string& range : CLI::detail::split(text, ',')) {
    const std::size_t dash = range.find('-');
    const auto first = number_in(range.substr(0, dash));
    const auto last = dash == std::string::npos ? first : number_in(range.substr(dash + 1));
    if (!first || !last || *last < *first || *last > UINT32_MAX)
      return fail(ErrorCode::invalid_argument, fmt::format("--only: '{}' is not N or N-M", range));
    life.only.emplace_back(static_cast<std::uint32_t>(*first), static_cast<std::uint32_t>(*last));
  }
  return {};
}

Result<Case> make_case(const Options& options) {
  Case life;
  life.seed = options.seed;
  life.operations = options.operations;
  life.gpus = options.gpus;
  life.keys = options.keys;
  life.streams = options.streams;
  if (!options.faults.empty()) {
    auto faults = parse_faults(options.faults);
    if (!faults) return tl::unexpected(faults.error());
    life.faults = *faults;
  }
  if (!options.only.empty())
    if (Status status = parse_only(options.only, life); !status) return tl::unexpected(status.error());
  if (!options.nth.empty()) {
    const std::size_t sign = options.nth.find('=');
    const auto fault = parse_fault(options.nth.substr(0, sign));
    const auto number = sign == std::string::npos ? std::nullopt : number_in(options.nth.substr(sign + 1));
    if (!fault || !number)
      return fail(ErrorCode::invalid_argument, fmt::format("--nth: '{}' is not FAULT=N", options.nth));
    life.nth = {*fault, *number};
  }
  return life;
}

class Campaign {
 public:
  explicit Campaign(const Options& options)
      : options_(options), shows_progress_(isatty(STDERR_FILENO) != 0) {}

  int run(const Case& first) {
    std::uint64_t begun = 0;
    const std::uint32_t jobs =
        options_.jobs != 0 ? options_.jobs : std::max(1U, std::thread::hardware_concurrency());
    run_trials(
        {jobs, !options_.once},
        [&](Case& life) {
          life = first;
          life.seed = first.seed + begun;
          return begun++ < options_.seeds;
        },
        [&](const Outcome& outcome) { return hear(outcome); });
    if (shows_progress_) fmt::print(stderr, "\r{:60}\r", "");
    if (failed_) return tell_failure(*failed_);
    tell_coverage();
    return 0;
  }

 private:
  bool hear(const Outcome& outcome) {
    if (!outcome.passed) {
      failed_ = outcome;
      return false;
    }
    ++passed_;
    const Coverage& seen = outcome.result.coverage;
    sum_.operations += seen.operations;
    sum_.reads_compared += seen.reads_compared;
    sum_.bytes_compared += seen.bytes_compared;
    for (std::size_t t = 0; t < kTiers; ++t) sum_.hits[t] += seen.hits[t];
    sum_.reclaims += seen.reclaims;
    sum_.lost += seen.lost;
    sum_.spilled += seen.spilled;
    sum_.evicted += seen.evicted;
    sum_.promotions += seen.promotions;
    sum_.failed_copies += seen.failed_copies;
    sum_.fallbacks += seen.fallbacks;
    virtual_s_ += static_cast<double>(seen.virtual_ns) * 1e-9;
    if (shows_progress_)
      fmt::print(stderr, "\r{} of {} seeds, {:.1f} million operations, {:.0f} s ", passed_, options_.seeds,
                 static_cast<double>(sum_.operations) * 1e-6, seconds());
    return true;
  }

  int tell_failure(const Outcome& outcome) {
    fmt::print("FAILED after {} seeds, at operation {}: {}\nagain: simulator {}\n", passed_, outcome.number,
               outcome.message, arguments_of(outcome.life));
    std::fflush(stdout);
    if (options_.no_shrink) return 1;
    const Outcome smallest = shrink(outcome, {.repeat = !options_.once}, 2000, [&](const Outcome& smaller) {
      if (shows_progress_) fmt::print(stderr, "\r{} operations ", operations_of(smaller.life));
    });
    if (shows_progress_) fmt::print(stderr, "\r{:60}\r", "");
    fmt::print("smallest: {} operations: {}\nagain: simulator {}\n", operations_of(smallest.life),
               smallest.message, arguments_of(smallest.life));
    return 1;
  }

  void tell_coverage() const {
    const char* const twice = options_.once ? "" : ", each life lived twice and compared";
    fmt::print(
        "{} seeds from {}, {} operations checked{}, {:.0f} s of this machine, {:.1f} h of the simulated "
        "one\n",
        passed_, options_.seed, sum_.operations, twice, seconds(), virtual_s_ / 3600);
    fmt::print(
        "{} reads compared ({:.1f} GB); served by local {}, peer {}, host {}; {} promotions, {} reclaims, {} "
        "spilled, "
        "{} lost, {} evicted; {} copies failed, {} reads served from the next tier\n",
        sum_.reads_compared, static_cast<double>(sum_.bytes_compared) * 1e-9, sum_.hits[0], sum_.hits[1],
        sum_.hits[2], sum_.promotions, sum_.reclaims, sum_.spilled, sum_.lost, sum_.evicted,
        sum_.failed_copies, sum_.fallbacks);
  }

  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(Clock::now() - begun_).count();
  }

  const Options& options_;
  bool shows_progress_;
  Clock::time_point begun_ = Clock::now();
  std::uint64_t passed_ = 0;
  Coverage sum_;
  double virtual_s_ = 0;
  std::optional<Outcome> failed_;
};

}  // namespace
}  // namespace harvest::simulator

int main(int argc, char** argv) {
  using namespace harvest::simulator;
  // The library's warnings about devices that fail are what these lives are made of.
  spdlog::register_logger(
      std::make_shared<spdlog::logger>("harvest", std::make_shared<spdlog::sinks::null_sink_mt>()));
  Options options;
  CLI::App app(
      "Random lives of a cache on simulated machines: each seed draws a machine, a cache, a workload and "
      "faults, and "
      "after every operation it is checked that invariants I1 to I12 hold (docs/reliability.md). A failure "
      "ends with "
      "a line that repeats it.");
  app.add_option("--seed", options.seed, "the first seed")->capture_default_str();
  app.add_option("--seeds", options.seeds, "how many seeds")->capture_default_str();
  app.add_option("--ops", options.operations, "operations of each life")->capture_default_str();
  app.add_option("--jobs", options.jobs, "lives at a time; 0: one for each processor")->capture_default_str();
  app.add_option("--faults", options.faults, "at most these, of those that the seed draws: NAME,... or none");
  app.add_option("--gpus", options.gpus, "at most so many GPUs");
  app.add_option("--keys", options.keys, "at most so many keys");
  app.add_option("--streams", options.streams, "at most so many streams");
  app.add_option("--only", options.only, "only the operations with these numbers: N,N-M,...");
  app.add_option(
      "--nth", options.nth,
      "FAULT=N: the N-th call of that kind fails (refuse_copy, fail_copy, fail_map, fail_host_map)");
  app.add_flag("--trace", options.trace, "print the plan and every operation of one seed, in this process");
  app.add_flag("--once", options.once, "do not live each life twice");
  app.add_flag("--no-shrink", options.no_shrink, "do not look for a smaller case after a failure");
  if (can_plant_bugs()) {
    app.add_option("--plant", options.plant,
                   "make this mistake, one of the registry in src/base/test_hooks.cpp");
    app.add_flag(
        "--planted", options.planted,
        "make each mistake of the registry, and look for it in at most --seeds lives of --ops operations");
  }
  CLI11_PARSE(app, argc, argv);
  const auto life = make_case(options);
  if (!life) {
    fmt::print(stderr, "simulator: {}\n", life.error().message);
    return 2;
  }
  if (!options.plant.empty() && !plant_bug(options.plant)) {
    fmt::print(stderr, "simulator: --plant: there is no bug '{}'\n", options.plant);
    return 2;
  }
  if (options.planted) return find_planted_bugs(*life, options.seeds, options.jobs);
  if (options.trace) {
    fmt::print("{}", describe(draw_plan(*life)));
    const LifeResult result = live(*life, !options.once, true, [](std::uint32_t number, Operation) {
      fmt::print("{:>6} ", number);
      std::fflush(stdout);
    });
    fmt::print("\nhash {:x}\n", result.hash);
    return 0;
  }
  return Campaign(options).run(*life);
}
