// SPDX-License-Identifier: Apache-2.0
#include "moe/life_plan.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/random.hpp"

namespace harvest::moe {
namespace {

using testing::Random;

constexpr std::uint64_t kKiB = 1ULL << 10;
constexpr std::uint64_t kMiB = 1ULL << 20;

struct OperationFacts {
  std::string_view name;
  unsigned weight;
};
constexpr std::array<OperationFacts, kLifeOperations> kFacts{{
    {"whole_step", 30},   {"begin_step", 12},   {"advance_step", 24}, {"end_step", 10},  {"read_again", 6},
    {"confirm", 8},       {"poll_experts", 10}, {"poll_peers", 10},   {"pass_time", 16}, {"kernel", 6},
    {"prefetch", 8},      {"cancel", 2},        {"reclaim", 2},       {"tenant", 1},     {"change_stream", 2},
    {"change_faults", 3}, {"break_link", 2},    {"lose_peer", 0},     {"look", 4},       {"wrong_call", 2},
    {"calm", 1},
}};

std::string one_of(Random& random, std::span<const std::string_view> names) {
  return std::string(names[random.below(names.size())]);
}

Machine draw_machine(Random& random) {
  Machine machine = *machine_from_preset(random.chance(0.5) ? "2xh100-nvl" : "dgx-h100");
  // Small, so that a model of a megabyte is spread over many segments.
  for (MachineDevice& device : machine.devices)
    if (device.info.id != kHost) device.info.segment_granularity_bytes = 64 * kKiB;
  return machine;
}

ModelDescription draw_model(Random& random) {
  ModelDescription model;
  model.name = "life";
  model.layers = static_cast<std::uint32_t>(random.between(1, 5));
  model.experts = static_cast<std::uint32_t>(random.between(1, 12));
  model.top_k = static_cast<std::uint32_t>(random.between(1, std::min(3U, model.experts)));
  const bool large = random.chance(0.2);
  const std::uint64_t tensors = random.between(1, 4);
  for (std::uint64_t i = 0; i < tensors; ++i)
    model.tensors.push_back({fmt::format("t{}", i), random.between(1, (large ? 96 : 12) * kKiB)});
  return model;
}

PeerCacheConfig draw_peers(Random& random, const Machine& machine) {
  PeerCacheConfig config;
  const auto gpus = static_cast<DeviceId>(machine.devices.size() - 1);
  const DeviceId last = std::min<DeviceId>(gpus - 1, static_cast<DeviceId>(random.between(1, 3)));
  for (DeviceId peer = 1; peer <= last; ++peer) config.peers.push_back(peer);
  config.verify_paths = false;
  if (random.chance(0.3)) config.local_budget_bytes = random.between(1, 8) * 128 * kKiB;
  config.peer_budget_bytes = random.chance(0.5) ? UINT64_MAX : random.between(2, 16) * 64 * kKiB;
  config.host_budget_bytes = 4 * kMiB;
  config.host_chunk_bytes = kMiB;
  config.segment_min_bytes = random.between(1, 4) * 64 * kKiB;
  config.segment_max_bytes = config.segment_min_bytes * random.between(1, 4);
  config.max_objects = 4096;
  config.pressure.reserve_bytes = random.between(1, 4) * kMiB;
  config.pressure.hysteresis_bytes = random.between(0, 8) * 64 * kKiB;
  config.pressure.regrow_delay_ns = static_cast<TimeNs>(random.between(0, 20) * 1'000'000);
  return config;
}

ExpertCacheConfig draw_experts(Random& random, const ModelDescription& model, std::uint32_t& slots) {
  ExpertCacheConfig config;
  config.model = model;
  const std::uint32_t all = model.layers * model.experts;
  const auto most = std::max<std::uint32_t>(2, all + 2);
  slots = static_cast<std::uint32_t>(random.chance(0.4) ? random.between(2, 5) : random.between(2, most));
  config.local_budget_bytes = slots * model.slot_bytes();
  slots = std::min(slots, all);
  config.piece_bytes = random.between(1, 3) * 64 * kKiB;
  config.eviction = one_of(random, expert_eviction_names());
  config.predictor = one_of(random, predictor_names());
  config.prefetch_probability = static_cast<double>(random.between(0, 4)) * 0.2;
  config.prefetch_layers = static_cast<std::uint32_t>(random.between(1, model.layers));
  config.head_tensors = config.prefetch_layers % (static_cast<std::uint32_t>(model.tensors.size()) + 1);
  config.prefetch_window_ns = std::array<TimeNs, 3>{0, 20'000, 1'000'000}[random.below(3)];
  config.rebalance_bytes_per_s = std::array<std::uint64_t, 3>{0, 16 * kMiB, 8ULL << 30}[random.below(3)];
  return config;
}

FaultPlan draw_faults(Random& random) {
  FaultPlan plan;
  const double likely = random.chance(0.3) ? 0.0 : 0.4;
  const auto maybe = [&](FaultTrigger& trigger, double rate) {
    if (random.chance(likely)) trigger.rate = rate;
  };
  maybe(plan.refuse_copy, 0.03);
  maybe(plan.fail_copy, 0.05);
  maybe(plan.slow_copy, 0.1);
  maybe(plan.late_event, 0.1);
  maybe(plan.fail_map, 0.2);
  plan.late_event_ns = static_cast<TimeNs>(1'000 << random.below(11));
  return plan;
}

}  // namespace

std::string_view to_string(LifeOperation operation) {
  return kFacts[static_cast<std::size_t>(operation)].name;
}

/// Each part is drawn from a generator of its own, so that one can be changed and the others stay.
LifePlan draw_life_plan(std::uint64_t seed) {
  const auto part = [&](std::uint64_t number) { return Random(seed, number); };
  LifePlan plan;
  Random of_machine = part(1);
  plan.machine = draw_machine(of_machine);
  Random of_model = part(2);
  plan.model = draw_model(of_model);
  plan.tensor_gap_bytes = of_model.chance(0.5) ? of_model.between(1, 5) * 16 : 0;
  plan.favourites = static_cast<std::uint32_t>(of_model.between(1, plan.model.experts));
  Random of_peers = part(3);
  plan.peers = draw_peers(of_peers, plan.machine);
  Random of_experts = part(4);
  plan.experts = draw_experts(of_experts, plan.model, plan.slots);
  Random rest = part(5);
  plan.streams = static_cast<std::uint32_t>(rest.between(1, 4));
  plan.checked = rest.chance(0.5);
  plan.may_lose_peer = rest.chance(0.25);
  Random of_faults = part(6);
  plan.faults = draw_faults(of_faults);
  if (of_faults.chance(0.25)) plan.shortage_of_events = 0.3;

  Random of_weights = part(7);
  constexpr std::array<unsigned, 4> kFactors{0, 1, 3, 10};
  for (std::size_t i = 0; i < kLifeOperations; ++i)
    plan.weights[i] = 100 * kFacts[i].weight * kFactors[of_weights.weighted({15, 45, 25, 15})];
  const auto weight = [&](LifeOperation operation) -> unsigned& {
    return plan.weights[static_cast<std::size_t>(operation)];
  };
  // Without these nothing would ever happen, or nothing would ever be over.
  for (const LifeOperation operation :
       {LifeOperation::whole_step, LifeOperation::end_step, LifeOperation::pass_time,
        LifeOperation::poll_peers, LifeOperation::poll_experts})
    weight(operation) = std::max(weight(operation), 500U);
  weight(LifeOperation::calm) = 300;
  if (plan.may_lose_peer) weight(LifeOperation::lose_peer) = 60;
  return plan;
}

std::string describe(const LifePlan& plan) {
  const ExpertCacheConfig& config = plan.experts;
  return fmt::format(
      "{}, {} peers, {} layers x {} experts of {} bytes{}, {} slots, {} streams, eviction {}, predictor {}, "
      "pieces "
      "of {} KiB, window {} ns, local {} KiB{}",
      plan.machine.name, plan.peers.peers.size(), plan.model.layers, plan.model.experts,
      plan.model.expert_bytes(), plan.tensor_gap_bytes > 0 ? " in parts" : "", plan.slots, plan.streams,
      config.eviction, config.predictor, config.piece_bytes >> 10, config.prefetch_window_ns,
      plan.peers.local_budget_bytes >> 10, plan.checked ? ", checked" : "");
}

}  // namespace harvest::moe
