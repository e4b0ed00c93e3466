// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "cli/kv/serve.hpp"
#include "cli/parser.hpp"

/// What the benchmarks of KV blocks are asked for in the same words.
namespace harvest::cli {

/// Where a model is served, and with how much memory. 0 bytes and 0 ranks stand for the defaults.
struct KvMachineOptions {
  std::string system = "2xh100-nvl";
  std::string model = "llama-3-8b";
  std::uint64_t ranks = 0;
  std::string local;
  std::string peer;
  std::string host;
};
void add_kv_machine(CLI::App& command, KvMachineOptions& target);

/// Errors: with the option's name: as `read_system_with_peer`, `find_dense_model`, `Rank::create`;
/// invalid_argument (no GPU is left as a peer, a size that does not fit).
[[nodiscard]] Result<KvPlace> place_of(const KvMachineOptions& options);

/// "0.5": more than 0, at most 1,000.
void add_factor(CLI::App& command, const std::string& name, double& target, const std::string& description);

}  // namespace harvest::cli
