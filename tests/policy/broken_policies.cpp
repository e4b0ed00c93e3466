// SPDX-License-Identifier: Apache-2.0
#include "policy/broken_policies.hpp"

#include <algorithm>
#include <array>
#include <list>

namespace harvest::test {
namespace {

enum class Fault {
  none,
  evicts_pinned,
  gives_up_at_pinned,
  keeps_victim,
  drops_one_more,
  calls_ghosts_resident,
  counts_erase_twice,
  evicts_erased,
  shares_state,
  remembers_forever,
  keeps_history_of_larger_capacity,
  clears_on_shrink,
  admits_when_asked_for_room,
  ignores_large_objects,
};

int shared_state = 0;

/// LRU as simple as it gets, with a fault.
template <Fault fault>
class Planted final : public EvictionPolicy {
 public:
  explicit Planted(std::uint64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  std::string_view name() const override { return "planted"; }

  void set_capacity(std::uint64_t capacity_bytes) override {
    if (fault == Fault::clears_on_shrink && capacity_bytes < capacity_bytes_) order_.clear();
    capacity_bytes_ = capacity_bytes;
  }

  void insert(const Key& key, const ObjectFacts& facts) override {
    if (fault == Fault::ignores_large_objects && facts.bytes > 8) return;
    order_.push_back(key);
  }

  void hit(const Key& key) override {
    order_.remove(key);
    order_.push_back(key);
  }

  void erase(const Key& key) override {
    if (fault == Fault::counts_erase_twice && !contains(key)) ++erased_;
    if (fault == Fault::evicts_erased && contains(key)) history_.push_back(key);
    order_.remove(key);
  }

  std::optional<Key> evict(const Key& incoming, const ObjectFacts&, const Evictable& evictable) override {
    if (fault == Fault::admits_when_asked_for_room && !contains(incoming)) order_.push_back(incoming);
    if (fault == Fault::evicts_erased && order_.empty() && !history_.empty()) return history_.front();
    auto victim = std::find_if(order_.begin(), order_.end(), evictable);
    if (fault == Fault::evicts_pinned) victim = order_.begin();
    if (fault == Fault::gives_up_at_pinned && victim != order_.begin()) return std::nullopt;
    if (fault == Fault::shares_state && ++shared_state % 3 == 0) {
      const auto newest = std::find_if(order_.rbegin(), order_.rend(), evictable);
      if (newest != order_.rend()) victim = std::prev(newest.base());
    }
    if (victim == order_.end()) return std::nullopt;
    const Key key = *victim;
    if (fault != Fault::keeps_victim) order_.erase(victim);
    if (fault == Fault::drops_one_more && order_.size() > 6) order_.pop_front();
    remember(key);
    return key;
  }

  bool contains(const Key& key) const override {
    const auto in = [&](const std::list<Key>& keys) {
      return std::find(keys.begin(), keys.end(), key) != keys.end();
    };
    return in(order_) || (fault == Fault::calls_ghosts_resident && in(history_));
  }

  std::size_t size() const override { return order_.size() - std::min(order_.size(), erased_); }

 private:
  void remember(const Key& key) {
    if (fault == Fault::calls_ghosts_resident || fault == Fault::remembers_forever) history_.push_back(key);
    if (fault == Fault::keeps_history_of_larger_capacity) {
      history_.push_back(key);
      if (history_.size() > 200) history_.pop_front();
    }
  }

  std::uint64_t capacity_bytes_;
  std::list<Key> order_;  ///< oldest first
  std::list<Key> history_;
  std::size_t erased_ = 0;
};

template <Fault fault>
std::unique_ptr<EvictionPolicy> make(std::uint64_t capacity_bytes) {
  return std::make_unique<Planted<fault>>(capacity_bytes);
}

constexpr std::array kBroken{
    BrokenPolicy{"evicts_pinned", "only_what_may_go_goes", make<Fault::evicts_pinned>},
    BrokenPolicy{"gives_up_at_pinned", "only_what_may_go_goes", make<Fault::gives_up_at_pinned>},
    BrokenPolicy{"keeps_victim", "residents_are_as_told", make<Fault::keeps_victim>},
    BrokenPolicy{"drops_one_more", "residents_are_as_told", make<Fault::drops_one_more>},
    BrokenPolicy{"calls_ghosts_resident", "residents_are_as_told", make<Fault::calls_ghosts_resident>},
    BrokenPolicy{"counts_erase_twice", "erase_forgets_once", make<Fault::counts_erase_twice>},
    BrokenPolicy{"evicts_erased", "erase_forgets_once", make<Fault::evicts_erased>},
    BrokenPolicy{"shares_state", "same_calls_give_same_answers", make<Fault::shares_state>},
    BrokenPolicy{"remembers_forever", "history_is_bounded", make<Fault::remembers_forever>},
    BrokenPolicy{"keeps_history_of_larger_capacity", "history_is_bounded",
                 make<Fault::keeps_history_of_larger_capacity>},
    BrokenPolicy{"clears_on_shrink", "capacity_may_move", make<Fault::clears_on_shrink>},
    BrokenPolicy{"admits_when_asked_for_room", "asking_again_drains",
                 make<Fault::admits_when_asked_for_room>},
    BrokenPolicy{"ignores_large_objects", "any_size_is_taken", make<Fault::ignores_large_objects>},
};

}  // namespace

std::span<const BrokenPolicy> broken_policies() {
  return kBroken;
}

std::unique_ptr<EvictionPolicy> make_sound_policy(std::uint64_t capacity_bytes) {
  return make<Fault::none>(capacity_bytes);
}

}  // namespace harvest::test
