// SPDX-License-Identifier: Apache-2.0
#include "policy/entry_table.hpp"
#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

/// One list. FIFO orders it by arrival, LRU by the last access; both evict the oldest.
class QueuePolicy final : public TablePolicy<> {
 public:
  QueuePolicy(std::string_view name, std::uint64_t capacity_bytes, bool hit_renews)
      : TablePolicy(capacity_bytes), name_(name), hit_renews_(hit_renews) {}

  std::string_view name() const override { return name_; }

  void insert(const Key& key, const ObjectFacts& facts) override { queue_.push(table_.admit(key, facts)); }

  void hit(const Key& key) override {
    if (hit_renews_) queue_.push(table_.resident(key));
  }

  std::optional<Key> evict(const Key&, const ObjectFacts&, const Evictable& evictable) override {
    Item* victim = queue_.oldest_where(evictable);
    if (victim == nullptr) return std::nullopt;
    const Key key = victim->key;
    table_.drop(*victim);
    return key;
  }

 private:
  std::string_view name_;
  bool hit_renews_;
  List queue_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_fifo(std::uint64_t capacity_bytes) {
  return std::make_unique<QueuePolicy>("fifo", capacity_bytes, false);
}

std::unique_ptr<EvictionPolicy> make_lru(std::uint64_t capacity_bytes) {
  return std::make_unique<QueuePolicy>("lru", capacity_bytes, true);
}

}  // namespace harvest::policy
