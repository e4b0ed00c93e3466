// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>

#include "kv_server/command_line.hpp"
#include "kv_server/world.hpp"
#include "transformer/program.hpp"

/// One run, or a campaign of them, and what is printed.
namespace harvest::kv_server {
namespace {

constexpr double kMiB = 1 << 20;
constexpr const char* kExpectedHow = "with the cache off";

ProgressReport report_to(Progress& progress, const std::string& what) {
  return [&progress, what, last = std::uint64_t{0}](std::uint64_t tokens) mutable {
    if (tokens != last) progress.show(fmt::format("{}: {} new tokens", what, tokens));
    last = tokens;
  };
}

struct Verdict {
  Outcome outcome;
  Trouble trouble;
};

Verdict run(const Options& options, bool verify, const std::string& name, Progress& progress) {
  const Model model(options.shape, options.seed);
  const auto world = World::create(options, model);
  if (!world) return {.outcome = {}, .trouble = {.refused = world.error().message, .wrong = {}}};
  auto outcome = (*world)->serve(report_to(progress, name));
  if (!outcome) return {.outcome = {}, .trouble = {.refused = {}, .wrong = outcome.error().message}};
  std::string wrong;
  if (verify) {
    const auto report = report_to(progress, fmt::format("{}, {}", name, kExpectedHow));
    wrong = compare(outcome->answers, serve_alone(options, model, report), kExpectedHow);
  }
  if (wrong.empty() && outcome->owners.refused > 0)
    wrong = fmt::format("{} times an owner was told that its memory was back, and could not have it",
                        outcome->owners.refused);
  return {.outcome = std::move(*outcome), .trouble = {.refused = {}, .wrong = std::move(wrong)}};
}

std::uint64_t at(const std::array<std::uint64_t, kTiers>& by_tier, Tier tier) {
  return by_tier[static_cast<std::size_t>(tier)];
}

void print_cache(const Options& options, const Outcome& outcome) {
  const kv::BlockCacheStats& blocks = outcome.blocks;
  const PagedKvStats& pages = outcome.pages;
  const std::uint64_t block_tokens = std::uint64_t{options.block_pages} * options.page_tokens;
  const std::uint64_t lost_tokens = pages.lost_blocks * block_tokens;
  fmt::print(
      "  of {} prompt tokens {} were in pages, {} were loaded from peers and {} from host, {} computed\n",
      outcome.prompt_tokens, pages.shared_tokens, at(blocks.loaded, Tier::peer) * block_tokens,
      at(blocks.loaded, Tier::host) * block_tokens,
      outcome.prompt_tokens - pages.shared_tokens - pages.promised_tokens + lost_tokens);
  fmt::print(
      "  recomputed: {} blocks that were found and did not come, of {}; {} prompts were not worth a load\n",
      pages.lost_blocks, pages.promised_tokens / block_tokens, pages.declined_loads);
  fmt::print(
      "  {} blocks made way in the pages; of {} stores {} were done, {} not needed, {} refused, {} given "
      "up\n",
      pages.dropped_blocks, blocks.stores_asked, blocks.stored, blocks.stores_known, blocks.stores_refused,
      blocks.stores_given_up);
  fmt::print("  a router would have heard that {} blocks were stored, {} moved and {} removed\n",
             outcome.events[0], outcome.events[1], outcome.events[2]);
}

void print(const Options& options, const Outcome& outcome) {
  const ServerStats& server = outcome.server;
  const auto turns = static_cast<double>(outcome.answers.size());
  const std::uint64_t pages_bytes = outcome.page_bytes * options.page_count();
  fmt::print("{} conversations with {} turns in all, on {} (simulated), {} layers\n",
             options.talk.conversations, outcome.answers.size(), options.system, options.shape.layers);
  fmt::print("  {} pages of {} tokens, {:.1f} MiB, as {}; blocks of {} tokens, {}\n", options.page_count(),
             options.page_tokens, static_cast<double>(pages_bytes) / kMiB, options.arrangement,
             options.block_pages * options.page_tokens, options.cache ? options.backing : "not kept");
  if (options.cache)
    print_cache(options, outcome);
  else
    fmt::print("  {} prompt tokens were computed\n", outcome.prompt_tokens);
  fmt::print("  {} new tokens in {} steps, {} of them mixed, {} done again\n", server.new_tokens,
             server.steps, server.mixed_steps, server.redone);
  fmt::print("  {:.1f} ms of virtual time, an answer after {:.2f} ms on average, simulated\n",
             static_cast<double>(outcome.duration_ns) / 1e6,
             static_cast<double>(outcome.waited_ns) / 1e6 / turns);
  if (options.bursty_owners)
    fmt::print("  owners: {} reclaims gave {:.1f} MiB back, {} late in part; {} bursts without a word\n",
               outcome.owners.reclaims, static_cast<double>(outcome.owners.returned_bytes) / kMiB,
               outcome.owners.late, outcome.owners.bursts);
  if (options.fault_rate > 0)
    fmt::print("  faults: {} batches of copies failed or were refused, {} blocks were asked for again\n",
               outcome.copies_failed, outcome.blocks.retried);
}

Exit run_once(const CommandLine& command_line) {
  Progress progress;
  const Options& options = command_line.options();
  const Verdict verdict = run(options, command_line.verify(), "serving", progress);
  progress.clear();
  if (verdict.trouble) return command_line.report(verdict.trouble);
  print(options, verdict.outcome);
  if (command_line.verify())
    fmt::print("verified: every token and every score is the same as {}\n", kExpectedHow);
  return kOk;
}

/// What a campaign adds up.
struct Sums {
  std::uint64_t tokens = 0, shared_tokens = 0, from_peers = 0, from_host = 0, lost = 0, seeds_with_lost = 0;
  std::uint64_t reclaims = 0, late = 0, failed = 0, retried = 0;

