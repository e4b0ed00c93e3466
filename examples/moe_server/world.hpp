// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/expert_cache.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/status.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transformer/kernels.hpp"
#include "transformer/model.hpp"
#include "transformer/owners.hpp"
#include "transformer/server.hpp"

namespace harvest::moe_server {

using namespace transformer;

struct Options {
  Shape shape;
  std::uint64_t seed = 1;  ///< of weights, requests, owners and faults

  std::uint32_t requests = 24;
  std::uint32_t longest_prompt = 48;
  std::uint32_t most_new_tokens = 32;
  double arrival_us = 2'000;  ///< between two requests, on average
  double temperature = 0;
  ServerLimits limits;

  std::string system = "2xh100-nvl";
  std::string predictor = "next_layer";
  std::string eviction;               ///< empty: the first of `expert_eviction_names`
  std::uint64_t local_bytes = 0;      ///< for slots; 0: a quarter of all experts
  std::uint64_t peer_bytes = 0;       ///< idle on each peer when nobody needs it; 0: half of all experts
  std::uint64_t piece_bytes = 0;      ///< experts travel in pieces of this; 0: whole
  double prefetch_probability = 0.3;  ///< guesses below are not followed
  std::uint32_t prefetch_layers = 1;  ///< how far ahead guesses are made
  bool lookahead = false;             ///< each layer's router is asked one layer early
  double kernel_us = 3;               ///< that a kernel takes even if it does nothing
  bool bursty_owners = false;
  double owner_period_us = 500;
  double fault_rate = 0;  ///< of copies that fail in flight

  /// Errors: invalid_argument, not_found (names the field, value and limit).
  [[nodiscard]] Status validate() const;
};

/// What somebody asked for, from the seed.
[[nodiscard]] std::vector<Request> draw_requests(const Options& options);

/// What came out of serving all requests.
struct Outcome {
  std::vector<Answer> answers;  ///< by id
  TimeNs duration_ns = 0;       ///< virtual
  ServerStats server;
  moe::ExpertCacheStats experts;
  OwnerStats owners{};
  std::uint64_t copies_failed = 0;  ///< batches, refused or in flight
};

/// Called with how many of the new tokens are there.
using ProgressReport = std::function<void(std::uint64_t tokens)>;

/// The simulated machine, the caches, the server's stream, and all that goes on beside it.
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
  [[nodiscard]] Result<Outcome> serve(const std::vector<Request>& requests, const ProgressReport& report);

 private:
  World(const Options& options, const Model& model);
  Status build();
  Status make_machine();
  Status make_caches();
  /// What happens beside the server, while it works. Errors: of kernels that were under way.
  Status let_others_act();

  const Options& options_;
  const Model& model_;
  std::unique_ptr<SimulatedBackend> backend_;
  std::unique_ptr<PeerCache> cache_;
  std::unique_ptr<moe::ExpertCache> experts_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<BurstyOwners> owners_;
};

/// Each request alone, in plain memory, without a machine.
[[nodiscard]] std::vector<Answer> serve_alone(const Options& options, const Model& model,
                                              const std::vector<Request>& requests,
                                              const ProgressReport& report);

}  // namespace harvest::moe_server
