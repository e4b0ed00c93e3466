// SPDX-License-Identifier: Apache-2.0
#include "simulator/plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <harvest/policy.hpp>

#include <algorithm>
#include <cmath>

namespace harvest::simulator {
namespace {

constexpr std::uint64_t kKiB = 1ULL << 10;
constexpr std::uint64_t kMiB = 1ULL << 20;

constexpr std::array<std::string_view, kOperations> kOperationNames{
    "put",         "put_from_gpu", "erase",   "fetch",         "fetch_and_wait",  "acquire",    "use_lease",
    "release",     "prefetch",     "reclaim", "begin_reclaim", "orderly_reclaim", "tenant",     "pass_time",
    "poll",        "kernel",       "settle",  "look",          "new_stream",      "wrong_call", "race_on_key",
    "disturb_put", "faults",       "link",    "lose_device",   "lose_peers",      "jump_clock", "calm"};
constexpr std::array<std::string_view, kFaults> kFaultNames{
    "refuse_copy", "fail_copy",      "slow_copy",  "corrupt_path", "fail_map",     "fail_host_map",
    "late_event",  "slow_query",     "stale_free", "jumping_free", "sudden_owner", "link_down",
    "lose_device", "lose_all_peers", "clock_jump", "refuse_fill"};

// In the order of `Operation`; a swarm multiplies each by 0, 1, 3 or 10.
constexpr std::array<unsigned, kOperations> kUsualWeights{18, 4, 5, 18, 8, 10, 7, 10, 4, 4, 3, 1, 5, 8,
                                                          14, 4, 2, 2,  1, 1,  3, 3,  6, 4, 1, 1, 1, 1};

std::uint64_t log_uniform(Random& random, double least, double most) {
  const double unit = static_cast<double>(random.next() >> 11) * 0x1p-53;
  return static_cast<std::uint64_t>(least * std::pow(most / least, unit));
}

Machine draw_machine(Random& random, std::uint32_t gpus) {
  Machine machine;
  machine.name = "drawn";
  const std::uint64_t granularity = random.chance(0.5) ? 64 * kKiB : 4 * kKiB;
  const auto engines = static_cast<std::uint32_t>(random.between(1, 4));
  const double host_rate = static_cast<double>(log_uniform(random, 5e7, 5e10));
  const double peer_rate = host_rate * static_cast<double>(random.between(1, 8));
  for (std::uint32_t i = 0; i < gpus; ++i) {
    MachineDevice device;
    device.info = {static_cast<DeviceId>(i),
                   "simulated GPU",
                   i == 0 ? 64 * kMiB : random.between(6, 24) * kMiB,
                   granularity,
                   engines,
                   -1};
    machine.devices.push_back(device);
    machine.ports.push_back({fmt::format("gpu{}.in", i), peer_rate});
    machine.ports.push_back({fmt::format("gpu{}.host", i), host_rate});
  }
  machine.devices.push_back({DeviceInfo{kHost, "host memory", 1024 * kMiB, 4 * kKiB, 0, -1}, 0});

  const auto latency = static_cast<TimeNs>(log_uniform(random, 100, 50'000));
  const auto issue = static_cast<TimeNs>(random.between(0, 5'000));
  const auto link = [&](DeviceId from, DeviceId to, LinkKind kind, double rate,
                        std::vector<std::uint32_t> ports) {
    MachineLink made;
    made.info = {from, to, kind, kind != LinkKind::pcie, rate, latency, issue, issue / 2, "drawn"};
    made.ports = std::move(ports);
    machine.links.push_back(std::move(made));
  };
  const auto count = static_cast<DeviceId>(gpus);
  const bool all_reach_all = random.chance(0.7);
  for (DeviceId from = 0; from < count; ++from) {
    const auto host_port = static_cast<std::uint32_t>(from) * 2 + 1;
    link(from, from, LinkKind::same_device, 4 * peer_rate, {});
    link(kHost, from, LinkKind::pcie, host_rate, {host_port});
    link(from, kHost, LinkKind::pcie, host_rate, {host_port});
    for (DeviceId to = 0; to < count; ++to) {
      if (to == from) continue;
      const bool direct = from == 0 || to == 0 || all_reach_all;  // the consumer reaches all its peers
      link(from, to, direct ? LinkKind::nvswitch : LinkKind::pcie, direct ? peer_rate : host_rate,
           {static_cast<std::uint32_t>(to) * 2});
    }
  }
  link(kHost, kHost, LinkKind::same_device, host_rate, {});
  machine.costs.map_ns = static_cast<TimeNs>(log_uniform(random, 1, 2'000'000));
  machine.costs.unmap_ns = static_cast<TimeNs>(log_uniform(random, 1, 500'000));
  machine.costs.query_memory_ns = static_cast<TimeNs>(log_uniform(random, 1, 100'000));
  return machine;
}

std::string one_of(Random& random, std::span<const std::string_view> names) {
  return random.chance(0.5) ? std::string() : std::string(names[random.below(names.size())]);
}

TierPolicy draw_policy(Random& random) {
  return {one_of(random, eviction_policy_names()), one_of(random, admission_policy_names())};
}

PeerCacheConfig draw_config(Random& random, std::uint32_t gpus) {
  PeerCacheConfig config;
  for (std::uint32_t peer = 1; peer < gpus; ++peer) config.peers.push_back(static_cast<DeviceId>(peer));
  if (random.chance(0.6)) config.local_budget_bytes = (64 * kKiB) << random.below(7);
  config.peer_budget_bytes = random.chance(0.5) ? UINT64_MAX : random.between(1, 8) * kMiB;
  config.host_budget_bytes = random.chance(0.7) ? 32 * kMiB : random.between(0, 24) * 128 * kKiB;
  config.segment_min_bytes = random.between(1, 4) * 64 * kKiB;
  config.segment_max_bytes = config.segment_min_bytes * random.between(1, 4);
  config.host_chunk_bytes = random.between(2, 16) * 64 * kKiB;
  config.max_objects = random.chance(0.9) ? 4096 : static_cast<std::uint32_t>(random.between(8, 64));
  config.local_policy = draw_policy(random);
  config.peer_policy = draw_policy(random);
  config.host_policy = draw_policy(random);
  config.placement = one_of(random, placement_policy_names());
  config.pressure.reserve_bytes = random.chance(0.1) ? 0 : random.between(1, 4) * kMiB;
  config.pressure.hysteresis_bytes = random.between(0, 8) * 64 * kKiB;
  config.pressure.sample_interval_ns = static_cast<TimeNs>(log_uniform(random, 50'000, 20'000'000));
  config.pressure.regrow_delay_ns = static_cast<TimeNs>(random.between(0, 60) * 1'000'000);
  if (random.chance(0.3)) config.pressure.growth_bytes_per_s = log_uniform(random, 1e6, 1e9);
  config.background_bytes = random.chance(0.5) ? 256 * kMiB : random.between(1, 8) * 32 * kKiB;
  config.balance_paths = random.chance(0.7);
  return config;
}

/// Half of the seeds have few faults, so that each is also seen alone.
Faults draw_faults(Random& random) {
  Faults faults;
  const double likely = random.chance(0.15) ? 0.0 : random.chance(0.5) ? 0.15 : 0.6;
  for (std::size_t i = 0; i < kFaults; ++i)
    if (random.chance(likely)) faults.add(static_cast<Fault>(i));
  return faults;
}

std::array<unsigned, kOperations> draw_weights(Random& random, const Faults& faults) {
  std::array<unsigned, kOperations> weights = kUsualWeights;
  constexpr std::array<unsigned, 4> kFactors{0, 1, 3, 10};
  for (std::size_t i = 0; i < kOperations; ++i) weights[i] *= kFactors[random.weighted({15, 45, 25, 15})];
  const auto at_least = [&](Operation operation, unsigned least) {
    unsigned& weight = weights[static_cast<std::size_t>(operation)];
    weight = std::max(weight, least);
  };
  // Without these nothing would ever happen, or nothing would ever be over.
  for (const Operation operation : {Operation::put, Operation::poll, Operation::pass_time})
    at_least(operation, 2);
  // Rare whatever the swarm says: after them a life is another one.
  const auto only_with = [&](Operation operation, Fault fault, unsigned weight) {
    weights[static_cast<std::size_t>(operation)] = faults.has(fault) ? weight : 0;
  };
  unsigned sum = 0;
  for (const unsigned weight : weights) sum += weight;
  for (unsigned& weight : weights) weight *= 64;
  only_with(Operation::lose_device, Fault::lose_device, std::max(1U, sum * 64 / 1500));
  only_with(Operation::lose_all_peers, Fault::lose_all_peers, std::max(1U, sum * 64 / 5000));
  only_with(Operation::jump_clock, Fault::jump_clock, std::max(1U, sum * 64 / 300));
  if (!faults.has(Fault::break_link)) weights[static_cast<std::size_t>(Operation::break_link)] = 0;
  weights[static_cast<std::size_t>(Operation::calm)] = std::max(1U, sum * 64 / 1000);
  return weights;
}

}  // namespace

std::string_view to_string(Operation operation) {
  return kOperationNames[static_cast<std::size_t>(operation)];
}
std::string_view to_string(Fault fault) {
  return kFaultNames[static_cast<std::size_t>(fault)];
}

std::optional<Fault> parse_fault(std::string_view name) {
  const auto found = std::find(kFaultNames.begin(), kFaultNames.end(), name);
  if (found == kFaultNames.end()) return std::nullopt;
  return static_cast<Fault>(found - kFaultNames.begin());
}

std::vector<Fault> Faults::list() const {
  std::vector<Fault> all;
  for (std::size_t i = 0; i < kFaults; ++i)
    if (has(static_cast<Fault>(i))) all.push_back(static_cast<Fault>(i));
  return all;
}

/// Each part is drawn from a generator of its own, so that narrowing one down leaves the others as they are.
Plan draw_plan(const Case& life) {
  const auto part = [&](std::uint64_t number) { return Random(life.seed, number); };
  Plan plan;
  Random shape = part(1);
  const auto gpus = static_cast<std::uint32_t>(shape.between(2, 5));
  plan.streams = static_cast<std::uint32_t>(shape.between(1, 4));
  plan.keys = static_cast<std::uint32_t>(shape.between(4, 64));
  plan.phantom = shape.chance(0.2);
  plan.largest_object_bytes = shape.chance(0.3) ? 512 * kKiB : 48 * kKiB;
  plan.tenants = shape.chance(0.3);
  plan.reentrant = shape.chance(0.4);
  const auto fewer = [](std::optional<std::uint32_t> narrowed, std::uint32_t drawn, std::uint32_t least) {
    return narrowed ? std::max(least, std::min(*narrowed, drawn)) : drawn;
  };
  const std::uint32_t gpus_used = fewer(life.gpus, gpus, 2);
  plan.streams = fewer(life.streams, plan.streams, 1);
  plan.keys = fewer(life.keys, plan.keys, 1);

  Random of_faults = part(2);
  plan.faults = draw_faults(of_faults);
  Random of_machine = part(3);
  plan.machine = draw_machine(of_machine, gpus_used);
  Random of_config = part(4);
  plan.config = draw_config(of_config, gpus_used);
  plan.config.verify_paths = plan.faults.has(Fault::corrupt_path);
  const auto from = static_cast<DeviceId>(of_config.below(gpus_used));
  const auto step = static_cast<DeviceId>(of_config.between(1, gpus_used - 1));
  if (plan.faults.has(Fault::corrupt_path) && !plan.phantom) {
    plan.corrupt_path = Route{from, static_cast<DeviceId>((from + step) % static_cast<DeviceId>(gpus_used))};
    plan.config.peers.clear();  // the cache is to find out itself which peers are of use
  }
  Random of_contract = part(6);
  plan.checked = of_contract.chance(0.25);
  Random of_weights = part(5);
  plan.weights = draw_weights(of_weights, plan.faults);
  // After the weights, so that narrowing the faults down does not change which operation comes when.
  if (life.faults)
    for (const Fault fault : plan.faults.list())
      if (!life.faults->has(fault)) plan.faults.remove(fault);
  if (!plan.faults.has(Fault::corrupt_path)) plan.corrupt_path.reset();
  return plan;
}

std::string arguments_of(const Case& life) {
  std::string text = fmt::format("--seed {} --ops {}", life.seed, life.operations);
  if (life.gpus) text += fmt::format(" --gpus {}", *life.gpus);
  if (life.keys) text += fmt::format(" --keys {}", *life.keys);
  if (life.streams) text += fmt::format(" --streams {}", *life.streams);
  if (life.faults) {
    std::vector<std::string_view> names;
    for (const Fault fault : life.faults->list()) names.push_back(to_string(fault));
    text += fmt::format(" --faults {}", names.empty() ? "none" : fmt::format("{}", fmt::join(names, ",")));
  }
  if (life.nth) text += fmt::format(" --nth {}={}", to_string(life.nth->first), life.nth->second);
  if (!life.only.empty()) {
    std::vector<std::string> ranges;
    for (const auto& [first, last] : life.only)
      ranges.push_back(first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last));
    text += fmt::format(" --only {}", fmt::join(ranges, ","));
  }
  return text;
}

std::string describe(const Plan& plan) {
  std::vector<std::string_view> faults;
  for (const Fault fault : plan.faults.list()) faults.push_back(to_string(fault));
  std::vector<std::string> likely;
  for (std::size_t i = 0; i < kOperations; ++i)
    likely.push_back(fmt::format("{} {}", kOperationNames[i], plan.weights[i]));
  const PeerCacheConfig& config = plan.config;
  return fmt::format(
      "{} GPUs, {} bytes, {} streams, {} keys, objects to {} KiB{}{}{}\n"
      "local {} KiB, host {} KiB, peers at most {} KiB, segments {}..{} KiB, reserve {} KiB, {} objects\n"
      "faults: {}\noperations: {}\n",
      plan.machine.devices.size() - 1, plan.phantom ? "phantom" : "real", plan.streams, plan.keys,
      plan.largest_object_bytes >> 10, plan.tenants ? ", tenants" : "",
      plan.reentrant ? ", callbacks call the cache" : "", plan.checked ? ", calls are checked" : "",
      config.local_budget_bytes >> 10, config.host_budget_bytes >> 10, config.peer_budget_bytes >> 10,
      config.segment_min_bytes >> 10, config.segment_max_bytes >> 10, config.pressure.reserve_bytes >> 10,
      config.max_objects, fmt::join(faults, ", "), fmt::join(likely, ", "));
}

}  // namespace harvest::simulator
