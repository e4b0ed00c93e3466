// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cstdio>
#include <string>

#include "moe_server/command_line.hpp"
#include "moe_server/world.hpp"
#include "transformer/program.hpp"

/// One run, or a campaign of them, and what is printed.
namespace harvest::moe_server {
namespace {

constexpr double kMiB = 1 << 20;

ProgressReport report_to(Progress& progress, const std::string& what, const std::vector<Request>& requests) {
  std::uint64_t all = 0;
  for (const Request& request : requests) all += request.new_tokens;
  return [&progress, what, all, last = all](std::uint64_t tokens) mutable {
    if (tokens != last) progress.show(fmt::format("{}: {} of {} new tokens", what, tokens, all));
    last = tokens;
  };
}

constexpr const char* kExpectedHow = "with all experts resident";

struct Verdict {
  Outcome outcome;
  Trouble trouble;
};

Verdict run(const Options& options, bool verify, const std::string& name, Progress& progress) {
  const Model model(options.shape, options.seed);
  const auto requests = draw_requests(options);
  const auto world = World::create(options, model);
  if (!world) return {.outcome = {}, .trouble = {.refused = world.error().message, .wrong = {}}};
  auto outcome = (*world)->serve(requests, report_to(progress, name, requests));
  if (!outcome) return {.outcome = {}, .trouble = {.refused = {}, .wrong = outcome.error().message}};
  std::string wrong;
  if (verify) {
    const auto report = report_to(progress, fmt::format("{}, {}", name, kExpectedHow), requests);
    wrong = compare(outcome->answers, serve_alone(options, model, requests, report), kExpectedHow);
  }
  if (wrong.empty() && outcome->owners.refused > 0)
    wrong = fmt::format("{} times an owner was told that its memory was back, and could not have it",
                        outcome->owners.refused);
  return {.outcome = std::move(*outcome), .trouble = {.refused = {}, .wrong = std::move(wrong)}};
}

void print_tiers(const Outcome& outcome) {
  for (const moe::Phase phase : {moe::Phase::decode, moe::Phase::prefill}) {
    std::uint64_t all = 0;
    for (const Tier tier : {Tier::local, Tier::peer, Tier::host}) all += outcome.experts.experts(phase, tier);
    const auto share = [&](Tier tier) {
      return all == 0 ? 0.0
                      : 100.0 * static_cast<double>(outcome.experts.experts(phase, tier)) /
                            static_cast<double>(all);
    };
    fmt::print(
        "  experts for {:<8} {:>8}: {:.1f} % were local, {:.1f} % came from peers, {:.1f} % from host\n",
        moe::to_string(phase), all, share(Tier::local), share(Tier::peer), share(Tier::host));
  }
}

void print(const Options& options, const Model& model, const Outcome& outcome) {
  const ServerStats& server = outcome.server;
  const moe::ExpertCacheStats& experts = outcome.experts;
  const double seconds = static_cast<double>(outcome.duration_ns) / 1e9;
  fmt::print("{} requests on {} (simulated), {} layers of {} experts, {:.0f} MiB; {} slots, {:.0f} MiB\n",
             options.requests, options.system, options.shape.layers, options.shape.experts,
             static_cast<double>(model.all_expert_bytes()) / kMiB, experts.slots,
             static_cast<double>(experts.slots * model.expert_bytes()) / kMiB);
  fmt::print("  {} prompt and {} new tokens in {} steps, {} of them mixed, {} done again\n",
             server.prompt_tokens, server.new_tokens, server.steps, server.mixed_steps, server.redone);
  fmt::print("  {:.0f} new tokens/s, simulated ({:.1f} ms of virtual time)\n",
             static_cast<double>(server.new_tokens) / seconds, seconds * 1e3);
  print_tiers(outcome);
  const auto percent_of = [&](std::uint64_t all) {
    return all == 0 ? 0.0 : 100.0 * static_cast<double>(experts.guesses_used) / static_cast<double>(all);
  };
  fmt::print(
      "  guesses: {} experts were fetched ahead, {} of them needed (precision {:.1f} %, recall {:.1f} %)\n",
      experts.guesses, experts.guesses_used, percent_of(experts.guesses),
      percent_of(experts.guesses_used + experts.absent_needed));
  if (options.bursty_owners)
    fmt::print("  owners: {} reclaims gave {:.1f} MiB back, {} late in part; {} bursts without a word\n",
               outcome.owners.reclaims, static_cast<double>(outcome.owners.returned_bytes) / kMiB,
               outcome.owners.late, outcome.owners.bursts);
  if (options.fault_rate > 0)
    fmt::print("  faults: {} batches of copies failed or were refused; {} steps were not confirmed\n",
               outcome.copies_failed, server.unconfirmed);
}

Exit run_once(const CommandLine& command_line) {
  Progress progress;
  const Options& options = command_line.options();
  const Verdict verdict = run(options, command_line.verify(), "serving", progress);
  progress.clear();
  if (verdict.trouble) return command_line.report(verdict.trouble);
  print(options, Model(options.shape, options.seed), verdict.outcome);
  if (command_line.verify())
    fmt::print("verified: every token and every score is the same as {}\n", kExpectedHow);
  return kOk;
}

Exit run_campaign(const CommandLine& command_line) {
  std::uint64_t tokens = 0, redone = 0, reclaims = 0, late = 0, from_peers = 0, failed = 0;
  const Exit exit = command_line.run_campaign(
      command_line.options().seed, [&](std::uint64_t seed, const std::string& name, Progress& progress) {
        const auto [outcome, trouble] = run(command_line.draw(seed), command_line.verify(), name, progress);
        tokens += outcome.server.new_tokens;
        redone += outcome.server.redone;
        reclaims += outcome.owners.reclaims;
        late += outcome.owners.late;
        failed += outcome.copies_failed;
        for (const moe::Phase phase : {moe::Phase::decode, moe::Phase::prefill})
          from_peers += outcome.experts.experts(phase, Tier::peer);
        return trouble;
      });
  if (exit != kOk) return exit;
  fmt::print(
      "{} seeds, {} new tokens{}: {} experts came from peers, {} reclaims ({} late in part), {} copies\n"
      "failed or were refused, {} steps were done again\n",
      command_line.seeds(), tokens,
      command_line.verify() ? fmt::format(", each the same as {}", kExpectedHow) : "", from_peers, reclaims,
      late, failed, redone);
  return kOk;
}

}  // namespace
}  // namespace harvest::moe_server

int main(int argc, char** argv) {
  using namespace harvest::moe_server;
  CommandLine command_line(argc, argv);
  if (const auto exit = command_line.parse()) return *exit;
  return command_line.is_campaign() ? run_campaign(command_line) : run_once(command_line);
}
