// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <harvest/policy.hpp>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace harvest {
namespace {

constexpr std::uint64_t kUniverse = 12;

/// One call, made from three small numbers so that a failing sequence shrinks well.
struct Call {
  int kind = 0;
  std::uint64_t key = 0;
  std::uint64_t pinned = 0;  ///< a bit for each key that may not go
};

void showValue(const Call& call, std::ostream& os) {
  os << "{" << call.kind << ", key " << call.key << ", pinned " << call.pinned << "}";
}

rc::Gen<std::vector<Call>> calls() {
  return rc::gen::container<std::vector<Call>>(
      rc::gen::build<Call>(rc::gen::set(&Call::kind, rc::gen::inRange(0, 4)),
                           rc::gen::set(&Call::key, rc::gen::inRange<std::uint64_t>(0, kUniverse)),
                           rc::gen::set(&Call::pinned, rc::gen::inRange<std::uint64_t>(0, 1U << kUniverse))));
}

/// FIFO and LRU as their definitions say: a row of keys, oldest first.
void agrees_with_queue(std::string_view name, bool hit_renews, const std::vector<Call>& sequence) {
  const auto policy = make_eviction_policy(name, 5).value();
  std::vector<std::uint64_t> row;
  for (const Call& call : sequence) {
    const Key key(call.key);
    const auto may_go = [&](std::uint64_t number) { return (call.pinned >> number & 1U) == 0; };
    const auto at = std::find(row.begin(), row.end(), call.key);
    if (call.kind == 0) {
      const auto victim = policy->evict(key, {}, [&](const Key& each) { return may_go(each.low); });
      const auto expected = std::find_if(row.begin(), row.end(), may_go);
      RC_ASSERT(victim.has_value() == (expected != row.end()));
      if (!victim) continue;
      RC_ASSERT(victim->low == *expected);
      row.erase(expected);
    } else if (call.kind == 1) {
      policy->erase(key);
      if (at != row.end()) row.erase(at);
    } else if (at == row.end()) {
      policy->insert(key, {});
      row.push_back(call.key);
    } else {
      policy->hit(key);
      if (hit_renews) std::rotate(at, at + 1, row.end());
    }
    RC_ASSERT(policy->size() == row.size());
  }
}

TEST(PolicyModel, FifoAndLruAreTheirDefinitions) {
  EXPECT_TRUE(rc::check("fifo", [] { agrees_with_queue("fifo", false, *calls()); }));
  EXPECT_TRUE(rc::check("lru", [] { agrees_with_queue("lru", true, *calls()); }));
}

/// LRU-2 with the whole history: the times of all accesses since the key was last erased. Its bound is not
/// met, as a universe is smaller than it.
TEST(PolicyModel, Lru2IsItsDefinition) {
  EXPECT_TRUE(rc::check("lru_2", [] {
    const auto policy = make_eviction_policy("lru_2", 5).value();
    std::map<std::uint64_t, std::vector<int>> times;  // of resident and of evicted keys
    std::set<std::uint64_t> residents;
    int now = 0;
    for (const Call& call : *calls()) {
      const Key key(call.key);
      ++now;
      if (call.kind == 0) {
        const auto victim = policy->evict(key, {}, [](const Key&) { return true; });
        const auto rank = [&](std::uint64_t number) {
          const auto& all = times.at(number);
          return std::pair(all.size() < 2 ? 0 : all[all.size() - 2], all.back());
        };
        const auto expected = std::min_element(residents.begin(), residents.end(),
                                               [&](auto a, auto b) { return rank(a) < rank(b); });
        RC_ASSERT(victim.has_value() == (expected != residents.end()));
        if (!victim) continue;
        RC_ASSERT(victim->low == *expected);
        residents.erase(expected);
      } else if (call.kind == 1) {
        policy->erase(key);
        if (residents.erase(call.key) > 0) times.erase(call.key);
      } else {
        residents.insert(call.key).second ? policy->insert(key, {}) : policy->hit(key);
        times[call.key].push_back(now);
      }
    }
  }));
}

TEST(PolicyModel, EveryPolicyKeepsItsResidentsUnderAnyCalls) {
  for (const std::string_view name : eviction_policy_names()) {
    EXPECT_TRUE(rc::check(std::string(name), [name] {
      const auto policy = make_eviction_policy(name, *rc::gen::inRange<std::uint64_t>(0, 20)).value();
      std::map<std::uint64_t, bool> resident;
      for (const Call& call : *calls()) {
        const Key key(call.key);
        const auto may_go = [&](std::uint64_t number) { return (call.pinned >> number & 1U) == 0; };
        if (call.kind == 0) {
          const bool can = std::any_of(resident.begin(), resident.end(),
                                       [&](const auto& each) { return each.second && may_go(each.first); });
          const auto victim =
              policy->evict(key, {call.key, 1}, [&](const Key& each) { return may_go(each.low); });
          RC_ASSERT(victim.has_value() == can);
          if (victim) RC_ASSERT(std::exchange(resident[victim->low], false) && may_go(victim->low));
        } else if (call.kind == 1) {
          policy->erase(key);
          resident[call.key] = false;
        } else if (call.kind == 2 && call.pinned % 16 == 0) {
          policy->set_capacity(call.pinned / 16);
        } else {
          std::exchange(resident[call.key], true) ? policy->hit(key) : policy->insert(key, {call.key, 1});
        }
        const auto count =
            std::count_if(resident.begin(), resident.end(), [](const auto& each) { return each.second; });
        RC_ASSERT(policy->size() == static_cast<std::size_t>(count));
        for (const auto& [number, is_resident] : resident)
          RC_ASSERT(policy->contains(Key(number)) == is_resident);
      }
    }));
  }
}

/// Any parents, missing ones and cycles among them: what has resident children goes only if nothing else may.
TEST(PolicyModel, PrefixAwarePoliciesKeepWhatChildrenNeed) {
  for (const std::string name : {"prefix_adaptive_2q", "prefix_lru", "prefix_lru_2"}) {
    EXPECT_TRUE(rc::check(name, [&name] {
      const auto policy = make_eviction_policy(name, 8).value();
      std::map<std::uint64_t, std::uint64_t> parents;  // of the residents
      for (const Call& call : *calls()) {
        const Key key(call.key);
        const std::uint64_t parent = call.pinned % (kUniverse + 2);
        const auto may_go = [&](std::uint64_t number) { return (call.pinned >> number & 1U) == 0; };
        if (call.kind == 0) {
          const auto is_free = [&](std::uint64_t number) {
            return may_go(number) && number != parent &&
                   std::none_of(parents.begin(), parents.end(), [&](const auto& each) {
                     return each.second == number && each.first != number;
                   });
          };
          const auto any = [&](const auto& accepts) {
            return std::any_of(parents.begin(), parents.end(),
                               [&](const auto& each) { return accepts(each.first); });
          };
          const auto victim =
              policy->evict(key, {1, 1, Key(parent)}, [&](const Key& each) { return may_go(each.low); });
          RC_ASSERT(victim.has_value() == any(may_go));
          if (!victim) continue;
          RC_ASSERT(parents.contains(victim->low) && may_go(victim->low));
          if (any(is_free)) RC_ASSERT(is_free(victim->low));
          parents.erase(victim->low);
        } else if (call.kind == 1) {
          policy->erase(key);
          parents.erase(call.key);
        } else if (parents.try_emplace(call.key, parent).second) {
          policy->insert(key, {1, 1, Key(parent)});
        } else {
          policy->hit(key);
        }
        RC_ASSERT(policy->size() == parents.size());
      }
    }));
  }
}

TEST(PolicyModel, CurvesAreWhatEachCapacityGivesAlone) {
  std::vector<std::string> names(eviction_policy_names().begin(), eviction_policy_names().end());
  names.emplace_back("belady");
  for (const std::string& name : names) {
    EXPECT_TRUE(rc::check(name, [&name] {
      const auto numbers =
          *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(0, kUniverse));
      const std::vector<Key> accesses(numbers.begin(), numbers.end());
      const auto capacities =
          *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(1, kUniverse + 3));
      const auto curve = simulate_policy_curve(name, accesses, capacities).value();
      RC_ASSERT(curve.size() == capacities.size());
      for (std::size_t i = 0; i < curve.size(); ++i) {
        const PolicyRun alone = simulate_policy(name, accesses, capacities[i]).value();
        RC_ASSERT(curve[i].accesses == alone.accesses);
        RC_ASSERT(curve[i].hits == alone.hits);
        RC_ASSERT(curve[i].usable_hits == alone.hits);
      }
    }));
  }
}

