// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <vector>

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

double as_double(std::uint64_t bytes) {
  return static_cast<double>(bytes);
}

/// A path in use to a share of its bandwidth has the rest for us.
double loaded_fetch_ns(const PeerSnapshot& peer) {
  constexpr double kLeastRest = 0.05;
  return peer.fetch_ns / std::max(kLeastRest, 1 - peer.load);
}

/// Of what a peer gives or could give, the part that is in use, with the tenant's own counted twice.
double used_share(const PeerSnapshot& peer) {
  const double whole = as_double(peer.used_bytes) + as_double(room_bytes(peer));
  return whole == 0 ? 0.0 : (as_double(peer.used_bytes) + as_double(peer.tenant_used_bytes)) / whole;
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

/// The sum of what each policy measures, scaled so that the best candidate has 1 and the worst 0 (all
/// have 1 where they are equal), times its weight. The highest wins; of equals the least device id.
class WeightedPlacement final : public PlacementPolicy {
 public:
  explicit WeightedPlacement(const PlacementWeights& weights) : weights_(weights) {}

  std::string_view name() const override { return "weighted"; }

  std::optional<DeviceId> choose(std::span<const PeerSnapshot> peers,
                                 const PlacementRequest& request) const override {
    const std::array<Criterion, 4> criteria{
        Criterion{weights_.best_fit, [](const PeerSnapshot& peer) { return -as_double(room_bytes(peer)); }},
        Criterion{weights_.locality, [](const PeerSnapshot& peer) { return -loaded_fetch_ns(peer); }},
        Criterion{weights_.fairness, [](const PeerSnapshot& peer) { return -used_share(peer); }},
        Criterion{weights_.stability, [](const PeerSnapshot& peer) { return peer.stable_ns; }},
    };
    std::vector<Candidate> candidates;
    for (const PeerSnapshot& peer : peers) {
      if (has_room(peer, request)) candidates.push_back({&peer, 0});
    }
    for (const Criterion& criterion : criteria) add_scores(criterion, candidates);
    const auto best =
        std::max_element(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
          return std::tuple(a.score, -a.peer->device) < std::tuple(b.score, -b.peer->device);
        });
    return best == candidates.end() ? std::nullopt : std::optional(best->peer->device);
  }

 private:
  struct Criterion {
    double weight;
    double (*measure)(const PeerSnapshot&);  ///< more is better
  };

  struct Candidate {
    const PeerSnapshot* peer;
    double score;
  };

  static void add_scores(const Criterion& criterion, std::vector<Candidate>& candidates) {
    double worst = std::numeric_limits<double>::infinity();
    double best = -worst;
    for (const Candidate& candidate : candidates) {
      worst = std::min(worst, criterion.measure(*candidate.peer));
      best = std::max(best, criterion.measure(*candidate.peer));
    }
    for (Candidate& candidate : candidates) {
      const double scaled =
          best > worst ? (criterion.measure(*candidate.peer) - worst) / (best - worst) : 1.0;
      candidate.score += criterion.weight * scaled;
    }
  }

  PlacementWeights weights_;
};

}  // namespace

/// The peer that the object fills up most, so that large rooms stay large.
std::unique_ptr<PlacementPolicy> make_best_fit(const PlacementWeights&) {
  return ranked("best_fit",
                [](const PeerSnapshot& peer) { return std::tuple(room_bytes(peer), peer.fetch_ns); });
}

/// The peer that the object comes back from soonest; of equals the one whose path is least in use.
std::unique_ptr<PlacementPolicy> make_locality(const PlacementWeights&) {
  return ranked("locality", [](const PeerSnapshot& peer) { return std::tuple(peer.fetch_ns, peer.load); });
}

/// The peer of which the tenant has least, so that no one tenant crowds a peer and no peer pays for all;
/// of equals the one that gives the smallest share of what it could give.
std::unique_ptr<PlacementPolicy> make_fairness(const PlacementWeights&) {
  return ranked("fairness", [](const PeerSnapshot& peer) {
    return std::tuple(peer.tenant_used_bytes, used_share(peer));
  });
}

/// The peer whose memory has been ours longest without a shrink; of equals the one with most room, which
/// is the farthest from its next shrink.
std::unique_ptr<PlacementPolicy> make_stability(const PlacementWeights&) {
  return ranked("stability", [](const PeerSnapshot& peer) {
    return std::tuple(-peer.stable_ns, -as_double(room_bytes(peer)));
  });
}

std::unique_ptr<PlacementPolicy> make_weighted(const PlacementWeights& weights) {
  return std::make_unique<WeightedPlacement>(weights);
}

}  // namespace harvest::policy
