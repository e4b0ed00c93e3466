// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <harvest/policy.hpp>

#include <algorithm>
#include <array>
#include <vector>

namespace harvest {
namespace {

constexpr PlacementRequest kRequest{100};

PeerSnapshot peer_with_room(DeviceId device, std::uint64_t free_slot_bytes,
                            std::uint64_t growable_bytes = 0) {
  PeerSnapshot peer;
  peer.device = device;
  peer.free_slot_bytes = free_slot_bytes;
  peer.growable_bytes = growable_bytes;
  return peer;
}

/// Four peers, each the best by one policy: 1 fits tightest, 2 is nearest, 3 is used least, 4 lasts.
std::vector<PeerSnapshot> four_peers() {
  std::vector<PeerSnapshot> peers;
  for (DeviceId device = 1; device <= 4; ++device) {
    PeerSnapshot peer = peer_with_room(device, device == 1 ? 200 : 1000);
    peer.fetch_ns = device == 2 ? 10 : 100;
    peer.used_bytes = peer.tenant_used_bytes = device == 3 ? 0 : 500;
    peer.stable_ns = device == 4 ? 1e9 : 1e3;
    peers.push_back(peer);
  }
  return peers;
}

std::unique_ptr<PlacementPolicy> make(std::string_view name, const PlacementWeights& weights = {}) {
  return make_placement_policy(name, weights).value();
}

TEST(PlacementPolicies, EachChoosesItsOwnBest) {
  const auto peers = four_peers();
  EXPECT_EQ(make("best_fit")->choose(peers, kRequest), 1);
  EXPECT_EQ(make("locality")->choose(peers, kRequest), 2);
  EXPECT_EQ(make("fairness")->choose(peers, kRequest), 3);
  EXPECT_EQ(make("stability")->choose(peers, kRequest), 4);
}

TEST(PlacementPolicies, WeightedFollowsItsWeights) {
  const auto peers = four_peers();
  EXPECT_EQ(make("weighted", {1, 0, 0, 0})->choose(peers, kRequest), 1);
  EXPECT_EQ(make("weighted", {0, 1, 0, 0})->choose(peers, kRequest), 2);
  EXPECT_EQ(make("weighted", {0, 0, 1, 0})->choose(peers, kRequest), 3);
  EXPECT_EQ(make("weighted", {0, 0, 0, 1})->choose(peers, kRequest), 4);
  EXPECT_EQ(make("weighted", {1, 1, 1, 1.1})->choose(peers, kRequest), 4);
}

TEST(PlacementPolicies, SecondCriteriaDecideBetweenEquals) {
  auto peers = four_peers();
  for (PeerSnapshot& peer : peers) {
    peer.fetch_ns = 100;
    peer.load = peer.device == 3 ? 0.1 : 0.9;
    peer.used_bytes = peer.device == 2 ? 500 : 900;
    peer.tenant_used_bytes = 50;
    peer.stable_ns = 1e3;
  }
  EXPECT_EQ(make("locality")->choose(peers, kRequest), 3);
  EXPECT_EQ(make("fairness")->choose(peers, kRequest), 2);
  EXPECT_EQ(make("stability")->choose(peers, kRequest), 2) << "most room, then the least device id";
}

TEST(PlacementPolicies, ChooseOnlyPeersWithRoomInOnePiece) {
  for (const std::string_view name : placement_policy_names()) {
    const auto policy = make(name);
    EXPECT_EQ(policy->name(), name);
    EXPECT_EQ(policy->choose({}, kRequest), std::nullopt);
    const std::array peers{peer_with_room(0, 99, 99), peer_with_room(1, 0, 100), peer_with_room(2, 99, 0)};
    EXPECT_EQ(policy->choose(peers, kRequest), 1) << name;
    EXPECT_EQ(policy->choose(peers, {1000}), std::nullopt) << name;
    EXPECT_EQ(policy->choose(std::array{peer_with_room(5, 100, 0)}, kRequest), 5) << name;
  }
}

TEST(PlacementPolicies, DoNotDependOnTheOrderOfThePeers) {
  auto peers = four_peers();
  peers.push_back(peers.front());
  peers.back().device = 9;  // a twin
  for (const std::string_view name : placement_policy_names()) {
    const auto policy = make(name);
    const auto chosen = policy->choose(peers, kRequest);
    for (int turn = 0; turn < 5; ++turn) {
      std::rotate(peers.begin(), peers.begin() + 1, peers.end());
      EXPECT_EQ(policy->choose(peers, kRequest), chosen) << name;
    }
  }
}

}  // namespace
}  // namespace harvest
