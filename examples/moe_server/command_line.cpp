// SPDX-License-Identifier: Apache-2.0
#include "moe_server/command_line.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <harvest/moe/expert_cache.hpp>
#include <harvest/moe/predictor.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <sstream>
#include <string_view>

#include "moe_server/random.hpp"

namespace harvest::moe_server {
namespace {

constexpr const char* kAbout =
    "Serves requests with a mixture-of-experts transformer whose experts do not fit on its GPU, as "
    "inference\n"
    "servers do: requests come and go, prompts and decoding sequences share each step. Hot experts are in "
    "local\n"
    "memory, the next in the idle memory of the neighbours (peers), all of them in host memory; Harvest's\n"
    "ExpertCache moves them. The arithmetic is real and done by the CPU. The machine is simulated, and so "
    "is\n"
    "every time that is printed.";

constexpr const char* kFirstSteps =
    "Begin with:\n"
    "  moe_server                    a few hundred MiB of experts, some seconds of a CPU\n"
    "  moe_server --verify --owners bursty\n"
    "                                the peers' owners take their memory back all the time, and every score "
    "of\n"
    "                                every token is the same, to the last bit, as with all experts resident\n"
    "  moe_server --verify --owners bursty --faults 0.01\n"
    "                                copies fail on their way, too: steps are done again\n"
    "  moe_server --predictor none   what prefetching is good for\n"
    "  moe_server --tiny --verify --owners bursty --faults 0.01 --seeds 200\n"
    "                                a campaign: each seed also draws what is not given\n"
    "\n"
    "Exit codes: 0 success, 1 something was wrong, 2 bad input.";

constexpr std::uint64_t kKiB = 1 << 10;

/// For tests and campaigns: a run takes a tenth of a second.
Options tiny_options() {
  Options options;
  options.shape = {.layers = 6,
                   .experts = 16,
                   .hidden = 64,
                   .intermediate = 128,
                   .heads = 4,
                   .kv_heads = 2,
                   .vocabulary = 64};
  options.requests = 12;
  options.longest_prompt = 24;
  options.most_new_tokens = 16;
  options.arrival_us = 500;
  return options;
}

bool has_word(int argc, const char* const* argv, std::string_view word) {
  return std::find(argv, argv + argc, word) != argv + argc;
}

template <typename Choices>
auto one_of(const Choices& choices, Random& random) {
  return choices[random.below(choices.size())];
}

}  // namespace

Exit refuse(const std::string& why) {
  fmt::print(stderr, "moe_server: {} (see moe_server --help)\n", why);
  return kBadInput;
}

CommandLine::CommandLine(int argc, const char* const* argv)
    : argc_(argc), argv_(argv), app_(kAbout, "moe_server") {
  if (has_word(argc, argv, "--tiny")) options_ = tiny_options();
  app_.footer(kFirstSteps);
  add_model();
  add_requests();
  add_memory();
  add_trials();
}

void CommandLine::add_model() {
  const char* group = "The model";
  Shape& shape = options_.shape;
  app_.add_flag("--tiny", tiny_, "A small model and few requests, for tests; other options still hold")
      ->group(group);
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

void CommandLine::add_requests() {
  const char* group = "Requests";
  add(group, "--requests", options_.requests, "How many");
  add(group, "--prompt", options_.longest_prompt, "Tokens of the longest prompt");
  add(group, "--new-tokens", options_.most_new_tokens, "The most that a request asks for");
  add(group, "--arrival-us", options_.arrival_us, "Between two requests, on average");
  add(group, "--batch", options_.limits.sequences, "Sequences that are served at once");
  add(group, "--step-tokens", options_.limits.tokens_per_step, "The most tokens of a step, prompts included");
  add(group, "--temperature", options_.temperature, "0: always the likeliest token");
}

void CommandLine::add_memory() {
  const char* group = "Memory";
  add(group, "--system", options_.system, "A machine, by the name or file that `harvest topo` takes");
  add_size(group, "--local-budget", options_.local_bytes,
           "For experts on the GPU, as 64MiB; 0: a quarter of all");
  add_size(group, "--peer-idle", options_.peer_bytes, "What a peer does not need itself; 0: half of all");
  add_size(group, "--piece", options_.piece_bytes, "Experts travel in pieces of this; 0: Harvest's default");
  add(group, "--kernel-us", options_.kernel_us, "What a kernel takes even if it does nothing");
  add(group, "--predictor", options_.predictor,
      fmt::format("Guesses which experts come next: {}", fmt::join(moe::predictor_names(), ", ")));
  add(group, "--prefetch-probability", options_.prefetch_probability, "Guesses below are not followed");
  add(group, "--prefetch-layers", options_.prefetch_layers, "How far ahead guesses are made");
  add(group, "--eviction", options_.eviction,
      fmt::format("Chooses what makes way: {}", fmt::join(moe::expert_eviction_names(), ", ")));
}

void CommandLine::add_size(const char* group, const char* name, std::uint64_t& target,
                           const std::string& what) {
  // The last transformation that is given is the first that is tried.
  app_.add_option(name, target, what)
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->transform(not_negative())
      ->option_text("SIZE")
      ->group(group);
}

CLI::Validator CommandLine::not_negative() {
  const auto judge = [](const std::string& text) {
    return text.starts_with('-') ? text + " is less than 0" : std::string();
  };
  return {judge, ""};
}

void CommandLine::add_trials() {
  const char* group = "What is tried";
  app_.add_flag("--verify", verify_, "Compares with a run in which all experts are resident")->group(group);
  add(group, "--owners", owners_, "Of the peers: none that stir, or bursty ones")
      ->check(CLI::IsMember({"none", "bursty"}));
  add(group, "--owner-period-us", options_.owner_period_us, "Between two of an owner's deeds, on average");
  add(group, "--faults", options_.fault_rate,
      "Share of batches of copies that fail in flight; as many are refused, and as many slow");
  add(group, "--seed", options_.seed, "Of weights, requests, owners and faults");
  add(group, "--seeds", seeds_, "A campaign: so many seeds, from --seed on; each draws what is not given")
      ->check(CLI::Range(1, 1'000'000));
}

std::optional<Exit> CommandLine::parse() {
  try {
    app_.parse(argc_, argv_);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help
      std::ostringstream text;
      app_.exit(error, text, text);
      fmt::print("{}", text.str());
      return kOk;
    }
    return refuse(error.what());
  }
  options_.bursty_owners = owners_ == "bursty";
  if (Status good = options_.validate(); !good) return refuse(good.error().message);
  return std::nullopt;
}

Options CommandLine::draw(std::uint64_t seed) const {
  Options options = options_;
  options.seed = seed;
  Random random(seed_of(seed, 0xCA3));
  // Each is drawn whether it is given or not, so that giving one leaves the others as they are.
  const auto choose = [&](const char* name, auto& target, auto value) {
    if (app_.count(name) == 0) target = value;
  };
  const Shape& shape = options.shape;
  const std::uint64_t expert_bytes = shape.description().expert_bytes() + kKiB;
  const std::uint64_t experts = std::uint64_t{shape.layers} * shape.experts;
  const std::uint64_t fewest = std::min<std::uint64_t>(experts, 2);
  choose("--predictor", options.predictor, std::string(one_of(moe::predictor_names(), random)));
  choose("--eviction", options.eviction, std::string(one_of(moe::expert_eviction_names(), random)));
  // Often so few slots that a step does not have one for each expert.
  const std::uint64_t most = random.chance(0.3) ? std::min<std::uint64_t>(experts, 6) : experts;
  choose("--local-budget", options.local_bytes, random.between(fewest, most) * expert_bytes);
  choose("--peer-idle", options.peer_bytes, random.below(2 * experts) * expert_bytes);
  choose("--piece", options.piece_bytes, random.chance(0.5) ? 0 : 64 * kKiB);
  const auto batch = static_cast<std::uint32_t>(random.between(1, 8));
  choose("--batch", options.limits.sequences, batch);
  choose("--step-tokens", options.limits.tokens_per_step,
         options.limits.sequences + static_cast<std::uint32_t>(random.below(24)));
  choose("--temperature", options.temperature, random.chance(0.5) ? 0.0 : 1.0);
  choose("--arrival-us", options.arrival_us, random.uniform() * 2'000);
  choose("--prefetch-probability", options.prefetch_probability, random.chance(0.5) ? 0.3 : 0.01);
  choose("--prefetch-layers", options.prefetch_layers,
         static_cast<std::uint32_t>(random.between(1, std::min(3U, shape.layers))));
  // A slow GPU gives copies more time between steps, and peers time to come back into service.
  choose("--kernel-us", options.kernel_us, one_of(std::array{3.0, 100.0, 10'000.0}, random));
  choose("--owner-period-us", options.owner_period_us, options.kernel_us * (20 + random.uniform() * 300));
  return options;
}

std::string CommandLine::again(std::uint64_t seed) const {
  std::string line = "moe_server";
  for (int i = 1; i < argc_; ++i) {
    const std::string_view word = argv_[i];
    if (word == "--seed" || word == "--seeds")
      ++i;  // and its value
    else if (!word.starts_with("--seed=") && !word.starts_with("--seeds="))
      line += fmt::format(" {}", word);
  }
  return line + fmt::format(" --seed {} --seeds 1", seed);
}

}  // namespace harvest::moe_server
