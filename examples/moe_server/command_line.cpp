// SPDX-License-Identifier: Apache-2.0
#include "moe_server/command_line.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <harvest/moe/expert_cache.hpp>
#include <harvest/moe/predictor.hpp>

#include <algorithm>
#include <array>
#include <string>

#include "transformer/random.hpp"

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
    "  moe_server --predictor none --lookahead\n"
    "                                the next layer's own router names what to prefetch\n"
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

}  // namespace

CommandLine::CommandLine(int argc, const char* const* argv)
    : ServerCommandLine(argc, argv, "moe_server", kAbout, kFirstSteps) {
  if (has_word("--tiny")) options_ = tiny_options();
  add_shape(options_.shape);
  add_requests();
  add_memory();
  add_trials("Compares with a run in which all experts are resident", options_.owner_period_us,
             options_.fault_rate, options_.seed);
}

void CommandLine::add_requests() {
  const char* group = "Requests";
  add(group, "--requests", options_.requests, "How many");
  add(group, "--prompt", options_.longest_prompt, "Tokens of the longest prompt");
  add(group, "--new-tokens", options_.most_new_tokens, "The most that a request asks for");
  add(group, "--arrival-us", options_.arrival_us, "Between two requests, on average");
  add_batching(group, options_.limits, options_.temperature);
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
  add_flag(group, "--lookahead", options_.lookahead,
           "Asks each layer's router one layer early, and fetches what it names");
  add(group, "--eviction", options_.eviction,
      fmt::format("Chooses what makes way: {}", fmt::join(moe::expert_eviction_names(), ", ")));
}

std::optional<Exit> CommandLine::parse() {
  if (const auto exit = parse_words()) return exit;
  options_.bursty_owners = bursty_owners();
  if (Status good = options_.validate(); !good) return refuse(good.error().message);
  return std::nullopt;
}

Options CommandLine::draw(std::uint64_t seed) const {
  Options options = options_;
  options.seed = seed;
  Random random(seed_of(seed, 0xCA3));
  // Each is drawn whether it is given or not, so that giving one leaves the others as they are.
  const auto choose = [&](const char* name, auto& target, auto value) {
    if (!is_given(name)) target = value;
  };
  const Shape& shape = options.shape;
  const std::uint64_t expert_bytes = shape.description().expert_bytes() + kKiB;
  const std::uint64_t experts = std::uint64_t{shape.layers} * shape.experts;
  const std::uint64_t fewest = std::min<std::uint64_t>(experts, 2);
  choose("--predictor", options.predictor, std::string(random.one_of(moe::predictor_names())));
  choose("--eviction", options.eviction, std::string(random.one_of(moe::expert_eviction_names())));
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
  choose("--kernel-us", options.kernel_us, random.one_of(std::array{3.0, 100.0, 10'000.0}));
  choose("--owner-period-us", options.owner_period_us, options.kernel_us * (20 + random.uniform() * 300));
  choose("--lookahead", options.lookahead, random.chance(0.5));
  return options;
}

}  // namespace harvest::moe_server
