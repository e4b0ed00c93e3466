// SPDX-License-Identifier: Apache-2.0
#include "policy/entry_table.hpp"
#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

struct Adapted {
  bool adapted = false;  ///< this ghost's return has moved the target already
};

/// Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache" (FAST 2003), with bytes for
/// pages. `recent_` holds what was seen once and `frequent_` what was seen again; a miss on a ghost of
/// either moves the target between them towards it.
class Arc final : public TablePolicy<Adapted> {
 public:
  using TablePolicy::TablePolicy;

  std::string_view name() const override { return "arc"; }

  void insert(const Key& key, const ObjectFacts& facts) override {
    Item* ghost = table_.find(key);
    const bool seen_before = ghost != nullptr;
    if (seen_before) adapt(*ghost);
    (seen_before ? frequent_ : recent_).push(table_.admit(key, facts));
    trim_ghosts();
  }

  void hit(const Key& key) override { frequent_.push(table_.resident(key)); }

  std::optional<Key> evict(const Key& incoming, const ObjectFacts&, const Evictable& evictable) override {
    Item* ghost = table_.find(incoming);
    if (ghost != nullptr && !ghost->resident) adapt(*ghost);
    const bool was_frequent = ghost != nullptr && ghost->list == &frequent_ghosts_;
    const bool shrink_recent =
        recent_.bytes() > recent_target_bytes_ || (was_frequent && recent_.bytes() == recent_target_bytes_);
    Item* victim = (shrink_recent ? recent_ : frequent_).oldest_where(evictable);
    if (victim == nullptr) victim = (shrink_recent ? frequent_ : recent_).oldest_where(evictable);
    if (victim == nullptr) return std::nullopt;
    const Key key = victim->key;
    table_.retire(*victim, victim->list == &recent_ ? recent_ghosts_ : frequent_ghosts_);
    victim->adapted = false;
    // The incoming object's own ghost must still be there when it is inserted, so only what the
    // bound of the whole demands goes here; the rest goes with the insert.
    table_.trim(recent_ghosts_, capacity_bytes_);
    table_.trim(frequent_ghosts_, 2 * capacity_bytes_);
    return key;
  }

 private:
  void capacity_changed(std::uint64_t) override {
    recent_target_bytes_ = std::min(recent_target_bytes_, capacity_bytes_);
    trim_ghosts();
  }

  /// A caller that needs room for one object may ask several times; its ghost counts once.
  void adapt(Item& ghost) {
    if (ghost.adapted) return;
    ghost.adapted = true;
    const std::uint64_t recent = recent_ghosts_.bytes();
    const std::uint64_t frequent = frequent_ghosts_.bytes();
    if (ghost.list == &recent_ghosts_) {
      const std::uint64_t step = ghost.bytes * std::max<std::uint64_t>(1, frequent / recent);
      recent_target_bytes_ = std::min(capacity_bytes_, recent_target_bytes_ + step);
    } else {
      const std::uint64_t step = ghost.bytes * std::max<std::uint64_t>(1, recent / frequent);
      recent_target_bytes_ -= std::min(recent_target_bytes_, step);
    }
  }

  /// `recent_` and its ghosts share one capacity, all four lists two.
  void trim_ghosts() {
    const auto rest = [](std::uint64_t whole, std::uint64_t used) { return whole - std::min(whole, used); };
    table_.trim(recent_ghosts_, rest(capacity_bytes_, recent_.bytes()));
    table_.trim(frequent_ghosts_,
                rest(2 * capacity_bytes_, recent_.bytes() + frequent_.bytes() + recent_ghosts_.bytes()));
  }

  std::uint64_t recent_target_bytes_ = 0;
  List recent_;
  List frequent_;
  List recent_ghosts_;
  List frequent_ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_arc(std::uint64_t capacity_bytes) {
  return std::make_unique<Arc>(capacity_bytes);
}

}  // namespace harvest::policy
