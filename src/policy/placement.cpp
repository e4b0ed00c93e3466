// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <tuple>

#include "policy/policies.hpp"

namespace harvest::policy {
namespace {

std::uint64_t room_bytes(const PeerSnapshot& peer) {
  return peer.free_slot_bytes + peer.growable_bytes;
}

/// An object lies in one piece: in a slot that is there already, or in memory that is mapped for it.
bool has_room(const PeerSnapshot& peer, const PlacementRequest& request) {
  return peer.free_slot_bytes >= request.bytes || peer.growable_bytes >= request.bytes;
}

/// Orders peers by `Rank` (a tuple, smaller is better); the device id decides between equals, so that
/// the order of the snapshots does not matter.
template <typename Rank>
class RankedPlacement final : public PlacementPolicy {
 public:
  RankedPlacement(std::string_view name, Rank rank) : name_(name), rank_(rank) {}

  std::string_view name() const override { return name_; }

  std::optional<DeviceId> choose(std::span<const PeerSnapshot> peers,
                                 const PlacementRequest& request) const override {
    const PeerSnapshot* best = nullptr;
    const auto key = [this](const PeerSnapshot& peer) {
      return std::tuple_cat(rank_(peer), std::tuple(peer.device));
    };
    for (const PeerSnapshot& peer : peers) {
      if (has_room(peer, request) && (best == nullptr || key(peer) < key(*best))) best = &peer;
    }
    return best == nullptr ? std::nullopt : std::optional(best->device);
  }

 private:
  std::string_view name_;
  Rank rank_;
};

template <typename Rank>
std::unique_ptr<PlacementPolicy> ranked(std::string_view name, Rank rank) {
  return std::make_unique<RankedPlacement<Rank>>(name, rank);
}

}  // namespace

std::unique_ptr<PlacementPolicy> make_best_fit(const PlacementWeights&) {
  return ranked("best_fit",
                [](const PeerSnapshot& peer) { return std::tuple(room_bytes(peer), peer.fetch_ns); });
}

}  // namespace harvest::policy
