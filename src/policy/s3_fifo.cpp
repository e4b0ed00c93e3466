// SPDX-License-Identifier: Apache-2.0
#include "policy/entry_table.hpp"
#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

struct Hits {
  std::uint8_t hits = 0;  ///< since it came into its queue, at most 3
};

/// Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023). Newcomers pass through a
/// small queue, a tenth of the room. Those that were hit there go on to the main queue, as does what
/// comes back while its ghost is remembered; in the main queue each hit buys one more round.
class S3Fifo final : public TablePolicy<Hits> {
 public:
  using TablePolicy::TablePolicy;

  std::string_view name() const override { return "s3_fifo"; }

  void insert(const Key& key, const ObjectFacts& facts) override {
    const bool seen_before = table_.find(key) != nullptr;
    Item& item = table_.admit(key, facts);
    item.hits = 0;
    (seen_before ? main_ : small_).push(item);
  }

  void hit(const Key& key) override {
    Item& item = *table_.find(key);
    if (item.hits < kMaxHits) ++item.hits;
  }

  std::optional<Key> evict(const Key&, const ObjectFacts&, const Evictable& evictable) override {
    if (small_.bytes() >= small_bytes()) {
      if (const auto key = evict_small(evictable)) return key;
    }
    if (const auto key = evict_main(evictable)) return key;
    return evict_small(evictable);
  }

 private:
  static constexpr std::uint8_t kMaxHits = 3;
  static constexpr std::uint8_t kHitsToStay = 2;

  void capacity_changed(std::uint64_t) override { table_.trim(ghosts_, ghost_bytes()); }

  std::uint64_t small_bytes() const { return capacity_bytes_ / 10; }
  std::uint64_t ghost_bytes() const { return capacity_bytes_ - small_bytes(); }

  std::optional<Key> evict_small(const Evictable& evictable) {
    for (Item* item = small_.oldest(); item != nullptr;) {
      Item& candidate = *item;
      item = item->newer;
      if (candidate.hits >= kHitsToStay) {
        candidate.hits = 0;
        main_.push(candidate);
      } else if (evictable(candidate.key)) {
        const Key key = candidate.key;
        table_.retire(candidate, ghosts_);
        table_.trim(ghosts_, ghost_bytes());
        return key;
      }
    }
    return std::nullopt;
  }

  /// Ends: each turn of the loop either passes an item that stays where it is or takes a hit from one.
  std::optional<Key> evict_main(const Evictable& evictable) {
    for (Item* item = main_.oldest(); item != nullptr;) {
      Item& candidate = *item;
      if (!evictable(candidate.key)) {
        item = candidate.newer;
      } else if (candidate.hits > 0) {
        --candidate.hits;
        // The only item, or the newest, comes up again at once.
        item = candidate.newer == nullptr ? &candidate : candidate.newer;
        main_.push(candidate);
      } else {
        const Key key = candidate.key;
        table_.drop(candidate);
        return key;
      }
    }
    return std::nullopt;
  }

  List small_;
  List main_;
  List ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_s3_fifo(std::uint64_t capacity_bytes) {
  return std::make_unique<S3Fifo>(capacity_bytes);
}

}  // namespace harvest::policy
