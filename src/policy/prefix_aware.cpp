// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <unordered_map>
#include <utility>

#include "base/assert.hpp"
#include "base/key_hash.hpp"
#include "policy/policies.hpp"

namespace harvest {
namespace {

/// Hides residents that other residents need from a policy that knows nothing of that.
class PrefixAware final : public EvictionPolicy {
 public:
  PrefixAware(std::unique_ptr<EvictionPolicy> base, std::size_t most_passed)
      : base_(std::move(base)), most_passed_(most_passed), name_("prefix_" + std::string(base_->name())) {}

  std::string_view name() const override { return name_; }
  void set_capacity(std::uint64_t capacity_bytes) override { base_->set_capacity(capacity_bytes); }
  void hit(const Key& key) override { base_->hit(key); }
  bool contains(const Key& key) const override { return base_->contains(key); }
  std::size_t size() const override { return base_->size(); }

  void insert(const Key& key, const ObjectFacts& facts) override {
    base_->insert(key, facts);
    if (!facts.parent || *facts.parent == key) return;
    links_[key].parent = facts.parent;
    ++links_[*facts.parent].children;
  }

  void erase(const Key& key) override {
    base_->erase(key);
    unlink(key);
  }

  std::optional<Key> evict(const Key& incoming, const ObjectFacts& facts,
                           const Evictable& evictable) override {
    std::size_t passed = 0;
    const Evictable needed_by_none = [&](const Key& key) {
      if (!evictable(key)) return false;
      const bool needed = is_needed(key) || key == facts.parent;  // nor should a parent go for its own child
      return !needed || passed++ >= most_passed_;
    };
    auto victim = base_->evict(incoming, facts, needed_by_none);
    if (!victim)
      victim =
          base_->evict(incoming, facts, [&](const Key& key) { return !is_needed(key) && evictable(key); });
    // All who may go are needed: their children are in use, or they name each other as parents.
    if (!victim) victim = base_->evict(incoming, facts, evictable);
    if (victim) unlink(*victim);
    return victim;
  }

 private:
  /// Of a resident with a parent, or of a key that residents name as theirs, resident or not.
  struct Link {
    std::optional<Key> parent;   ///< only while resident
    std::uint64_t children = 0;  ///< resident ones
  };

  bool is_needed(const Key& key) const {
    const auto found = links_.find(key);
    return found != links_.end() && found->second.children != 0;
  }

  /// `key` is no resident any more, if it was one.
  void unlink(const Key& key) {
    const auto found = links_.find(key);
    if (found == links_.end() || base_->contains(key)) return;
    const auto parent = std::exchange(found->second.parent, std::nullopt);
    if (found->second.children == 0) links_.erase(found);
    if (!parent) return;
    const auto above = links_.find(*parent);
    HARVEST_ASSERT(above != links_.end() && above->second.children != 0, "a resident's parent is linked");
    if (--above->second.children == 0 && !above->second.parent) links_.erase(above);
  }

  std::unique_ptr<EvictionPolicy> base_;
  std::size_t most_passed_;
  std::string name_;
  std::unordered_map<Key, Link, KeyHash> links_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_prefix_aware(std::unique_ptr<EvictionPolicy> base,
                                                  std::size_t most_passed) {
  HARVEST_ASSERT(base != nullptr, "a policy to make prefix-aware");
  return std::make_unique<PrefixAware>(std::move(base), most_passed);
}

}  // namespace harvest
