// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/machine.hpp>
#include <harvest/peer_cache.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/random.hpp"

/// What a seed draws: a machine, a cache and a workload. As a swarm: each seed also draws which operations
/// and which faults are likely and which never happen, so that rare mixes are common in some lives.
namespace harvest::simulator {

using testing::Random;

enum class Operation : std::uint8_t {
  put,
  put_from_gpu,
  erase,
  fetch,
  fetch_and_wait,
  acquire,
  use_lease,
  release_lease,
  prefetch,
  reclaim,
  begin_reclaim,
  orderly_reclaim,  ///< nothing else goes on: what does not come back, a lease must explain
  tenant,
  pass_time,
  poll,
  kernel,
  settle,
  look,
  change_stream,
  wrong_call,
  race_on_key,    ///< erase and put of a key while its fetch is under way
  disturb_put,    ///< the copies that a put writes are copied on, revoked and broken while they are under way
  change_faults,  ///< which of the plan's faults happen from now on
  break_link,
  lose_device,
  lose_all_peers,
  jump_clock,
  calm,  ///< faults stop, and liveness must follow
};
inline constexpr std::size_t kOperations = 28;
[[nodiscard]] std::string_view to_string(Operation operation);

enum class Fault : std::uint8_t {
  refuse_copy,
  fail_copy,
  slow_copy,
  corrupt_path,  ///< of one path between GPUs, always, with the check of paths on
  fail_map,
  fail_host_map,
  late_event,
  slow_query,
  stale_free,
  jumping_free,
  sudden_owner,  ///< allocates between the answer to a sample and what follows from it
  break_link,
  lose_device,
  lose_all_peers,
  jump_clock,
  refuse_fill,
};
inline constexpr std::size_t kFaults = 16;
[[nodiscard]] std::string_view to_string(Fault fault);
/// Names and meanings, for people.
[[nodiscard]] std::optional<Fault> parse_fault(std::string_view name);

/// A set of faults.
class Faults {
 public:
  [[nodiscard]] bool has(Fault fault) const { return (bits_ >> static_cast<unsigned>(fault) & 1U) != 0; }
  void add(Fault fault) { bits_ |= 1U << static_cast<unsigned>(fault); }
  void remove(Fault fault) { bits_ &= ~(1U << static_cast<unsigned>(fault)); }
  [[nodiscard]] std::vector<Fault> list() const;
  friend bool operator==(const Faults&, const Faults&) = default;

 private:
  std::uint32_t bits_ = 0;
};

/// One life: everything follows from it. What is set narrows down what the seed draws.
struct Case {
  std::uint64_t seed = 1;
  std::uint32_t operations = 1000;
  std::optional<std::uint32_t> gpus{};
  std::optional<std::uint32_t> keys{};
  std::optional<std::uint32_t> streams{};
  std::optional<Faults> faults{};  ///< at most these
  /// Only the operations with these numbers happen, from first to last; empty: all.
  std::vector<std::pair<std::uint32_t, std::uint32_t>> only{};
  /// The n-th call of this fault's kind fails, counted from the beginning; for sweeps over every n.
  std::optional<std::pair<Fault, std::uint64_t>> nth{};
};
/// The arguments of the program that run this case again.
[[nodiscard]] std::string arguments_of(const Case& life);

struct Plan {
  Machine machine;
  bool phantom = false;  ///< bytes that are known by their stamp, not held
  bool checked = false;  ///< through the decorator that enforces the backend's contract
  PeerCacheConfig config;
  std::uint32_t streams = 1;
  std::uint32_t keys = 1;
  std::uint64_t largest_object_bytes = 0;
  bool tenants = false;
  bool reentrant = false;  ///< callbacks call the cache
  Faults faults;
  std::optional<Route> corrupt_path;
  std::array<unsigned, kOperations> weights{};
};
[[nodiscard]] Plan draw_plan(const Case& life);

[[nodiscard]] std::string describe(const Plan& plan);

}  // namespace harvest::simulator
