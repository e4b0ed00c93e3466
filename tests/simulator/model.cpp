// SPDX-License-Identifier: Apache-2.0
#include "simulator/model.hpp"

#include <algorithm>

#include "simulator/violation.hpp"

namespace harvest::simulator {
namespace {

constexpr std::size_t kKept = 4096;

}  // namespace

void Model::store(Generation generation, const Stored& what, Generation latest_before) {
  require(generation > latest_before && !stored_.contains(generation), "I2",
          "generation {} is given after {}: generations only grow", generation, latest_before);
  latest_ = std::max(latest_, generation);
  stored_[generation] = what;
  alive_[what.key] = generation;
}

Generation Model::current(std::uint64_t key) const {
  const auto found = alive_.find(key);
  return found == alive_.end() ? 0 : found->second;
}

Stored* Model::find(Generation generation) {
  const auto found = stored_.find(generation);
  return found == stored_.end() ? nullptr : &found->second;
}

void Model::hear(const CacheEvent& event, const std::set<DeviceId>& lost_devices, std::uint64_t failures) {
  using Kind = CacheEvent::Kind;
  Stored* what = find(event.generation);
  require(what != nullptr, "I4", "{} is told of generation {}, which was never stored", to_string(event.kind),
          event.generation);
  require(event.key == Key(what->key), "I2", "an event names generation {} and another key",
          event.generation);
  const bool is_current = current(what->key) == event.generation;
  const bool doubtful = what->doubtful || (what->under_way && failures > what->failures_before);
  switch (event.kind) {
    case Kind::lost: {
      const bool with_its_device = what->backing == Backing::spill && lost_devices.contains(event.device);
      const bool survived = what->arrived_on_peer && !lost_devices.contains(what->peer);
      require(what->backing == Backing::lossy || with_its_device || (doubtful && !survived), "I4",
              "key {} is told lost, its backing is {}", what->key, to_string(what->backing));
      what->told_lost = true;
      break;
    }
    case Kind::evicted:
      require(what->evictable && what->backing == Backing::managed_host, "I4",
              "key {} is told evicted, its backing is {}, evictable {}", what->key, to_string(what->backing),
              what->evictable);
      break;
    case Kind::settled:
      require(what->external != nullptr, "I4", "generation {} is told settled twice, or is not the caller's",
              event.generation);
      require(!is_current, "I1", "generation {} is told settled while reads find it", event.generation);
      return;  // the memory is the life's to give back
    case Kind::spilled:
      // The host copy of a put may fail while the one on a peer arrives; then that one is all there is.
      require(what->backing == Backing::spill || (what->backing == Backing::managed_host && doubtful), "I4",
              "key {} is told spilled, its backing is {}", what->key, to_string(what->backing));
      return;
    case Kind::revoked: return;
  }
  require(!what->told_gone, "I4", "the end of generation {} is told twice", event.generation);
  // A callback that puts a key may do so before it hears of that key's earlier end.
  require(is_current || what->key >= kCallbackKeys, "I4",
          "the end of generation {} is told, which was erased or replaced before", event.generation);
  what->told_gone = true;
  if (is_current) alive_.erase(what->key);
}

void Model::forget_old() {
  if (stored_.size() < kKept) return;
  std::erase_if(stored_, [&](const auto& entry) {
    const auto& [generation, what] = entry;
    return current(what.key) != generation && what.external == nullptr && generation + kKept / 2 < latest_;
  });
}

}  // namespace harvest::simulator
