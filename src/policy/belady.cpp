// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/key_hash.hpp"
#include "policy/recording.hpp"

namespace harvest::policy {
namespace {

constexpr std::size_t kNoNextUse = std::numeric_limits<std::size_t>::max();

/// For each access the position of the next one to the same key.
std::vector<std::size_t> next_uses(std::span<const Key> accesses) {
  std::vector<std::size_t> next(accesses.size(), kNoNextUse);
  std::unordered_map<Key, std::size_t, KeyHash> seen_at;
  for (std::size_t i = accesses.size(); i-- > 0;) {
    const auto [found, is_last] = seen_at.try_emplace(accesses[i], i);
    if (!is_last) next[i] = std::exchange(found->second, i);
  }
  return next;
}

/// What a cache holds that the next smaller one does not. A resident is known by the position of its next
/// use.
struct Layer {
  std::uint64_t room = 0;
  std::uint64_t residents = 0;
  std::priority_queue<std::size_t> farthest;  ///< those positions, and past ones, which never come to its top
};

/// Of several sizes of cache at once. All rank objects by their next use alone, so each holds what the next
/// smaller one holds and, in a layer of its own, the best of what that one passed on.
class Layers {
 public:
  Layers(const std::vector<std::uint64_t>& capacities, std::size_t accesses)
      : layers_(capacities.size()), resident_in_(accesses, static_cast<std::uint32_t>(capacities.size())) {
    for (std::size_t i = 0; i < capacities.size(); ++i)
      layers_[i].room = capacities[i] - (i == 0 ? 0 : capacities[i - 1]);
  }

  /// Takes out what is used at `now`; answers its layer, or their number if it is in none.
  std::size_t take(std::size_t now) {
    const std::size_t layer = resident_in_[now];
    if (layer < layers_.size()) --layers_[layer].residents;
    return layer;
  }

  void offer(std::size_t next_use) {
    for (std::uint32_t i = 0; i < layers_.size(); ++i) {
      Layer& layer = layers_[i];
      if (layer.residents < layer.room) {
        put(i, next_use);
        ++layer.residents;
        return;
      }
      if (layer.farthest.top() <= next_use) continue;
      const std::size_t passed_on = layer.farthest.top();
      layer.farthest.pop();
      put(i, std::exchange(next_use, passed_on));
    }
    resident_in_[next_use] = static_cast<std::uint32_t>(layers_.size());
  }

 private:
  void put(std::uint32_t layer, std::size_t next_use) {
    layers_[layer].farthest.push(next_use);
    resident_in_[next_use] = layer;
  }

  std::vector<Layer> layers_;
  std::vector<std::uint32_t> resident_in_;  ///< a layer, by next use
};

}  // namespace

std::vector<PolicyRun> belady_curve(const Recording& recording, std::span<const std::uint64_t> capacities) {
  Tally tally(recording, capacities);
  const std::vector<std::size_t> next = next_uses(recording.accesses);
  Layers layers(tally.levels(), recording.accesses.size());
  for (std::size_t now = 0; now < next.size(); ++now) {
    tally.hits_from(layers.take(now));
    // What is never used again leaves, or does not come, at no loss to anybody.
    if (next[now] != kNoNextUse) layers.offer(next[now]);
  }
  return tally.runs();
}

}  // namespace harvest::policy
