// SPDX-License-Identifier: Apache-2.0
#include "transformer/surroundings.hpp"

#include <utility>

namespace harvest::transformer {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kSegmentBytes = kSmallestIdleBytes / 4;
constexpr std::uint64_t kReserveBytes = 32 * kMiB;

}  // namespace

Result<std::unique_ptr<SimulatedBackend>> make_small_machine(const std::string& system,
                                                             std::uint64_t idle_bytes, std::uint64_t seed) {
  auto machine = load_machine(system);
  if (!machine) return tl::unexpected(machine.error());
  auto backend = make_simulated_backend(std::move(*machine), {.seed = seed});
  if (!backend) return backend;
  for (const DeviceInfo& device : (*backend)->devices()) {
    if (device.id == kHost || device.id == 0) continue;
    const auto memory = (*backend)->query_memory(device.id);
    if (!memory) return tl::unexpected(memory.error());
    const std::uint64_t free_bytes = idle_bytes + kReserveBytes;
    if (memory->free_bytes <= free_bytes) continue;
    if (Status held = (*backend)->tenant_allocate(device.id, memory->free_bytes - free_bytes); !held)
      return tl::unexpected(held.error());
  }
  return backend;
}

PeerCacheConfig small_cache_config() {
  PeerCacheConfig config{.consumer = 0, .host_budget_bytes = 64 * kMiB};
  config.segment_min_bytes = kSegmentBytes;
  config.segment_max_bytes = 4 * kSegmentBytes;
  config.pressure = {.sample_interval_ns = 200'000,
                     .reserve_bytes = kReserveBytes,
                     .regrow_delay_ns = 1'000'000,
                     .hysteresis_bytes = 0};
  return config;
}

FaultPlan faults_of_copies(double rate) {
  FaultPlan plan;
  plan.fail_copy.rate = rate;
  plan.refuse_copy.rate = rate;
  plan.slow_copy.rate = rate;
  plan.fail_map.rate = rate;
  return plan;
}

}  // namespace harvest::transformer