/// LRU by its definition: at each access, the keys accessed since the last one to this key.
TEST(PolicyModel, UsableHitsOfLruAreThoseBehindAWholePrefix) {
  EXPECT_TRUE(rc::check("usable", [] {
    const auto requests = *rc::gen::container<std::vector<std::vector<std::uint64_t>>>(
        rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(0, kUniverse)));
    const auto capacity = *rc::gen::inRange<std::uint64_t>(1, kUniverse + 3);
    std::vector<Key> accesses;
    std::vector<std::uint64_t> lengths;
    std::uint64_t usable_hits = 0;
    for (const auto& request : requests) {
      lengths.push_back(request.size());
      bool usable = true;
      for (const std::uint64_t number : request) {
        const auto last = std::find(accesses.rbegin(), accesses.rend(), Key(number));
        const std::set<Key> since(accesses.rbegin(), last);
        usable = usable && last != accesses.rend() && since.size() < capacity;
        usable_hits += usable ? 1 : 0;
        accesses.emplace_back(number);
      }
    }
    const std::vector<std::uint64_t> capacities{capacity, 1};
    RC_ASSERT(simulate_policy_curve("lru", accesses, capacities, lengths).value().front().usable_hits ==
              usable_hits);
  }));
}

/// The most hits that any choice at any miss gives, found by trying them all.
std::uint64_t most_hits(std::span<const Key> accesses, std::set<Key> cache, std::size_t capacity) {
  if (accesses.empty()) return 0;
  const Key key = accesses.front();
  const auto rest = accesses.subspan(1);
  if (cache.contains(key)) return 1 + most_hits(rest, cache, capacity);
  std::uint64_t best = most_hits(rest, cache, capacity);  // bypass
  if (cache.size() < capacity) {
    cache.insert(key);
    return std::max(best, most_hits(rest, cache, capacity));
  }
  for (const Key& victim : cache) {
    std::set<Key> next = cache;
    next.erase(victim);
    next.insert(key);
    best = std::max(best, most_hits(rest, std::move(next), capacity));
  }
  return best;
}

TEST(PolicyModel, BeladyIsTheOptimumAndNoPolicyBeatsIt) {
  EXPECT_TRUE(rc::check("belady", [] {
    const auto numbers = *rc::gen::resize(
        10, rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(0, 5)));
    const std::vector<Key> accesses(numbers.begin(), numbers.end());
    const auto capacity = *rc::gen::inRange<std::uint64_t>(1, 4);
    const std::uint64_t optimum = simulate_policy("belady", accesses, capacity).value().hits;
    RC_ASSERT(optimum == most_hits(accesses, {}, capacity));
    for (const std::string_view name : eviction_policy_names()) {
      RC_ASSERT(simulate_policy(name, accesses, capacity).value().hits <= optimum);
    }
  }));
}

}  // namespace
}  // namespace harvest
