// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/key_hash.hpp"
#include "policy/running_sums.hpp"

namespace harvest::policy {

/// What share of its accesses an LRU tier of any size would serve, estimated while they come: SHARDS
/// (Waldspurger et al., FAST 2015) with bytes for blocks. Keys are sampled by their hash, so that of a
/// sampled one every access is seen; how many bytes were accessed since its last access says which sizes
/// would hit.
///
/// The sample holds at most `kMostSampled` keys, of a stretch of accesses that is at most `kMostMultiple`
/// times the largest capacity so far; where they are more, every other key leaves it for good. Counts fade:
/// the estimate is of about the last `kWindow` accesses. Takes about 1 MiB when it is full. The same calls
/// give the same answers. Not thread-safe.
class ShadowCurve {
 public:
  static constexpr std::size_t kMostSampled = 8192;
  static constexpr std::uint64_t kMostMultiple = 4;
  static constexpr double kWindow = 1 << 20;

  explicit ShadowCurve(std::uint64_t capacity_bytes);

  /// The size that the questions will be about, times at most `kMostMultiple`.
  void set_capacity(std::uint64_t capacity_bytes);

  /// Cost: a hash; for a sampled key O(log n) more.
  void access(const Key& key, std::uint64_t bytes);

  /// `key` takes no room any more, and its next access is its first.
  void forget(const Key& key);

  [[nodiscard]] bool has_accesses() const { return accesses_ > 0; }

  /// In 0..1; 0 before the first access. For more than `kMostMultiple` times the capacity it is that of so
  /// much. Cost: about 1,000 additions.
  [[nodiscard]] double hit_ratio(std::uint64_t capacity_bytes) const;

 private:
  static constexpr std::size_t kStepsPerDoubling = 16;  ///< of the sizes that are told apart
  static constexpr std::size_t kSteps = 64 * kStepsPerDoubling;
  static constexpr unsigned kMostHalvings = 63;

  struct Touch {
    Key key;
    std::uint64_t bytes = 0;  ///< 0: not the last access to its key any more
  };

  [[nodiscard]] bool is_sampled(const Key& key) const;
  [[nodiscard]] double weight() const { return static_cast<double>(std::uint64_t{1} << halvings_); }
  void count_hit(double needed_bytes);
  void remove(std::size_t at);
  void sample_half();
  void trim();
  void compact();
  void fade();

  double most_bytes_;      ///< older accesses than this are of no interest
  unsigned halvings_ = 0;  ///< one key in 2^halvings is sampled

  std::vector<Touch> touches_;      ///< in the order of time
  RunningSums bytes_;               ///< of `touches_`
  std::size_t oldest_ = 0;          ///< no touch before it has bytes
  std::int64_t sampled_bytes_ = 0;  ///< the sum of all
  std::unordered_map<Key, std::size_t, KeyHash>
      last_;  ///< where in `touches_` a sampled key was accessed last

  double accesses_ = 0;                ///< all
  double sampled_accesses_ = 0;        ///< of sampled keys, each for all that it stands for
  std::array<double, kSteps> hits_{};  ///< of those, by the least size that would hit
};

}  // namespace harvest::policy
