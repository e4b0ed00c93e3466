// SPDX-License-Identifier: Apache-2.0
#include "policy/clock.hpp"
#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

/// The default. Objects seen once are on probation, a queue; objects seen again are protected, and go round
/// a CLOCK whose entries keep what is hit often. A long history of keys that left remembers that they were
/// seen, so that an object whose reuse comes long after its eviction still enters as protected. That is
/// 2Q (Johnson and Shasha, VLDB 1994) with a longer memory, and it serves a small cache, through which
/// most traffic runs once and never again.
///
/// A large cache wants the opposite, plain recency, and the boundary between the parts decides which
/// of the two it gets. The boundary follows the traffic: a miss on a key that left the end of
/// probation a short while ago would have been a hit had probation been a little larger, so probation
/// grows; such a miss on a key that left the protected part shrinks it. Both ends are watched over
/// windows of one size, so the boundary comes to rest where a little more room is worth the same on
/// either side. (ARC moves by all its ghosts, however long ago they left, and so by hits that no boundary
/// could have brought.)
class Adaptive2Q final : public TablePolicy<Rounds> {
 public:
  explicit Adaptive2Q(std::uint64_t capacity_bytes)
      : TablePolicy(capacity_bytes), probation_target_bytes_(share_of_capacity(kInitialShare)) {}

  std::string_view name() const override { return "adaptive_2q"; }

  void insert(const Key& key, const ObjectFacts& facts) override {
    const Item* ghost = table_.find(key);
    const bool seen_before = ghost != nullptr;
    if (seen_before) adapt(*ghost);
    Item& item = table_.admit(key, facts);
    item.rounds = 0;
    (seen_before ? protected_ : probation_).push(item);
  }

  void hit(const Key& key) override {
    Item& item = table_.resident(key);
    if (item.list == &protected_) {
      item.count_hit();
    } else {
      protected_.push(item);
    }
  }

  std::optional<Key> evict(const Key&, const ObjectFacts&, const Evictable& evictable) override {
    const bool shrink_probation = probation_.bytes() > 0 && probation_.bytes() >= probation_target_bytes_;
    Item* victim = shrink_probation ? probation_.oldest_where(evictable) : nullptr;
    if (victim == nullptr) victim = clock_victim(protected_, evictable);
    if (victim == nullptr) victim = probation_.oldest_where(evictable);
    if (victim == nullptr) return std::nullopt;
    const Key key = victim->key;
    table_.retire(*victim, victim->list == &probation_ ? left_probation_ : left_protected_);
    trim_history();
    return key;
  }

 private:
  static constexpr double kInitialShare = 0.3;
  /// The history remembers this many times what the cache holds.
  static constexpr std::uint64_t kHistoryMultiple = 4;
  /// "A short while ago": within this part of the capacity.
  static constexpr std::uint64_t kWindowDivisor = 10;
  /// How far one miss in a window moves the boundary, in sizes of the object. Larger follows change
  /// faster and rests less; no single miss moves it by more than a 32nd of the whole.
  static constexpr std::uint64_t kStepObjects = 16;
  static constexpr std::uint64_t kMaxStepDivisor = 32;
  /// Neither part loses its place altogether: it could not show any more that it deserves one.
  static constexpr std::uint64_t kMinShareDivisor = 100;

  std::uint64_t share_of_capacity(double share) const {
    return static_cast<std::uint64_t>(share * static_cast<double>(capacity_bytes_));
  }

  /// The share of probation stays; a cache that had no room at all begins anew.
  void capacity_changed(std::uint64_t before_bytes) override {
    const double share =
        before_bytes == 0 ? kInitialShare
                          : static_cast<double>(probation_target_bytes_) / static_cast<double>(before_bytes);
    probation_target_bytes_ = share_of_capacity(share);
    trim_history();
  }

  void adapt(const Item& ghost) {
    const std::uint64_t step =
        std::min(kStepObjects * ghost.bytes, std::max(ghost.bytes, capacity_bytes_ / kMaxStepDivisor));
    const std::uint64_t least = capacity_bytes_ / kMinShareDivisor;
    if (ghost.list == &left_probation_) {
      probation_target_bytes_ = std::min(capacity_bytes_ - least, probation_target_bytes_ + step);
    } else if (ghost.list == &left_protected_) {
      probation_target_bytes_ = std::max(least + step, probation_target_bytes_) - step;
    }
  }

  void trim_history() {
    const std::uint64_t window_bytes = capacity_bytes_ / kWindowDivisor;
    for (List* window : {&left_probation_, &left_protected_}) {
      while (window->bytes() > window_bytes) older_.push(*window->oldest());
    }
    const std::uint64_t recent_bytes = left_probation_.bytes() + left_protected_.bytes();
    table_.trim(older_, kHistoryMultiple * capacity_bytes_ - recent_bytes);
  }

  std::uint64_t probation_target_bytes_;
  List probation_;
  List protected_;
  List left_probation_;  ///< the ghosts that left last, by the part that they left
  List left_protected_;
  List older_;  ///< all other ghosts
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_adaptive_2q(std::uint64_t capacity_bytes) {
  return std::make_unique<Adaptive2Q>(capacity_bytes);
}

}  // namespace harvest::policy
