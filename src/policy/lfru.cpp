// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.hpp"
#include "policy/ranking.hpp"

namespace harvest::policy {
namespace {

struct Popularity : Ranked {
  double hits = 0;  ///< and the insert, since it came in
};

/// Bilal and Kang, "A cache management scheme for efficient content eviction and replication in cache
/// networks" (IEEE Access 2017): least frequent recently used. A hit moves an object into the
/// privileged half, an LRU list; what falls off its end goes back to the others, which are ranked by
/// frequency, aged as in LFU, and evicted from.
class Lfru final : public TablePolicy<Popularity> {
 public:
  using TablePolicy::TablePolicy;

  std::string_view name() const override { return "lfru"; }

  void insert(const Key& key, const ObjectFacts& facts) override {
    Item& item = table_.admit(key, facts);
    item.hits = 1;
    ranking_.add(item, rank_of(item));
  }

  void hit(const Key& key) override {
    Item& item = table_.resident(key);
    ++item.hits;
    if (item.list == nullptr) ranking_.remove(item);
    privileged_.push(item);
    unprivilege();
  }

  std::optional<Key> evict(const Key&, const ObjectFacts&, const Evictable& evictable) override {
    Item* victim = ranking_.least_where(evictable);
    if (victim != nullptr) {
      age_ = std::max(age_, victim->rank.worth);
    } else {
      victim = privileged_.oldest_where(evictable);
    }
    if (victim == nullptr) return std::nullopt;
    const Key key = victim->key;
    remove(*victim);
    return key;
  }

 private:
  Rank rank_of(const Item& item) { return {age_ + item.hits, ++accesses_}; }

  void unprivilege() {
    while (privileged_.bytes() > capacity_bytes_ / 2) {
      Item& item = *privileged_.oldest();
      List::unlink(item);
      ranking_.add(item, rank_of(item));
    }
  }

  void capacity_changed(std::uint64_t) override { unprivilege(); }

  void remove(Item& item) override {
    if (item.list == nullptr) ranking_.remove(item);
    table_.drop(item);
  }

  double age_ = 0;
  std::uint64_t accesses_ = 0;
  List privileged_;
  Ranking<Item> ranking_;  ///< of those that are not privileged
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lfru(std::uint64_t capacity_bytes) {
  return std::make_unique<Lfru>(capacity_bytes);
}

}  // namespace harvest::policy
