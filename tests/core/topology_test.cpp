// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>
#include <harvest/topology.hpp>

#include <cmath>

namespace harvest::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Machine preset(std::string_view name) {
  return machine_from_preset(name).value();
}

LinkInfo& link(Machine& machine, DeviceId from, DeviceId to) {
  for (MachineLink& candidate : machine.links)
    if (candidate.info.from == from && candidate.info.to == to) return candidate.info;
  throw std::out_of_range("no such link");
}

std::vector<DeviceId> ranked(const Topology& topology, std::uint64_t bytes) {
  std::vector<DeviceId> ids;
  for (const PeerRank& rank : topology.rank_peers(0, bytes)) ids.push_back(rank.device);
  return ids;
}

/// GPU 1 is quick to begin and slow, GPU 2 the reverse, GPU 3 cannot be addressed by GPU 0.
Machine uneven_machine() {
  Machine machine = preset("gb200-nvl72");
  link(machine, 1, 0).latency_ns = 500;
  link(machine, 1, 0).bandwidth_bytes_per_s = 100e9;
  link(machine, 2, 0).latency_ns = 20'000;
  link(machine, 2, 0).bandwidth_bytes_per_s = 700e9;
  link(machine, 0, 3).peer_access = false;
  return machine;
}

TEST(TopologyTest, RanksPeersByTheTimeThatAnObjectOfThatSizeTakes) {
  const auto backend = make_simulated_backend(uneven_machine()).value();
  const Topology topology = Topology::probe(*backend, false).value();
  EXPECT_THAT(ranked(topology, 4096), ElementsAre(1, 2));
  EXPECT_THAT(ranked(topology, 64 << 20), ElementsAre(2, 1));
  const LinkInfo& quick = topology.path(1, 0)->link;
  EXPECT_DOUBLE_EQ(topology.expected_copy_ns(1, 0, 1'000'000),
                   static_cast<double>(quick.issue_ns + quick.latency_ns) + 1'000'000 / 100.0);
  EXPECT_TRUE(std::isinf(topology.expected_copy_ns(0, 17, 1)));
}

TEST(TopologyTest, APeerIsUsableIfBothDirectionsAre) {
  const auto backend = make_simulated_backend(uneven_machine()).value();
  const Topology topology = Topology::probe(*backend, false).value();
  EXPECT_TRUE(topology.usable_as_peer(1, 0));
  EXPECT_FALSE(topology.usable_as_peer(3, 0)) << "GPU 0 cannot address it";
  EXPECT_TRUE(topology.path(3, 0)->link.peer_access) << "though it can address GPU 0";
  EXPECT_FALSE(topology.usable_as_peer(0, 0));
  EXPECT_FALSE(topology.usable_as_peer(kHost, 0));
  EXPECT_EQ(topology.path(0, 17), nullptr);
  EXPECT_EQ(topology.device(17), nullptr);
}

TEST(TopologyTest, APathIsVerifiedByWhatCameOverIt) {
  const auto good = make_simulated_backend(preset("2xh100-nvl")).value();
  const Topology of_good = Topology::probe(*good).value();
  for (const Path& path : of_good.paths()) EXPECT_EQ(path.state, PathState::verified);

  SimulationOptions options;
  options.faults.corrupt_copy.rate = 1;
  const auto bad = make_simulated_backend(preset("2xh100-nvl"), options).value();
  const Topology topology = Topology::probe(*bad).value();
  EXPECT_EQ(topology.path(1, 0)->state, PathState::failed);
  EXPECT_THAT(topology.path(1, 0)->reason, HasSubstr("came back changed"));
  EXPECT_TRUE(ranked(topology, 4096).empty());

  options = {.bytes = SimulatedBytes::phantom};
  const auto phantom = make_simulated_backend(preset("2xh100-nvl"), options).value();
  EXPECT_EQ(Topology::probe(*phantom).value().path(1, 0)->state, PathState::untested) << "nothing to compare";
}

TEST(TopologyTest, AVerdictStandsInThePlaceOfATest) {
  SimulationOptions options;
  options.faults.corrupt_copy.rate = 1;
  const auto bad = make_simulated_backend(preset("2xh100-nvl"), options).value();
  const std::vector<PathVerdict> trusted{{{0, 1}, PathState::verified}, {{1, 0}, PathState::verified}};
  EXPECT_TRUE(Topology::probe(*bad, true, trusted).value().usable_as_peer(1, 0));

  const auto good = make_simulated_backend(preset("gb200-nvl72")).value();
  PeerCacheConfig config;
  config.path_verdicts = {{{2, 0}, PathState::failed}};
  const auto cache = PeerCache::create(*good, config).value();
  EXPECT_THAT(ranked(cache->topology(), 4096), ElementsAre(1, 3));
  EXPECT_THAT(cache->topology().path(2, 0)->reason, HasSubstr("verdict"));
}

TEST(TopologyTest, PeersThatAreSlowerThanTheHostAreUsedOnlyIfTheyAreNamed) {
  const auto machine = make_simulated_backend(preset("4x4090-pcie")).value();
  PeerCacheConfig config;
  config.host_budget_bytes = 1ULL << 30;
  const auto by_itself = PeerCache::create(*machine, config).value();
  for (const PoolStats& pool : by_itself->stats().pools) EXPECT_NE(pool.tier, Tier::peer) << pool.device;
  config.peers = {2};
  const auto named = PeerCache::create(*machine, config).value();
  EXPECT_EQ(named->stats().pools.front().device, 2);
}

}  // namespace
}  // namespace harvest::testing
