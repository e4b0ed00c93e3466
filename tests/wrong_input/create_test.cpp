// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <limits>

#include "backend/forwarding_backend.hpp"
#include "core/world.hpp"
#include "wrong_input/table.hpp"

/// `PeerCache::create`, field by field, on a machine of two GPUs.
namespace harvest::testing {
namespace {

constexpr std::uint64_t kAll = UINT64_MAX;
constexpr std::uint64_t kTotalBytes = 100'931'731'456;  // of a GPU of this machine
constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();

Machine machine() {
  return *machine_from_preset("2xh100-nvl");
}

/// What a configuration gets that is good but for one change.
template <typename Change>
Outcome with(Change change, Machine on = machine(), SimulationOptions options = {}) {
  const auto backend = std::move(*make_simulated_backend(std::move(on), std::move(options)));
  PeerCacheConfig config = small_config();
  change(config);
  return PeerCache::create(*backend, config);
}

/// The same, without a peer.
Outcome alone(Machine on, std::uint64_t reserve_bytes) {
  const auto backend = std::move(*make_simulated_backend(std::move(on)));
  PeerCacheConfig config = small_config();
  config.pressure.reserve_bytes = reserve_bytes;
  const auto cache = PeerCache::create(*backend, config);
  if (cache) {
    EXPECT_EQ((*cache)->stats().pools.size(), 1U) << "host memory alone";
  }
  return cache;
}

Outcome with_lost_peer() {
  const auto backend = std::move(*make_simulated_backend(machine()));
  EXPECT_TRUE(backend->lose_device(1));
  PeerCacheConfig config = small_config();
  config.peers = {1};
  return PeerCache::create(*backend, config);
}

Machine without_peer_access() {
  Machine changed = machine();
  for (MachineLink& link : changed.links)
    if (link.info.from != kHost && link.info.to != kHost) link.info.peer_access = false;
  return changed;
}

class HostAlone : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  std::span<const DeviceInfo> devices() const override { return inner_.devices().last(1); }
};

Outcome without_gpu() {
  const auto backend = std::move(*make_simulated_backend(machine()));
  HostAlone host(*backend);
  return PeerCache::create(host, small_config());
}

TEST(WrongInput, CreateDevicesAndPaths) {
  Table table("`PeerCache::create`: devices and paths");
  SimulationOptions corrupting;
  corrupting.faults.corrupt_copy.rate = 1;
  const auto peer_verified = [](auto& c) { c.verify_paths = true, c.peers = {1}; };

  table.shows("`consumer` 5", with([](auto& c) { c.consumer = 5; }));
  table.shows("`consumer` the host", with([](auto& c) { c.consumer = kHost; }));
  table.shows("`peers` {7}", with([](auto& c) { c.peers = {7}; }));
  table.shows("`peers` {the host}", with([](auto& c) { c.peers = {kHost}; }));
  table.shows("`peers` {the consumer}", with([](auto& c) { c.peers = {0}; }));
  table.shows("`peers` {1, 1}", with([](auto& c) { c.peers = {1, 1}; }));
  table.shows("`peers` {1}, no peer access", with([](auto& c) { c.peers = {1}; }, without_peer_access()));
  table.shows("`peers` {1}, whose path corrupts", with(peer_verified, machine(), corrupting));
  table.shows("`peers` {1}, which is lost", with_lost_peer());
  table.shows("no peer, and none can be reached", alone(without_peer_access(), 0));
  table.shows("`path_verdicts` on a path that is not there", with([](auto& c) {
                c.path_verdicts = {{{9, 0}, PathState::failed}};
              }));
  table.shows("`path_verdicts` with one path twice", with([](auto& c) {
                c.path_verdicts = {{{1, 0}, PathState::failed}, {{1, 0}, PathState::verified}};
              }));
  table.shows("a backend without a GPU", without_gpu());
}

/// No more addresses than the process has now, for a table that needs 50 GiB of them.
[[noreturn]] void create_without_memory(const PeerCacheConfig& config, Backend& backend) {
  const rlimit limit{1U << 20, 1U << 20};
  if (::setrlimit(RLIMIT_AS, &limit) != 0) std::_Exit(0);
  const auto cache = PeerCache::create(backend, config);
  std::fputs(cache ? "created" : cache.error().message.c_str(), stderr);
  std::_Exit(cache ? 0 : static_cast<int>(cache.error().code));
}

void show_missing_memory(Table& table) {
  const std::string input = "`max_objects` 2^28, without the memory for it";
#ifdef HARVEST_SANITIZED
  return table.waives(input);  // sanitizers need addresses themselves
#endif
  const auto backend = std::move(*make_simulated_backend(machine()));
  PeerCacheConfig config = small_config();
  config.max_objects = 1U << 28;
  table.exits(input, ErrorCode::out_of_memory, [&] { create_without_memory(config, *backend); });
}

TEST(WrongInput, CreateSizes) {
  Table table("`PeerCache::create`: sizes");
  table.shows("`local_budget_bytes` 1", with([](auto& c) { c.local_budget_bytes = 1; }));
  table.shows("`local_budget_bytes` 2^50", with([](auto& c) { c.local_budget_bytes = 1ULL << 50; }));
  table.shows("`peer_budget_bytes` 1", with([](auto& c) { c.peer_budget_bytes = 1; }));
  table.shows("`peer_budget_bytes` 1, peers named",
              with([](auto& c) { c.peer_budget_bytes = 1, c.peers = {1}; }));
  table.shows("`peer_budget_bytes` 2^64 - 1", with([](auto& c) { c.peer_budget_bytes = kAll; }));
  table.shows("`host_budget_bytes` 1", with([](auto& c) { c.host_budget_bytes = 1; }));
  table.shows("`host_budget_bytes` 2^60", with([](auto& c) { c.host_budget_bytes = 1ULL << 60; }));
  table.shows("all budgets 0",
              with([](auto& c) { c.local_budget_bytes = c.peer_budget_bytes = c.host_budget_bytes = 0; }));
  table.shows("`segment_min_bytes` 0", with([](auto& c) { c.segment_min_bytes = 0; }));
  table.shows("`segment_min_bytes` beyond `segment_max_bytes`",
              with([](auto& c) { c.segment_min_bytes = c.segment_max_bytes + 1; }));
  table.shows("`segment_max_bytes` 1", with([](auto& c) { c.segment_min_bytes = c.segment_max_bytes = 1; }));
  table.shows("`segment_max_bytes` 1, with a local tier", with([](auto& c) {
                c.segment_min_bytes = c.segment_max_bytes = 1, c.local_budget_bytes = 64 * MiB;
              }));
  table.shows("`segment_max_bytes` 2^64 - 1", with([](auto& c) { c.segment_max_bytes = kAll; }));
  table.shows("`host_chunk_bytes` 0", with([](auto& c) { c.host_chunk_bytes = 0; }));
  table.shows("`host_chunk_bytes` 1", with([](auto& c) { c.host_chunk_bytes = 1; }));
  table.shows("`host_chunk_bytes` 2 GiB", with([](auto& c) { c.host_chunk_bytes = 2 * GiB; }));
  table.shows("`max_objects` 0", with([](auto& c) { c.max_objects = 0; }));
  table.shows("`max_objects` 2^32 - 1", with([](auto& c) { c.max_objects = UINT32_MAX; }));
  show_missing_memory(table);
  table.shows("`background_bytes` 0", with([](auto& c) { c.background_bytes = 0; }));
}

TEST(WrongInput, CreatePressureAndPolicies) {
  Table table("`PeerCache::create`: pressure and policies");

  table.shows("`sample_interval_ns` 0", with([](auto& c) { c.pressure.sample_interval_ns = 0; }));
  table.shows("`sample_interval_ns` -1", with([](auto& c) { c.pressure.sample_interval_ns = -1; }));
  table.shows("`sample_interval_ns` `kNever`", with([](auto& c) { c.pressure.sample_interval_ns = kNever; }));
  table.shows("`reserve_bytes` of all that the peer has",
              with([](auto& c) { c.peers = {1}, c.pressure.reserve_bytes = kTotalBytes; }));
  table.shows("`reserve_bytes` 2^64 - 1",
              with([](auto& c) { c.peers = {1}, c.pressure.reserve_bytes = kAll; }));
  table.shows("`reserve_bytes` 2^64 - 1, peers not named", alone(machine(), kAll));
  table.shows("`hysteresis_bytes` 2^64 - 1",
              with([](auto& c) { c.peers = {1}, c.pressure.hysteresis_bytes = kAll; }));
  table.shows("`growth_bytes_per_s` 0", with([](auto& c) { c.pressure.growth_bytes_per_s = 0; }));
  table.shows("`regrow_delay_ns` -1", with([](auto& c) { c.pressure.regrow_delay_ns = -1; }));
  table.shows("`regrow_delay_ns` `kNever`", with([](auto& c) { c.pressure.regrow_delay_ns = kNever; }));
  table.shows("`local_policy.eviction` \"clever\"",
              with([](auto& c) { c.local_policy.eviction = "clever"; }));
  table.shows("`peer_policy.eviction` \"belady\"", with([](auto& c) { c.peer_policy.eviction = "belady"; }));
  table.shows("`host_policy.admission` \"clever\"",
              with([](auto& c) { c.host_policy.admission = "clever"; }));
  table.shows("`placement` \"clever\"", with([](auto& c) { c.placement = "clever"; }));
  table.shows("`placement_weights.best_fit` -1", with([](auto& c) { c.placement_weights.best_fit = -1; }));
  table.shows("`placement_weights.locality` not a number",
              with([](auto& c) { c.placement_weights.locality = kNoNumber; }));
  table.shows("`placement_weights.fairness` infinite",
              with([](auto& c) { c.placement_weights.fairness = kInfinite; }));
  table.shows("`placement_weights.stability` -1", with([](auto& c) { c.placement_weights.stability = -1; }));
}

}  // namespace
}  // namespace harvest::testing