  void add(const Outcome& outcome) {
    tokens += outcome.server.new_tokens;
    shared_tokens += outcome.pages.shared_tokens;
    from_peers += at(outcome.blocks.loaded, Tier::peer);
    from_host += at(outcome.blocks.loaded, Tier::host);
    lost += outcome.pages.lost_blocks;
    seeds_with_lost += outcome.pages.lost_blocks > 0 ? 1 : 0;
    reclaims += outcome.owners.reclaims;
    late += outcome.owners.late;
    failed += outcome.copies_failed;
    retried += outcome.blocks.retried;
  }
};

Exit run_campaign(const CommandLine& command_line) {
  Sums sums;
  const Exit exit = command_line.run_campaign(
      command_line.options().seed, [&](std::uint64_t seed, const std::string& name, Progress& progress) {
        const auto [outcome, trouble] = run(command_line.draw(seed), command_line.verify(), name, progress);
        sums.add(outcome);
        return trouble;
      });
  if (exit != kOk) return exit;
  fmt::print(
      "{} seeds, {} new tokens{}: {} prompt tokens were shared in pages, {} blocks came from peers and {} "
      "from\n"
      "host, {} blocks were recomputed, in {} of the seeds; {} reclaims ({} late in part), {} copies failed "
      "or were\n"
      "refused, {} blocks were asked for again\n",
      command_line.seeds(), sums.tokens,
      command_line.verify() ? fmt::format(", each the same as {}", kExpectedHow) : "", sums.shared_tokens,
      sums.from_peers, sums.from_host, sums.lost, sums.seeds_with_lost, sums.reclaims, sums.late, sums.failed,
      sums.retried);
  return kOk;
}

}  // namespace
}  // namespace harvest::kv_server

int main(int argc, char** argv) {
  using namespace harvest::kv_server;
  CommandLine command_line(argc, argv);
  if (const auto exit = command_line.parse()) return *exit;
  return command_line.is_campaign() ? run_campaign(command_line) : run_once(command_line);
}
