// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "policy/policies.hpp"

namespace harvest {

Result<PolicyRun> simulate_policy(std::string_view name, std::span<const Key> accesses,
                                  std::uint64_t capacity_objects) {
  if (capacity_objects == 0) return fail(ErrorCode::invalid_argument, "a capacity of 0 objects; at least 1");
  auto made = make_eviction_policy(name, capacity_objects);
  if (!made) return tl::unexpected(made.error());
  EvictionPolicy& policy = **made;

  constexpr ObjectFacts kUnit{};
  const EvictionPolicy::Evictable any = [](const Key&) { return true; };
  PolicyRun run{accesses.size(), 0};
  for (const Key& key : accesses) {
    if (policy.contains(key)) {
      policy.hit(key);
      ++run.hits;
    } else if (policy.size() < capacity_objects || policy.evict(key, kUnit, any) != key) {
      policy.insert(key, kUnit);
    }
  }
  return run;
}

}  // namespace harvest
