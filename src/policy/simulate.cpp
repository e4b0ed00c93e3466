// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "policy/policies.hpp"
#include "policy/recording.hpp"

namespace harvest {
namespace {

constexpr std::string_view kOptimum = "belady";

Result<PolicyRun> replay(std::string_view name, const policy::Recording& recording,
                         std::uint64_t capacity_objects) {
  auto made = make_eviction_policy(name, capacity_objects);
  if (!made) return fail(made.error().code, fmt::format("{}, and {}", made.error().message, kOptimum));
  EvictionPolicy& eviction = **made;

  ObjectFacts facts{};
  const EvictionPolicy::Evictable any = [](const Key&) { return true; };
  PolicyRun run{recording.accesses.size(), 0, 0};
  bool usable = false;
  for (std::size_t now = 0; now < recording.accesses.size(); ++now) {
    const Key& key = recording.accesses[now];
    facts.parent = recording.begins[now] ? std::nullopt : std::optional(recording.accesses[now - 1]);
    const bool hit = eviction.contains(key);
    usable = hit && (usable || recording.begins[now]);
    run.hits += hit ? 1 : 0;
    run.usable_hits += usable ? 1 : 0;
    if (hit) {
      eviction.hit(key);
    } else if (eviction.size() < capacity_objects || eviction.evict(key, facts, any) != key) {
      eviction.insert(key, facts);
    }
  }
  return run;
}

/// Errors: invalid_argument, if the requests do not make up the accesses.
Result<policy::Recording> record(std::span<const Key> accesses,
                                 std::span<const std::uint64_t> request_lengths) {
  policy::Recording recording{accesses, std::vector<bool>(accesses.size(), request_lengths.empty())};
  std::size_t begin = 0;
  for (const std::uint64_t length : request_lengths) {
    if (length > accesses.size() - begin)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("the requests are longer than the {} accesses together", accesses.size()));
    if (length != 0) recording.begins[begin] = true;
    begin += length;
  }
  if (!request_lengths.empty() && begin != accesses.size())
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("the requests are {} accesses together, and there are {}", begin, accesses.size()));
  return recording;
}

Status check_capacity(std::uint64_t capacity_objects) {
  if (capacity_objects != 0) return {};
  return fail(ErrorCode::invalid_argument, "a capacity of 0 objects; at least 1");
}

}  // namespace

Result<PolicyRun> simulate_policy(std::string_view name, std::span<const Key> accesses,
                                  std::uint64_t capacity_objects) {
  if (Status status = check_capacity(capacity_objects); !status) return tl::unexpected(status.error());
  const auto recording = record(accesses, {});
  if (name == kOptimum) return policy::belady_curve(*recording, {&capacity_objects, 1}).front();
  return replay(name, *recording, capacity_objects);
}

Result<std::vector<PolicyRun>> simulate_policy_curve(std::string_view name, std::span<const Key> accesses,
                                                     std::span<const std::uint64_t> capacities_objects,
                                                     std::span<const std::uint64_t> request_lengths) {
  for (const std::uint64_t capacity : capacities_objects)
    if (Status status = check_capacity(capacity); !status) return tl::unexpected(status.error());
  const auto recording = record(accesses, request_lengths);
  if (!recording) return tl::unexpected(recording.error());
  if (name == kOptimum) return policy::belady_curve(*recording, capacities_objects);
  if (name == "lru") return policy::lru_curve(*recording, capacities_objects);
  std::vector<PolicyRun> runs;
  for (const std::uint64_t capacity : capacities_objects) {
    const auto run = replay(name, *recording, capacity);
    if (!run) return tl::unexpected(run.error());
    runs.push_back(*run);
  }
  return runs;
}

}  // namespace harvest
