// SPDX-License-Identifier: Apache-2.0
#include "policy/clock.hpp"
#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

/// Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023). Newcomers pass through a
/// small queue, a tenth of the room. Those that were hit there go on to the main queue, as does what
/// comes back while its ghost is remembered; in the main queue each hit buys one more round.
class S3Fifo final : public TablePolicy<Rounds> {
 public:
  using TablePolicy::TablePolicy;

  std::string_view name() const override { return "s3_fifo"; }

  void insert(const Key& key, const ObjectFacts& facts) override {
    const bool seen_before = table_.find(key) != nullptr;
    Item& item = table_.admit(key, facts);
    item.rounds = 0;
    (seen_before ? main_ : small_).push(item);
  }

  void hit(const Key& key) override { table_.resident(key).count_hit(); }

  std::optional<Key> evict(const Key&, const ObjectFacts&, const Evictable& evictable) override {
    if (small_.bytes() >= small_bytes()) {
      if (const auto key = evict_small(evictable)) return key;
    }
    if (const auto key = evict_main(evictable)) return key;
    if (const auto key = evict_small(evictable)) return key;
    return evict_main(evictable);  // all of the small queue was hit and went there
  }

 private:
  static constexpr std::uint8_t kHitsToStay = 2;

  void capacity_changed(std::uint64_t) override { table_.trim(ghosts_, ghost_bytes()); }

  std::uint64_t small_bytes() const { return capacity_bytes_ / 10; }
  std::uint64_t ghost_bytes() const { return capacity_bytes_ - small_bytes(); }

  std::optional<Key> evict_small(const Evictable& evictable) {
    for (Item* item = small_.oldest(); item != nullptr;) {
      Item& candidate = *item;
      item = item->newer;
      if (candidate.rounds >= kHitsToStay) {
        candidate.rounds = 0;
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

  std::optional<Key> evict_main(const Evictable& evictable) {
    Item* victim = clock_victim(main_, evictable);
    if (victim == nullptr) return std::nullopt;
    const Key key = victim->key;
    table_.drop(*victim);
    return key;
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
