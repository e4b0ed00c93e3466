// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/policy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "base/key_hash.hpp"

/// What the policies are made of: entries in one hash table, each on at most one list.
namespace harvest::policy {

struct Nothing {};

/// What a policy remembers of a key, resident or not. `Extra` adds what one policy needs. Entries do
/// not move in memory while they are in their table.
template <typename Extra = Nothing>
struct Entry : Extra {
  Key key;
  std::uint64_t bytes = 1;  ///< at least 1, so that a bound in bytes also bounds the count
  bool resident = false;    ///< otherwise a ghost: a key that left and is remembered
  Entry* newer = nullptr;
  Entry* older = nullptr;
};

/// A doubly linked list through its entries, newest first. All operations are O(1) but
/// `oldest_where`, which also pays for the entries that it passes.
template <typename Entry>
class EntryList {
 public:
  [[nodiscard]] bool empty() const { return oldest_ == nullptr; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] Entry* oldest() const { return oldest_; }

  void push_newest(Entry& entry) {
    entry.newer = nullptr;
    entry.older = newest_;
    (newest_ == nullptr ? oldest_ : newest_->newer) = &entry;
    newest_ = &entry;
    bytes_ += entry.bytes;
  }

  void remove(Entry& entry) {
    (entry.newer == nullptr ? newest_ : entry.newer->older) = entry.older;
    (entry.older == nullptr ? oldest_ : entry.older->newer) = entry.newer;
    bytes_ -= entry.bytes;
  }

  void renew(Entry& entry) {
    remove(entry);
    push_newest(entry);
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

  [[nodiscard]] bool contains_resident(const Key& key) const {
    const auto found = entries_.find(key);
    return found != entries_.end() && found->second.resident;
  }

  [[nodiscard]] std::size_t residents() const { return residents_; }

  /// The entry of `key`, made if there is none; resident and of the size in `facts` from now on.
  Entry& admit(const Key& key, const ObjectFacts& facts) {
    Entry& entry = entries_.try_emplace(key).first->second;
    entry.key = key;
    entry.bytes = std::max<std::uint64_t>(facts.bytes, 1);
    entry.resident = true;
    ++residents_;
    return entry;
  }

  /// The resident becomes a ghost.
  void retire(Entry& entry) {
    entry.resident = false;
    --residents_;
  }

  void drop(Entry& entry) {
    if (entry.resident) --residents_;
    entries_.erase(Key{entry.key});
  }

 private:
  std::unordered_map<Key, Entry, KeyHash> entries_;
  std::size_t residents_ = 0;
};

}  // namespace harvest::policy
