// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/kv.hpp"

#include <CLI/CLI.hpp>

#include "cli/bench/bench.hpp"
#include "cli/bench/machine.hpp"

/// `harvest bench kv`: what keeping KV-cache blocks beyond the GPU gives.
namespace harvest::cli::bench {
namespace {

constexpr const char* kTeaching =
    "  harvest bench kv fetch     how long a prefix takes back to an engine's pages\n"
    "  harvest bench kv serve     a server of a chat model under a stream of requests (simulated)\n"
    "  harvest bench kv turns     more sequences than fit take turns (simulated)\n"
    "\n"
    "Example:\n"
    "  harvest bench kv serve --system 2xh100-nvl --model llama-3-8b --requests 500\n"
    "\n"
    "All print --json. What they show: docs/benchmarks/kv.md";

}  // namespace

Result<Json> kv_header(const ServeRun& run, const std::string& benchmark) {
  const auto backend = make_simulated_backend(run.machine, {.bytes = SimulatedBytes::phantom});
  if (!backend) return tl::unexpected(backend.error());
  Json json = header_of(**backend, false, benchmark);
  json["model"] = run.rank.model().name;
  json["tensor_parallel"] = run.rank.ranks();
  json["block_tokens"] = run.block_tokens;
  json["local_bytes"] = run.local_bytes;
  json["peers"] = run.peers;
  json["peer_bytes"] = run.peer_bytes;
  json["host_bytes"] = run.host_bytes;
  json["seed"] = run.seed;
  return json;
}

void add_kv(CLI::App& bench, Action& chosen) {
  CLI::App* command = bench.add_subcommand("kv", "KV-cache blocks beyond the GPU's own memory");
  command->footer(kTeaching);
  command->require_subcommand(0, 1);
  add_kv_fetch(*command, chosen);
  add_kv_serve(*command, chosen);
  add_kv_turns(*command, chosen);
  command->callback([command, &chosen] {
    if (command->get_subcommands().empty())
      chosen = [] {
        return complain(Exit::bad_input, "bench kv",
                        "a benchmark is missing: fetch, serve or turns (see harvest bench kv --help)");
      };
  });
}

}  // namespace harvest::cli::bench
