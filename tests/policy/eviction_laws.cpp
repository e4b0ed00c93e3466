// SPDX-License-Identifier: Apache-2.0
#include "policy/eviction_laws.hpp"

#include <fmt/format.h>

#include <array>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "policy/live_allocations.hpp"

namespace harvest::test {
namespace {

constexpr std::uint64_t kCapacity = 24;
constexpr std::uint64_t kUniverse = 64;
using Violation = std::optional<std::string>;

/// A policy beside the set of residents that it should have. Keeps the first difference.
class Tracked {
 public:
  Tracked(const MakeEviction& make, std::uint64_t capacity_bytes)
      : policy_(make(capacity_bytes)), capacity_bytes_(capacity_bytes) {}

  /// What a cache does on an access: a hit, or room made and an insert, if it fits and may come in.
  void access(
      std::uint64_t number, std::uint64_t bytes,
      const std::function<bool(std::uint64_t)>& may_go = [](std::uint64_t) { return true; }) {
    const Key key(number);
    const ObjectFacts facts{bytes, 100.0 * static_cast<double>(1 + number % 7)};
    if (residents_.contains(number)) {
      policy_->hit(key);
    } else {
      while (used_bytes_ + bytes > capacity_bytes_) {
        const auto victim = evict(number, facts, may_go);
        if (!victim || *victim == number) return;
      }
      policy_->insert(key, facts);
      residents_[number] = bytes;
      used_bytes_ += bytes;
    }
    compare("an access");
  }

  std::optional<std::uint64_t> evict(std::uint64_t incoming, const ObjectFacts& facts,
                                     const std::function<bool(std::uint64_t)>& may_go) {
    const bool expects_victim = [&] {
      for (const auto& [number, bytes] : residents_) {
        if (may_go(number)) return true;
      }
      return false;
    }();
    const auto victim = policy_->evict(Key(incoming), facts, [&](const Key& key) {
      if (!residents_.contains(key.low))
        note(fmt::format("asked whether {} may go, which is not resident", key.low));
      return may_go(key.low);
    });
    answers_.push_back(victim ? victim->low : kUniverse);
    if (!victim) {
      if (expects_victim) note("evicted nothing though a resident may go");
      return std::nullopt;
    }
    if (victim->low != incoming || residents_.contains(incoming)) {
      if (!residents_.contains(victim->low)) {
        note(fmt::format("evicted {}, which is not resident", victim->low));
        return std::nullopt;
      }
      if (!may_go(victim->low)) note(fmt::format("evicted {}, which may not go", victim->low));
      forget(victim->low);
    }
    compare("an eviction");
    return victim->low;
  }

  void erase(std::uint64_t number) {
    policy_->erase(Key(number));
    if (residents_.contains(number)) forget(number);
    compare("an erase");
  }

  void set_capacity(std::uint64_t capacity_bytes) {
    capacity_bytes_ = capacity_bytes;
    policy_->set_capacity(capacity_bytes);
    compare("a change of capacity");
  }

  /// Makes room until the residents fit the capacity.
  void shrink_to_capacity() {
    while (used_bytes_ > capacity_bytes_ && !violation_) {
      evict(kUniverse + 1, {}, [](std::uint64_t) { return true; });
    }
  }

  [[nodiscard]] std::size_t size() const { return residents_.size(); }
  [[nodiscard]] const std::vector<std::uint64_t>& answers() const { return answers_; }
  [[nodiscard]] const Violation& violation() const { return violation_; }

 private:
  void forget(std::uint64_t number) {
    used_bytes_ -= residents_.at(number);
    residents_.erase(number);
  }

  void compare(std::string_view after) {
    if (violation_) return;
    if (policy_->size() != residents_.size()) {
      note(
          fmt::format("says {} residents after {}; there are {}", policy_->size(), after, residents_.size()));
    }
    for (std::uint64_t number = 0; number < kUniverse; ++number) {
      const bool is_resident = residents_.contains(number);
      if (policy_->contains(Key(number)) != is_resident) {
        note(fmt::format("says that {} is {}resident after {}", number, is_resident ? "not " : "", after));
      }
    }
  }

