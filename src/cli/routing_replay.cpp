// SPDX-License-Identifier: Apache-2.0
#include "cli/routing_replay.hpp"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

namespace harvest::cli {
namespace {

constexpr std::size_t kNeverAgain = std::numeric_limits<std::size_t>::max();

std::uint32_t expert_of(const Key& key) {
  return static_cast<std::uint32_t>(key.low);
}

template <typename Visit>
void for_each_step(const LayerAccesses& accesses, Visit visit) {
  std::size_t begin = 0;
  for (const std::size_t end : accesses.ends) {
    visit(begin, std::span(accesses.experts).subspan(begin, end - begin));
    begin = end;
  }
}

/// Evicts what is needed latest, and does not let in what is needed later still.
PolicyRun run_belady(const LayerAccesses& accesses, std::uint64_t capacity) {
  std::uint32_t experts = 0;
  for (const Key& key : accesses.experts) experts = std::max(experts, expert_of(key) + 1);
  std::vector<std::size_t> next_use(accesses.experts.size());
  std::vector<std::size_t> seen(experts, kNeverAgain);
  for (std::size_t i = accesses.experts.size(); i-- > 0;)
    next_use[i] = std::exchange(seen[expert_of(accesses.experts[i])], i);

  PolicyRun run{accesses.experts.size(), 0};
  struct Resident {
    std::uint32_t expert;
    std::size_t next_use;
  };
  std::vector<Resident> residents;
  for_each_step(accesses, [&](std::size_t begin, std::span<const Key> step) {
    std::vector<Resident> candidates = residents;
    for (std::size_t i = 0; i < step.size(); ++i) {
      const std::uint32_t expert = expert_of(step[i]);
      const auto found = std::find_if(candidates.begin(), candidates.end(),
                                      [&](const Resident& resident) { return resident.expert == expert; });
      if (found == candidates.end()) {
        candidates.push_back({expert, next_use[begin + i]});
      } else {
        found->next_use = next_use[begin + i];
        ++run.hits;
      }
    }
    std::sort(candidates.begin(), candidates.end(),
              [](const Resident& a, const Resident& b) { return a.next_use < b.next_use; });
    candidates.resize(std::min<std::size_t>(candidates.size(), capacity));
    residents = std::move(candidates);
  });
  return run;
}

}  // namespace

LayerAccesses layer_accesses(const moe::RoutingTrace& trace, std::uint32_t layer) {
  LayerAccesses accesses;
  std::vector<std::uint32_t> needed;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const moe::RoutingStep step = trace.step(i);
    if (step.phase() != moe::Phase::decode) continue;
    step.distinct_experts(layer, needed);
    for (const std::uint32_t expert : needed) accesses.experts.emplace_back(expert);
    accesses.ends.push_back(accesses.experts.size());
  }
  return accesses;
}

Result<PolicyRun> simulate_steps(std::string_view name, const LayerAccesses& accesses,
                                 std::uint64_t capacity_experts) {
  if (capacity_experts == 0) return fail(ErrorCode::invalid_argument, "a capacity of 0 experts; at least 1");
  if (name == "belady") return run_belady(accesses, capacity_experts);
  auto made = make_eviction_policy(name, capacity_experts);
  if (!made) return tl::unexpected(made.error());
  EvictionPolicy& eviction = **made;

  constexpr ObjectFacts kUnit{};
  PolicyRun run{accesses.experts.size(), 0};
  std::vector<Key> missing;
  for_each_step(accesses, [&](std::size_t, std::span<const Key> step) {
    missing.clear();
    for (const Key& key : step) {
      if (!eviction.contains(key)) {
        missing.push_back(key);
        continue;
      }
      eviction.hit(key);
      ++run.hits;
    }
    const EvictionPolicy::Evictable not_needed = [&](const Key& key) {
      return std::find(step.begin(), step.end(), key) == step.end();
    };
    for (const Key& key : missing) {
      if (eviction.size() == capacity_experts) {
        const auto victim = eviction.evict(key, kUnit, not_needed);
        if (!victim || *victim == key) continue;
      }
      eviction.insert(key, kUnit);
    }
  });
  return run;
}

}  // namespace harvest::cli
