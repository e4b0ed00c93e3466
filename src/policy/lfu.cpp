// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "policy/policies.hpp"
#include "policy/ranking.hpp"

namespace harvest::policy {
namespace {

struct Worth : Ranked {
  double hits = 0;    ///< and the insert, since it came in
  double weight = 1;  ///< what one hit is worth
};

/// The resident of least worth goes; worth = age + hits x weight, where age is the worth of the last
/// that went, so that what was popular once does not stay for good.
/// LFU with dynamic ageing (Arlitt et al. 1999): each hit weighs 1. GDSF (Cherkasova 1998): a hit
/// weighs what the miss would have cost for each byte, so that among equally popular objects the large
/// and cheap go first.
class AgedFrequency final : public TablePolicy<Worth> {
 public:
  AgedFrequency(std::string_view name, std::uint64_t capacity_bytes, bool by_cost_and_size)
      : TablePolicy(capacity_bytes), name_(name), by_cost_and_size_(by_cost_and_size) {}

  std::string_view name() const override { return name_; }

  void insert(const Key& key, const ObjectFacts& facts) override {
    HARVEST_ASSERT(facts.reload_cost_ns >= 0,  // what is no number has no rank
                   fmt::format("reload_cost_ns is {}, at least 0", facts.reload_cost_ns));
    Item& item = table_.admit(key, facts);
    item.hits = 1;
    item.weight = by_cost_and_size_ ? facts.reload_cost_ns / static_cast<double>(item.bytes) : 1;
    ranking_.add(item, rank_of(item));
  }

  void hit(const Key& key) override {
    Item& item = table_.resident(key);
    ++item.hits;
    ranking_.move(item, rank_of(item));
  }

  std::optional<Key> evict(const Key&, const ObjectFacts&, const Evictable& evictable) override {
    Item* victim = ranking_.least_where(evictable);
    if (victim == nullptr) return std::nullopt;
    const Key key = victim->key;
    age_ = std::max(age_, victim->rank.worth);
    remove(*victim);
    return key;
  }

 private:
  Rank rank_of(const Item& item) { return {age_ + item.hits * item.weight, ++accesses_}; }

  void remove(Item& item) override {
    ranking_.remove(item);
    table_.drop(item);
  }

  std::string_view name_;
  bool by_cost_and_size_;
  double age_ = 0;
  std::uint64_t accesses_ = 0;
  Ranking<Item> ranking_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lfu(std::uint64_t capacity_bytes) {
  return std::make_unique<AgedFrequency>("lfu", capacity_bytes, false);
}

std::unique_ptr<EvictionPolicy> make_gdsf(std::uint64_t capacity_bytes) {
  return std::make_unique<AgedFrequency>("gdsf", capacity_bytes, true);
}

}  // namespace harvest::policy
