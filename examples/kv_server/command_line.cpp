// SPDX-License-Identifier: Apache-2.0
#include "kv_server/command_line.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <string>

#include "transformer/random.hpp"
#include "transformer/surroundings.hpp"

namespace harvest::kv_server {
namespace {

constexpr const char* kAbout =
    "Serves conversations with a small transformer whose keys and values lie in pages on its GPU, too few "
    "for\n"
    "all: prompts begin alike and conversations come back, so pages are shared, and what leaves them waits "
    "in\n"
    "the idle memory of the neighbours (peers) and in host memory; Harvest's BlockCache moves it, and brings "
    "it\n"
    "back layer by layer while the first step computes. The arithmetic is real and done by the CPU. The "
    "machine\n"
    "is simulated, and so is every time that is printed.";

constexpr const char* kFirstSteps =
    "Begin with:\n"
    "  kv_server                     ten conversations with three system prompts, some seconds of a CPU\n"
    "  kv_server --no-cache          the same, every prompt computed from its beginning: compare the time\n"
    "  kv_server --verify --owners bursty\n"
    "                                the peers' owners take their memory back all the time, and every score "
    "of\n"
    "                                every token is the same, to the last bit, as with the cache off\n"
    "  kv_server --verify --owners bursty --faults 0.02\n"
    "                                copies fail on their way: what did not come well is computed again\n"
    "  kv_server --verify --owners bursty --backing lossy --schedule-us 500\n"
    "                                blocks are on peers alone, and some go after they were found\n"
    "  kv_server --tiny --verify --owners bursty --seeds 200\n"
    "                                a campaign: each seed also draws what is not given\n"
    "\n"
    "Exit codes: 0 success, 1 something was wrong, 2 bad input.";

/// For tests and campaigns: a run takes a tenth of a second.
Options tiny_options() {
  Options options;
  options.shape = {.layers = 4,
                   .experts = 4,
                   .hidden = 64,
                   .intermediate = 64,
                   .heads = 4,
                   .kv_heads = 2,
                   .vocabulary = 64};
  options.talk = {.conversations = 10,
                  .most_turns = 4,
                  .system_prompts = 4,
                  .longest_system = 32,
                  .longest_said = 12,
                  .most_new_tokens = 8,
                  .arrival_us = 500,
                  .pause_us = 2'000};
  options.page_tokens = 4;
  return options;
}

}  // namespace

CommandLine::CommandLine(int argc, const char* const* argv)
    : ServerCommandLine(argc, argv, "kv_server", kAbout, kFirstSteps) {
  if (has_word("--tiny")) options_ = tiny_options();
  add_shape(options_.shape);
  add_talk();
  add_pages();
  add_cache();
  add_trials("Compares with each turn alone, the cache off and no pages", options_.owner_period_us,
             options_.fault_rate, options_.seed);
}

void CommandLine::add_talk() {
  const char* group = "Conversations";
  Talk& talk = options_.talk;
  add(group, "--conversations", talk.conversations, "How many");
  add(group, "--turns", talk.most_turns, "The most that a conversation has");
  add(group, "--systems", talk.system_prompts, "Different system prompts that they begin with");
  add(group, "--system-tokens", talk.longest_system, "Of the longest system prompt");
  add(group, "--said", talk.longest_said, "The most tokens that a turn adds");
  add(group, "--new-tokens", talk.most_new_tokens, "The most that a turn asks for");
  add(group, "--arrival-us", talk.arrival_us, "Between two conversations, on average");
  add(group, "--pause-us", talk.pause_us, "Between an answer and the next turn, on average");
  add_batching(group, options_.limits, options_.temperature);
}

void CommandLine::add_pages() {
  const char* group = "Pages";
  add(group, "--arrangement", options_.arrangement,
      fmt::format("How tensors hold pages: {}", fmt::join(kv::kv_arrangement_names(), ", ")));
  add(group, "--page-tokens", options_.page_tokens, "Tokens of a page");
  add(group, "--pages", options_.pages,
      "How many there are; 0: what the longest conversation needs, and half as many again");
}

void CommandLine::add_cache() {
  const char* group = "Memory";
  add_flag(group, "--no-cache", no_cache_, "Every prompt is computed from its beginning");
  add(group, "--system", options_.system, "A machine, by the name or file that `harvest topo` takes");
  add(group, "--block-pages", options_.block_pages, "Pages of a block, the unit that is shared and moved");
  add(group, "--backing", options_.backing,
      "Of blocks: managed_host (in host memory, copies on peers), spill (on a peer, in host memory when it "
      "has "
      "to), lossy (on peers alone)");
  add_size(group, "--peer-idle", options_.peer_bytes, "What a peer does not need itself, as 32MiB");
  add_size(group, "--host-budget", options_.host_bytes, "For blocks in host memory, as 64MiB");
  add(group, "--group-layers", options_.group_layers,
      "Layers that are waited for at once; 0: Harvest chooses");
  add(group, "--ahead-us", options_.ahead_us, "For how long the host's wire is given copies ahead");
  add(group, "--store-buffers", options_.store_buffers, "Blocks on their way into the cache at a time");
  add(group, "--recompute-us", options_.recompute_us,
      "What computing a token takes: where blocks take longer to come it is computed; 0: they always come");
  add(group, "--schedule-us", options_.schedule_us, "What passes between looking a prompt up and loading it");
  add(group, "--kernel-us", options_.kernel_us, "What a kernel takes even if it does nothing");
}

std::optional<Exit> CommandLine::parse() {
  if (const auto exit = parse_words()) return exit;
  options_.bursty_owners = bursty_owners();
  options_.cache = !no_cache_;
  if (Status good = options_.validate(); !good) return refuse(good.error().message);
  return std::nullopt;
}

Options CommandLine::draw(std::uint64_t seed) const {
  Options options = options_;
  options.seed = seed;
  Random random(seed_of(seed, 0xCA4));
  // Each is drawn whether it is given or not, so that giving one leaves the others as they are.
  const auto choose = [&](const char* name, auto& target, auto value) {
    if (!is_given(name)) target = value;
  };
  const auto number = [&](std::uint32_t low, std::uint32_t high) {
    return static_cast<std::uint32_t>(random.between(low, high));
  };
  choose("--arrangement", options.arrangement, std::string(random.one_of(kv::kv_arrangement_names())));
  choose("--page-tokens", options.page_tokens, number(1, 8));
  choose("--block-pages", options.block_pages, number(1, 4));
  choose("--pages", options.pages, options.least_pages() + number(0, options.least_pages() / 2));
  choose("--batch", options.limits.sequences, number(1, 6));
  choose("--step-tokens", options.limits.tokens_per_step, options.limits.sequences + number(0, 40));
  choose("--temperature", options.temperature, random.chance(0.5) ? 0.0 : 1.0);
  choose("--backing", options.backing, std::string(to_string(random.one_of(kBackings))));
  choose("--peer-idle", options.peer_bytes, random.below(5) * (kSmallestIdleBytes / 4));
  choose("--host-budget", options.host_bytes, random.one_of(std::array{2ULL << 20, 8ULL << 20, 64ULL << 20}));
  choose("--group-layers", options.group_layers, number(0, options.shape.layers));
  choose("--ahead-us", options.ahead_us, random.one_of(std::array{0.0, 10.0, 50'000.0}));
  choose("--store-buffers", options.store_buffers, number(1, 4));
  choose("--recompute-us", options.recompute_us, random.one_of(std::array{0.0, 0.0, 1.0}));
  // A slow GPU gives copies more time between steps, and peers time to come back into service.
  choose("--kernel-us", options.kernel_us, random.one_of(std::array{3.0, 100.0, 3'000.0}));
  choose("--schedule-us", options.schedule_us,
         random.one_of(std::array{0.0, 30.0, 300.0}) * options.kernel_us);
  choose("--faults", options.fault_rate, random.one_of(std::array{0.0, 0.0, 0.003, 0.02}));
  choose("--arrival-us", options.talk.arrival_us, random.uniform() * 200 * options.kernel_us);
  choose("--pause-us", options.talk.pause_us, random.uniform() * 1'000 * options.kernel_us);
  choose("--owner-period-us", options.owner_period_us, options.kernel_us * (30 + random.uniform() * 1'500));
  return options;
}

}  // namespace harvest::kv_server
