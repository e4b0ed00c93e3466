// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.hpp"

namespace harvest {

Result<PolicyRun> simulate_policy(std::string_view name, std::span<const Key> accesses,
                                  std::uint64_t capacity_objects) {
  if (capacity_objects == 0) return fail(ErrorCode::invalid_argument, "a capacity of 0 objects; at least 1");
  if (name == "belady") return policy::run_belady(accesses, capacity_objects);
  auto made = make_eviction_policy(name, capacity_objects);
  if (!made) return fail(made.error().code, made.error().message + ", and belady");
  EvictionPolicy& eviction = **made;

  constexpr ObjectFacts kUnit{};
  const EvictionPolicy::Evictable any = [](const Key&) { return true; };
  PolicyRun run{accesses.size(), 0};
  for (const Key& key : accesses) {
    if (eviction.contains(key)) {
      eviction.hit(key);
      ++run.hits;
    } else if (eviction.size() < capacity_objects || eviction.evict(key, kUnit, any) != key) {
      eviction.insert(key, kUnit);
    }
  }
  return run;
}

}  // namespace harvest
