// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/kv/block_cache.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/status.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kv_server/conversations.hpp"
#include "kv_server/kv_pages.hpp"
#include "kv_server/paged_kv.hpp"
#include "transformer/kernels.hpp"
#include "transformer/model.hpp"
#include "transformer/owners.hpp"
#include "transformer/server.hpp"

namespace harvest::kv_server {

struct Options {
  Shape shape{.layers = 8,
              .experts = 4,
              .hidden = 128,
              .intermediate = 256,
              .heads = 4,
              .kv_heads = 2,
              .vocabulary = 512};
  std::uint64_t seed = 1;  ///< of weights, conversations, pages, owners and faults

  Talk talk;
  double temperature = 0;
  ServerLimits limits{.sequences = 4};

  std::string system = "2xh100-nvl";
  std::string arrangement = "layer_first";  ///< one of `kv_arrangement_names`
  std::uint32_t page_tokens = 16;
  std::uint32_t pages = 0;  ///< 0: what the longest conversation needs, and half as many again
  std::uint32_t block_pages = 1;
  bool cache = true;  ///< false: what is not in pages is computed, and pages are not shared
  std::string backing = "managed_host";
  std::uint64_t peer_bytes = 32 << 20;  ///< idle on each peer when nobody needs it
  std::uint64_t host_bytes = 64 << 20;  ///< for blocks in host memory
  std::uint32_t group_layers = 0;       ///< as in `BlockCacheConfig`, and so the next two
  double ahead_us = 50'000;
  std::uint32_t store_buffers = 2;
  double recompute_us = 0;  ///< what a token takes, where blocks take longer to come; 0: they always come
  double schedule_us = 5;   ///< between looking a prompt up and loading it
  double kernel_us = 3;     ///< that a kernel takes even if it does nothing
  bool bursty_owners = false;
  double owner_period_us = 3'000;
  double fault_rate = 0;  ///< of copies that fail in flight

  [[nodiscard]] std::uint32_t page_count() const;
  [[nodiscard]] std::uint32_t least_pages() const;  ///< that the longest conversation needs
  /// Errors: invalid_argument, not_found (names the field, value and limit).
  [[nodiscard]] Status validate() const;
};

/// One of those that a cache of blocks takes. Errors: not_found, with the known names.
[[nodiscard]] Result<Backing> backing_from(const std::string& name);
inline constexpr std::array kBackings{Backing::managed_host, Backing::spill, Backing::lossy};

/// What came out of serving all conversations.
struct Outcome {
  std::vector<Answer> answers;  ///< by id
  TimeNs duration_ns = 0;       ///< virtual, and so is the next
  TimeNs waited_ns = 0;         ///< from a turn to its answer, all turns together
  std::uint64_t prompt_tokens = 0;
  ServerStats server;
  PagedKvStats pages;
  kv::BlockCacheStats blocks{};
  std::uint64_t page_bytes = 0;
  std::array<std::uint64_t, 3> events{};  ///< that a router would have heard, by `BlockEvent::Kind`
  OwnerStats owners{};
  std::uint64_t copies_failed = 0;  ///< batches, refused or in flight
};

/// Called with how many of the new tokens are there.
using ProgressReport = std::function<void(std::uint64_t tokens)>;

/// The simulated machine, the pages, the caches, the server's stream, and all that goes on beside it.
class World {
 public:
  /// Both outlive the answer. Errors: what Harvest says of options that cannot be (invalid_argument,
  /// not_found), or of a machine that is too small for them (out_of_memory).
  [[nodiscard]] static Result<std::unique_ptr<World>> create(const Options& options, const Model& model);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  /// Serves all of them; to be called once. Errors: of a step that never succeeds, or of caches that are not
  /// whole.
  [[nodiscard]] Result<Outcome> serve(const ProgressReport& report);

 private:
  World(const Options& options, const Model& model);
  Status build();
  Status make_machine();
  Status make_caches();
  Status serve(Conversations& conversations, Server& server, Outcome& outcome, const ProgressReport& report);
  /// What happens beside the server, while it works. Errors: of kernels that were under way.
  Status let_others_act();
  /// Whether what the caches say of themselves can be.
  Status check_books(Outcome& outcome);

  const Options& options_;
  const Model& model_;
  std::array<std::uint64_t, 3> events_{};
  std::unique_ptr<SimulatedBackend> backend_;
  std::unique_ptr<KvPages> pages_;
  kv::BlockCache* hears_ = nullptr;  ///< what the PeerCache tells; until it ends
  std::unique_ptr<PeerCache> cache_;
  std::unique_ptr<kv::BlockCache> blocks_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<BurstyOwners> owners_;
};

/// Each turn alone, its whole prompt computed, in plain memory, without a machine.
[[nodiscard]] std::vector<Answer> serve_alone(const Options& options, const Model& model,
                                              const ProgressReport& report);

}  // namespace harvest::kv_server
