// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.hpp"
#include "policy/ranking.hpp"

namespace harvest::policy {
namespace {

/// O'Neil et al., "The LRU-K page replacement algorithm" (SIGMOD 1993) with K = 2: the resident whose
/// last access but one is longest ago goes, and before all those the ones accessed only once, LRU. Keys
/// that left keep the time of their last access in a history of `kHistoryMultiple` times the capacity.
class Lru2 final : public TablePolicy<Ranked> {
 public:
  using TablePolicy::TablePolicy;

  std::string_view name() const override { return "lru_2"; }

  void insert(const Key& key, const ObjectFacts& facts) override {
    const Item* ghost = table_.find(key);
    const std::uint64_t last_but_one = ghost == nullptr ? kNeverBefore : ghost->rank.access;
    ranking_.add(table_.admit(key, facts), {static_cast<double>(last_but_one), ++accesses_});
  }

  void hit(const Key& key) override {
    Item& item = table_.resident(key);
    ranking_.move(item, {static_cast<double>(item.rank.access), ++accesses_});
  }

  std::optional<Key> evict(const Key&, const ObjectFacts&, const Evictable& evictable) override {
    Item* victim = ranking_.least_where(evictable);
    if (victim == nullptr) return std::nullopt;
    const Key key = victim->key;
    ranking_.remove(*victim);
    table_.retire(*victim, history_);
    table_.trim(history_, kHistoryMultiple * capacity_bytes_);
    return key;
  }

 private:
  static constexpr std::uint64_t kNeverBefore = 0;
  static constexpr std::uint64_t kHistoryMultiple = 8;

  void capacity_changed(std::uint64_t) override { table_.trim(history_, kHistoryMultiple * capacity_bytes_); }

  void remove(Item& item) override {
    ranking_.remove(item);
    table_.drop(item);
  }

  std::uint64_t accesses_ = 0;
  Ranking<Item> ranking_;
  List history_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru_2(std::uint64_t capacity_bytes) {
  return std::make_unique<Lru2>(capacity_bytes);
}

}  // namespace harvest::policy
