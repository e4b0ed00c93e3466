// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/policy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "base/assert.hpp"
#include "base/key_hash.hpp"

/// What the policies are made of: entries in one hash table, each on at most one list.
namespace harvest::policy {

template <typename Entry>
class EntryList;

struct Nothing {};

/// What a policy remembers of a key. `Extra` adds what one policy needs. Entries do not move in memory
/// while they are in their table.
template <typename Extra = Nothing>
struct Entry : Extra {
  Key key;
  std::uint64_t bytes = 1;  ///< at least 1, so that a bound in bytes also bounds the count
  bool resident = false;    ///< otherwise a ghost: a key that left and is remembered
  EntryList<Entry>* list = nullptr;
  Entry* newer = nullptr;
  Entry* older = nullptr;
};

/// A doubly linked list through its entries, from newest to oldest. All operations are O(1) but
/// `oldest_where`, which also pays for the entries that it passes.
template <typename Entry>
class EntryList {
 public:
  EntryList() = default;
  EntryList(const EntryList&) = delete;  // entries point to it
  EntryList& operator=(const EntryList&) = delete;

  [[nodiscard]] bool empty() const { return oldest_ == nullptr; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] Entry* oldest() const { return oldest_; }

  /// Makes `entry` the newest here; it leaves the list that it is on, which may be this one.
  void push(Entry& entry) {
    unlink(entry);
    entry.list = this;
    entry.older = newest_;
    (newest_ == nullptr ? oldest_ : newest_->newer) = &entry;
    newest_ = &entry;
    bytes_ += entry.bytes;
  }

  /// Takes `entry` off its list, if it is on one.
  static void unlink(Entry& entry) {
    if (entry.list == nullptr) return;
    EntryList& list = *entry.list;
    (entry.newer == nullptr ? list.newest_ : entry.newer->older) = entry.older;
    (entry.older == nullptr ? list.oldest_ : entry.older->newer) = entry.newer;
    list.bytes_ -= entry.bytes;
    entry.list = nullptr;
    entry.newer = entry.older = nullptr;
  }

  /// The oldest entry whose key `accepts`, or null.
  template <typename Accepts>
  [[nodiscard]] Entry* oldest_where(const Accepts& accepts) const {
    Entry* entry = oldest_;
    while (entry != nullptr && !accepts(entry->key)) entry = entry->newer;
    return entry;
  }

 private:
  Entry* newest_ = nullptr;
  Entry* oldest_ = nullptr;
  std::uint64_t bytes_ = 0;
};

/// All entries of a policy by key, and how many of them are resident.
template <typename Entry>
class EntryTable {
 public:
  [[nodiscard]] Entry* find(const Key& key) {
    const auto found = entries_.find(key);
    return found == entries_.end() ? nullptr : &found->second;
  }

  [[nodiscard]] Entry& resident(const Key& key) {
    Entry* entry = find(key);
    HARVEST_ASSERT(entry != nullptr && entry->resident, "a hit on a key that is not resident");
    return *entry;
  }

  [[nodiscard]] bool contains_resident(const Key& key) const {
    const auto found = entries_.find(key);
    return found != entries_.end() && found->second.resident;
  }

  [[nodiscard]] std::size_t residents() const { return residents_; }

  /// Makes `key` resident, with the size in `facts`. Its entry is on no list afterwards: whoever wants to
  /// know what the ghost was finds it first.
  Entry& admit(const Key& key, const ObjectFacts& facts) {
    Entry& entry = entries_.try_emplace(key).first->second;
    HARVEST_ASSERT(!entry.resident, "a key was inserted twice");
    EntryList<Entry>::unlink(entry);
    entry.key = key;
    entry.bytes = std::max<std::uint64_t>(facts.bytes, 1);
    entry.resident = true;
    ++residents_;
    return entry;
  }

  /// The resident becomes a ghost on `ghosts`.
  void retire(Entry& entry, EntryList<Entry>& ghosts) {
    entry.resident = false;
    --residents_;
    ghosts.push(entry);
  }

  void drop(Entry& entry) {
    EntryList<Entry>::unlink(entry);
    if (entry.resident) --residents_;
    entries_.erase(Key{entry.key});
  }

  /// Forgets the oldest of `list` until it holds at most `bytes`.
  void trim(const EntryList<Entry>& list, std::uint64_t bytes) {
    while (list.bytes() > bytes) drop(*list.oldest());
  }

 private:
  std::unordered_map<Key, Entry, KeyHash> entries_;
  std::size_t residents_ = 0;
};

/// The part that policies over such a table share.
template <typename Extra = Nothing>
class TablePolicy : public EvictionPolicy {
 public:
  explicit TablePolicy(std::uint64_t capacity_bytes) : capacity_bytes_(std::min(capacity_bytes, kMaxBytes)) {}

  void set_capacity(std::uint64_t capacity_bytes) final {
    const std::uint64_t before_bytes = capacity_bytes_;
    capacity_bytes_ = std::min(capacity_bytes, kMaxBytes);
    capacity_changed(before_bytes);
  }

  void erase(const Key& key) final {
    if (Item* item = table_.find(key); item != nullptr && item->resident) remove(*item);
  }

  [[nodiscard]] bool contains(const Key& key) const final { return table_.contains_resident(key); }
  [[nodiscard]] std::size_t size() const final { return table_.residents(); }

 protected:
  using Item = Entry<Extra>;
  using List = EntryList<Item>;

  virtual void capacity_changed(std::uint64_t /*before_bytes*/) {}

  /// Forgets a resident altogether.
  virtual void remove(Item& item) { table_.drop(item); }

  /// No multiple of a capacity that a policy computes overflows.
  static constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 56U;

  std::uint64_t capacity_bytes_;
  EntryTable<Item> table_;
};

}  // namespace harvest::policy
