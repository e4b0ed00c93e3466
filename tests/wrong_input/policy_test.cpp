// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/policy.hpp>

#include <limits>
#include <vector>

#include "wrong_input/table.hpp"

namespace harvest::testing {
namespace {

constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();
constexpr std::uint64_t kCapacities[] = {0, UINT64_MAX};

bool any(const Key& /*key*/) {
  return true;
}

/// A few rounds of what a cache does.
void use(EvictionPolicy& policy) {
  for (std::uint64_t key = 1; key <= 100; ++key) {
    policy.insert(key, {.bytes = 1U << 20, .reload_cost_ns = 0});
    if (key % 3 == 0) policy.hit(key);
    if (policy.size() > 10) {
      const auto victim = policy.evict(key + 1, {}, any);
      ASSERT_TRUE(victim.has_value()) << policy.name();
      EXPECT_FALSE(policy.contains(*victim)) << policy.name();
    }
    policy.set_capacity(key % 2 == 0 ? 0 : UINT64_MAX);
  }
  EXPECT_EQ(policy.size(), 10U) << policy.name();
}

void show_names(Table& table) {
  table.shows("`make_eviction_policy(\"clever\", 1)`", make_eviction_policy("clever", 1));
  table.shows("`make_eviction_policy(\"belady\", 1)`", make_eviction_policy("belady", 1));
  table.shows("`make_eviction_policy(\"\", 1)`", make_eviction_policy("", 1));
  table.shows("`make_admission_policy(\"clever\", 1)`", make_admission_policy("clever", 1));
  table.shows("`make_placement_policy(\"clever\")`", make_placement_policy("clever"));
  table.shows("`make_placement_policy` with a weight of -1",
              make_placement_policy("weighted", {.best_fit = -1}));
  table.shows("`make_placement_policy` with a weight that is not a number",
              make_placement_policy("weighted", {.locality = kNoNumber}));
  table.shows("`simulate_policy` with room for 0 objects", simulate_policy("lru", {}, 0));
  table.shows("`simulate_policy(\"belad\")`", simulate_policy("belad", {}, 1));
  const std::vector<Key> accesses{1, 2, 3};
  const std::vector<std::uint64_t> room{1};
  for (const std::uint64_t length : {1U, 2U})
    table.shows(fmt::format("`simulate_policy_curve` of 3 accesses in requests of {} and {}", length, length),
                simulate_policy_curve("lru", accesses, room, std::vector<std::uint64_t>{length, length}));
  const auto nothing = simulate_policy("lru", {}, 1);
  EXPECT_EQ(nothing->hit_ratio(), 0.0);
  table.shows("`simulate_policy` of no accesses", nothing);
}

void show_eviction(Table& table) {
  for (const std::string_view name : eviction_policy_names())
    for (const std::uint64_t capacity_bytes : kCapacities) use(**make_eviction_policy(name, capacity_bytes));
  table.shows("any eviction policy with a capacity of 0, or of 2^64 - 1", Status{});
  for (const std::string_view name : admission_policy_names())
    for (const std::uint64_t capacity_bytes : kCapacities) {
      const auto policy = *make_admission_policy(name, capacity_bytes);
      for (std::uint64_t key = 1; key <= 100; ++key) policy->record(key, {.bytes = 1U << 20});
      EXPECT_TRUE(policy->admit(1, {}, true)) << name;
    }
  table.shows("any admission policy with a capacity of 0, or of 2^64 - 1", Status{});

  const auto lru = *make_eviction_policy("lru", 1);
  const auto gdsf = *make_eviction_policy("gdsf", 1);
  const auto victim = lru->evict(1, {}, any);
  table.shows("`evict` of an empty tier", victim ? "something" : "none");
  table.stops("`hit` of a key that is not resident", [&] { lru->hit(1); });
  table.stops("`insert` of a key that is resident", [&] {
    lru->insert(1, {});
    lru->insert(1, {});
  });
  table.stops("`insert` into `gdsf` with a `reload_cost_ns` that is not a number",
              [&] { gdsf->insert(1, {.reload_cost_ns = kNoNumber}); });
  table.stops("`insert` into `gdsf` with a `reload_cost_ns` of -1",
              [&] { gdsf->insert(1, {.reload_cost_ns = -1}); });
  lru->erase(42);
  EXPECT_EQ(lru->size(), 0U);
  table.shows("`erase` of a key that is not resident", Status{});
}

TEST(WrongInput, Policies) {
  Table table("Policies");
  show_names(table);
  show_eviction(table);
  const PeerSnapshot full{.device = 1, .free_slot_bytes = 99, .growable_bytes = 99};
  std::string among_none = "none";
  std::string among_full = "none";
  for (const std::string_view name : placement_policy_names()) {
    const auto policy = *make_placement_policy(name);
    if (policy->choose({}, {.bytes = 100})) among_none = name;
    if (policy->choose({&full, 1}, {.bytes = 100})) among_full = name;
  }
  table.shows("`choose` among no peers", among_none);
  table.shows("`choose` among peers without room", among_full);
}

}  // namespace
}  // namespace harvest::testing
