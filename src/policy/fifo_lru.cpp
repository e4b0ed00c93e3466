// SPDX-License-Identifier: Apache-2.0
#include "policy/entry_table.hpp"
#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

/// One list. FIFO orders it by arrival, LRU by the last access; both evict the oldest.
class QueuePolicy final : public EvictionPolicy {
 public:
  QueuePolicy(std::string_view name, bool hit_renews) : name_(name), hit_renews_(hit_renews) {}

  std::string_view name() const override { return name_; }
  void set_capacity(std::uint64_t) override {}
  bool contains(const Key& key) const override { return table_.contains_resident(key); }
  std::size_t size() const override { return table_.residents(); }

  void insert(const Key& key, const ObjectFacts& facts) override {
    queue_.push_newest(table_.admit(key, facts));
  }

  void hit(const Key& key) override {
    if (hit_renews_) queue_.renew(*table_.find(key));
  }

  void erase(const Key& key) override {
    if (Entry<>* entry = table_.find(key)) remove(*entry);
  }

  std::optional<Key> evict(const Key&, const ObjectFacts&, const Evictable& evictable) override {
    Entry<>* victim = queue_.oldest_where(evictable);
    if (victim == nullptr) return std::nullopt;
    const Key key = victim->key;
    remove(*victim);
    return key;
  }

 private:
  void remove(Entry<>& entry) {
    queue_.remove(entry);
    table_.drop(entry);
  }

  std::string_view name_;
  bool hit_renews_;
  EntryTable<Entry<>> table_;
  EntryList<Entry<>> queue_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_fifo(std::uint64_t) {
  return std::make_unique<QueuePolicy>("fifo", false);
}

std::unique_ptr<EvictionPolicy> make_lru(std::uint64_t) {
  return std::make_unique<QueuePolicy>("lru", true);
}

}  // namespace harvest::policy