  void note(std::string what) {
    if (!violation_) violation_ = std::move(what);
  }

  std::unique_ptr<EvictionPolicy> policy_;
  std::uint64_t capacity_bytes_;
  std::uint64_t used_bytes_ = 0;
  std::map<std::uint64_t, std::uint64_t> residents_;  ///< bytes by key
  std::vector<std::uint64_t> answers_;                ///< what each `evict` said
  Violation violation_;
};

/// Traffic with reuse: small keys are far more frequent than large ones.
class Traffic {
 public:
  explicit Traffic(std::uint64_t seed) : random_(seed) {}
  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
  std::uint64_t key() { return below(1 + below(kUniverse)); }

 private:
  std::mt19937_64 random_;
};

Violation residents_are_as_told(const MakeEviction& make) {
  Tracked tracked(make, kCapacity);
  Traffic traffic(1);
  for (int i = 0; i < 4000 && !tracked.violation(); ++i) {
    const std::uint64_t key = traffic.key();
    traffic.below(10) == 0 ? tracked.erase(key) : tracked.access(key, 1 + key % 4);
  }
  return tracked.violation();
}

Violation only_what_may_go_goes(const MakeEviction& make) {
  Tracked tracked(make, kCapacity);
  Traffic traffic(2);
  for (std::uint64_t i = 0; i < 4000 && !tracked.violation(); ++i) {
    // From nothing pinned to everything pinned, another set each time.
    const std::uint64_t pinned_of_8 = i % 9;
    const std::uint64_t key = traffic.key();
    tracked.access(key, 1 + key % 2,
                   [&](std::uint64_t number) { return (number * 31 + i) % 8 >= pinned_of_8; });
  }
  return tracked.violation();
}

Violation erase_forgets_once(const MakeEviction& make) {
  Tracked tracked(make, kCapacity);
  for (std::uint64_t key = 0; key < kUniverse; ++key) tracked.access(key, 1);
  tracked.access(kUniverse - 1, 1);
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t key = 0; key < kUniverse; ++key) {  // residents, keys that left, all twice
      tracked.erase(key);
      tracked.erase(key);
    }
    tracked.erase(kUniverse + 7);
    if (tracked.size() != 0) return "has residents after all were erased";
    tracked.evict(kUniverse + 1, {}, [](std::uint64_t) { return true; });
    for (std::uint64_t key = 0; key < kCapacity; ++key) tracked.access(key, 1);
  }
  return tracked.violation();
}

Violation same_calls_give_same_answers(const MakeEviction& make) {
  std::array<std::vector<std::uint64_t>, 2> answers;
  for (auto& answer : answers) {
    Tracked tracked(make, kCapacity);
    Traffic traffic(3);
    for (int i = 0; i < 2000; ++i) {
      const std::uint64_t key = traffic.key();
      tracked.access(key, 1 + key % 3);
    }
    answer = tracked.answers();
  }
  if (answers[0] != answers[1]) return "answered otherwise the second time";
  return std::nullopt;
}

/// Shows on the count of allocations, since a history is not to be seen otherwise.
Violation history_is_bounded(const MakeEviction& make) {
  constexpr std::uint64_t kRoom = 64;
  const std::int64_t before = live_allocations();
  const auto policy = make(kRoom);
  const EvictionPolicy::Evictable any = [](const Key&) { return true; };
  std::uint64_t next = 0;
  const auto feed = [&](std::uint64_t count) {
    for (const std::uint64_t end = next + count; next < end; ++next) {
      for (const std::uint64_t number : {next, next - next % 5}) {  // some come twice, some return
        const Key key(number);
        if (policy->contains(key)) {
          policy->hit(key);
        } else if (policy->size() < kRoom || policy->evict(key, {}, any) != key) {
          policy->insert(key, {});
        }
      }
    }
    return live_allocations() - before;
  };
  const std::int64_t once = feed(100 * kRoom);
  const std::int64_t twice = feed(100 * kRoom);
  if (twice > once + static_cast<std::int64_t>(kRoom)) {
    return fmt::format("holds {} allocations after {} keys and {} after twice as many", once, next / 2,
                       twice);
  }
  policy->set_capacity(1);
  while (policy->size() > 1) {
    if (!policy->evict(Key(next), {}, any)) return "evicted nothing though a resident may go";
  }
  const std::int64_t small = live_allocations() - before;
  if (small > static_cast<std::int64_t>(kRoom)) {
    return fmt::format("holds {} allocations when the capacity has shrunk to 1", small);
  }
  return std::nullopt;
}

