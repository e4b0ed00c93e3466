// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>

#include <cstdint>
#include <map>
#include <set>

/// What a cache must hold, as a reader of its public header would write it down: no tiers, no memory, no
/// time.
namespace harvest::simulator {

inline constexpr std::uint64_t kCallbackKeys = 1000;  ///< keys from here on are put by callbacks alone

/// One put that was answered with a generation.
struct Stored {
  std::uint64_t key = 0;
  std::uint32_t version = 0;  ///< of its bytes, see words.hpp
  std::uint64_t bytes = 0;
  Backing backing = Backing::managed_host;
  bool evictable = false;
  std::uint8_t tenant = 0;
  std::byte* external = nullptr;      ///< the caller's memory of `external_host`, until it is told settled
  bool under_way = false;             ///< its bytes may not have arrived yet
  std::uint64_t failures_before = 0;  ///< copies that had failed when its put began
  bool doubtful = false;              ///< a copy failed while its bytes were under way: it may be told lost
  std::byte* on_peer = nullptr;       ///< where its put also wrote a copy on a peer
  DeviceId peer = kHost;
  bool arrived_on_peer = false;
  bool garbled = false;  ///< its source was not what it should be, so nobody knows its bytes
  bool told_gone = false;
  bool told_lost = false;
};

class Model {
 public:
  /// `latest_before`: `latest()` when the put began; generations only grow.
  void store(Generation generation, const Stored& what, Generation latest_before);
  [[nodiscard]] Generation latest() const { return latest_; }
  /// The key is not to be found any more.
  void remove(std::uint64_t key) { alive_.erase(key); }

  /// The generation that a read of `key` must give; 0: none.
  [[nodiscard]] Generation current(std::uint64_t key) const;
  [[nodiscard]] Stored* find(Generation generation);
  [[nodiscard]] Stored& at(Generation generation) { return stored_.at(generation); }

  /// Checks one event of a stored generation against what may happen (I4), and learns from it. `failures`:
  /// copies that failed so far.
  void hear(const CacheEvent& event, const std::set<DeviceId>& lost_devices, std::uint64_t failures);

  /// Generations that are over and told so, whose memory is given back, are of no use any more.
  void forget_old();

  [[nodiscard]] const std::map<std::uint64_t, Generation>& alive() const { return alive_; }
  [[nodiscard]] const std::map<Generation, Stored>& stored() const { return stored_; }

 private:
  std::map<std::uint64_t, Generation> alive_;  ///< by key
  std::map<Generation, Stored> stored_;
  Generation latest_ = 0;
};

}  // namespace harvest::simulator
