// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/block_cache.hpp>
#include <harvest/machine.hpp>

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/kv/dense_model.hpp"
#include "cli/kv/requests.hpp"
#include "cli/output.hpp"
#include "cli/owners.hpp"

/// A server of one language model under a stream of requests, in virtual time: continuous batching, chunked
/// prefill, pages of KV cache on the GPU, and what a strategy keeps below them.
namespace harvest::cli {

enum class ServeStrategy : std::uint8_t {
  bound,      ///< the peers' memory is the GPU's own, and the host's is as near
  recompute,  ///< prefixes are kept on the GPU alone
  host,       ///< a BlockCache over host memory
  peer_host,  ///< one over peers and host, copied fragment by fragment while the GPU waits
  harvest,    ///< one over peers and host
};
/// Those that one can ask for: all but `bound`, which stands beside each.
[[nodiscard]] std::span<const std::string_view> serve_strategy_names();
/// Errors: not_found, with the known names.
[[nodiscard]] Result<ServeStrategy> serve_strategy_from(std::string_view name);
[[nodiscard]] std::string_view to_string(ServeStrategy strategy);

/// Where a model is served, and with how much memory.
struct KvPlace {
  Machine machine;
  Rank rank;                      ///< the one that is simulated; all do the same, each with peers of its own
  std::vector<DeviceId> peers;    ///< of this rank, which is GPU 0
  std::uint64_t local_bytes = 0;  ///< for pages
  std::uint64_t peer_bytes = 0;   ///< on each peer
  std::uint64_t host_bytes = 0;   ///< this rank's part
};

struct ServeRun : KvPlace {
  std::vector<ServedRequest> requests{};            ///< in the order of arrival, not empty
  std::uint32_t chunk_tokens = 2048;                ///< computed in one pass, next tokens included
  std::uint32_t block_tokens = kServedBlockTokens;  ///< of a page, which is a block
  std::uint32_t most_running = 256;                 ///< sequences at a time
  std::uint32_t quantum_tokens = 64;                ///< of a turn
  bool take_turns = false;                          ///< `host` and `harvest` do
  bool new_first = false;                           ///< `kv::TurnsConfig::new_first`
  std::uint32_t layer_groups = 4;                   ///< that are loaded, and waited for, one by one
  TimeNs ttft_limit_ns = 0;  ///< a request is good if its first token comes within this
  TimeNs tbt_limit_ns = 0;   ///< and the others, on average, within this of each other
  OwnerActivity activity = OwnerActivity::none;
  std::uint64_t seed = 1;

  [[nodiscard]] std::uint64_t block_bytes() const { return block_tokens * rank.kv_bytes_per_token(); }
  /// Coming back from naive copies would take longer than a turn.
  [[nodiscard]] bool takes_turns(ServeStrategy strategy) const {
    return take_turns && (strategy == ServeStrategy::host || strategy == ServeStrategy::harvest);
  }
};

struct Percentiles {
  TimeNs p50_ns = 0;
  TimeNs p90_ns = 0;
  TimeNs p99_ns = 0;
};
/// The smallest value that at least so many per cent do not exceed; 0 of nothing. Reorders `values`.
[[nodiscard]] Percentiles percentiles_of(std::vector<TimeNs>& values);

struct ServeFigures {
  ServeStrategy strategy = ServeStrategy::recompute;
  Percentiles ttft;          ///< from a request's arrival to its first token
  Percentiles tbt;           ///< from each token to the next of its request
  double tokens_per_s = 0;   ///< generated, until the last request was served
  double goodput_per_s = 0;  ///< requests that met both limits
  std::uint64_t completed = 0;
  std::uint64_t output_tokens = 0;
  std::uint64_t computed_tokens = 0;  ///< of prompts, and of what had left and was not kept
  std::uint64_t blocks = 0;           ///< of all prompts: == hits[...] + recomputed
  std::array<std::uint64_t, kTiers> hits{};
  std::uint64_t recomputed = 0;
  std::uint64_t lost = 0;         ///< of `recomputed`: did not come, though a lookup had found them
  std::uint64_t wrong_bytes = 0;  ///< of blocks whose content is not theirs; a block counts whole
  std::uint64_t left = 0;         ///< how often a sequence left the GPU before it was done
  std::uint64_t parked_lost = 0;  ///< blocks of those that took turns, gone when they came back
  std::array<std::uint64_t, kTiers> bytes_from{};
  double exposed_stall_fraction = 0;  ///< of the time of all passes, the GPU waited for blocks
  TimeNs duration_ns = 0;
  kv::BlockCacheStats cache{};  ///< of strategies with one
  OwnerFigures owners{};
};

/// What is told of every run.
[[nodiscard]] Json to_json(const ServeFigures& figures);

/// Serves all requests. Errors: those of the backend and the caches, and invalid_argument (a request that
/// does not fit into local memory).
[[nodiscard]] Result<ServeFigures> serve(const ServeRun& run, ServeStrategy strategy, Progress& progress);

}  // namespace harvest::cli