Violation capacity_may_move(const MakeEviction& make) {
  Tracked tracked(make, kCapacity);
  Traffic traffic(4);
  constexpr std::array<std::uint64_t, 7> kCapacities{kCapacity, 7, 1, 0, 3, 2 * kCapacity, kCapacity};
  for (int round = 0; round < 40 && !tracked.violation(); ++round) {
    for (const std::uint64_t capacity : kCapacities) {
      tracked.set_capacity(capacity);
      // Residents above the new capacity stay until somebody asks.
      for (int i = 0; i < 5; ++i) tracked.erase(traffic.key());
      tracked.shrink_to_capacity();
      for (int i = 0; i < 60; ++i) {
        const std::uint64_t key = traffic.key();
        tracked.access(key, 1 + key % 2);
      }
    }
  }
  return tracked.violation();
}

Violation asking_again_drains(const MakeEviction& make) {
  Tracked tracked(make, kCapacity);
  Traffic traffic(5);
  for (int round = 0; round < 20 && !tracked.violation(); ++round) {
    for (int i = 0; i < 100; ++i) tracked.access(traffic.key(), 1);
    // The incoming key is a new one, one that left, or one that is there. It never comes.
    const std::uint64_t incoming = round % 2 == 0 ? traffic.key() : kUniverse + 1;
    for (std::size_t left = tracked.size(); left > 0; --left) {
      const auto victim = tracked.evict(incoming, {}, [](std::uint64_t) { return true; });
      if (victim == incoming) break;
    }
    tracked.erase(incoming);
  }
  // So do a few residents that were hit often, in a cache with much room.
  Tracked roomy(make, 100 * kCapacity);
  for (std::uint64_t i = 0; i < 15; ++i) roomy.access(i % 3, 1);
  for (int left = 3; left > 0; --left) roomy.evict(kUniverse + 1, {}, [](std::uint64_t) { return true; });
  if (roomy.violation()) return roomy.violation();
  return tracked.violation();
}

Violation any_size_is_taken(const MakeEviction& make) {
  constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max() / 4;
  for (const std::uint64_t capacity : {kHuge, kCapacity}) {
    Tracked tracked(make, capacity);
    Traffic traffic(6);
    for (int i = 0; i < 1000 && !tracked.violation(); ++i) {
      constexpr std::array<std::uint64_t, 5> kSizes{0, 1, kCapacity / 2, kCapacity, kHuge / 3};
      const std::uint64_t key = traffic.key();
      tracked.access(key, kSizes[key % kSizes.size()]);
    }
    if (tracked.violation()) return tracked.violation();
  }
  return std::nullopt;
}

constexpr std::array kLaws{
    EvictionLaw{"residents_are_as_told", residents_are_as_told},
    EvictionLaw{"only_what_may_go_goes", only_what_may_go_goes},
    EvictionLaw{"erase_forgets_once", erase_forgets_once},
    EvictionLaw{"same_calls_give_same_answers", same_calls_give_same_answers},
    EvictionLaw{"history_is_bounded", history_is_bounded},
    EvictionLaw{"capacity_may_move", capacity_may_move},
    EvictionLaw{"asking_again_drains", asking_again_drains},
    EvictionLaw{"any_size_is_taken", any_size_is_taken},
};

}  // namespace

std::span<const EvictionLaw> eviction_laws() {
  return kLaws;
}

}  // namespace harvest::test
