// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/machine.hpp>
#include <harvest/moe/expert_cache.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace harvest::moe {

enum class LifeOperation : std::uint8_t {
  whole_step,
  begin_step,
  advance_step,
  end_step,
  read_again,
  confirm,
  poll_experts,
  poll_peers,
  pass_time,
  kernel,
  prefetch,
  cancel,
  reclaim,
  tenant,
  change_stream,
  change_faults,
  break_link,
  lose_peer,
  look,
  wrong_call,
  calm,
};
inline constexpr std::size_t kLifeOperations = 21;
[[nodiscard]] std::string_view to_string(LifeOperation operation);

/// What a seed draws. As a swarm: each also draws which operations and faults are likely and which never
/// happen, so that rare mixes are common in some lives.
struct LifePlan {
  Machine machine;
  ModelDescription model;
  std::uint64_t tensor_gap_bytes = 0;  ///< in host memory; more than 0: an expert is not one run there
  std::uint32_t slots = 0;
  std::uint32_t streams = 0;
  std::uint32_t favourites = 0;  ///< of decode, in each layer; they move with the pass
  bool checked = false;          ///< the backend's contract is enforced
  bool may_lose_peer = false;
  PeerCacheConfig peers;
  ExpertCacheConfig experts;
  FaultPlan faults;               ///< when there are any
  double shortage_of_events = 0;  ///< then
  std::array<unsigned, kLifeOperations> weights{};
};

[[nodiscard]] LifePlan draw_life_plan(std::uint64_t seed);
[[nodiscard]] std::string describe(const LifePlan& plan);

}  // namespace harvest::moe
