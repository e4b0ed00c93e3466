// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/flow_network.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <set>

namespace harvest::sim {
namespace {

using Ports = std::vector<std::uint32_t>;
constexpr double kUnlimited = 1e15;

TEST(FlowNetwork, OneFlowTakesItsCapOrItsPort) {
  FlowNetwork network({100e9, 40e9});
  const Ports both{0, 1}, first{0};
  const auto flow = network.add(0, 1e9, 30e9, first);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(flow), 30e9);
  const auto other = network.add(0, 1e9, kUnlimited, both);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(other), 40e9);
}

/// The textbook case: a long flow over two links, a short one on each. Port 0 is shared evenly; what
/// the long flow leaves of port 1 goes to the other.
TEST(FlowNetwork, WhatOneCannotUseGoesToOthers) {
  FlowNetwork network({10e9, 30e9});
  const Ports both{0, 1}, first{0}, second{1};
  const auto longer = network.add(0, 1e12, kUnlimited, both);
  const auto on_first = network.add(0, 1e12, kUnlimited, first);
  const auto on_second = network.add(0, 1e12, kUnlimited, second);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(longer), 5e9);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(on_first), 5e9);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(on_second), 25e9);
  network.remove(0, on_first);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(longer), 10e9);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(on_second), 20e9);
}

/// A byte a second, the least that a flow gets.
TEST(FlowNetwork, WhatOutlastsTheClockNeverEnds) {
  FlowNetwork network({1e-300});
  const Ports port{0};
  const auto flow = network.add(1000, 9e9, kUnlimited, port);
  EXPECT_NEAR(static_cast<double>(network.next_end_ns()), 9e18, 1e6);
  network.remove(1000, flow);
  network.add(1000, 0x1p46, kUnlimited, port);
  EXPECT_EQ(network.next_end_ns(), kNever);
}

TEST(FlowNetwork, ACappedFlowLeavesItsShare) {
  FlowNetwork network({30e9});
  const Ports port{0};
  const auto slow = network.add(0, 1e12, 4e9, port);
  const auto a = network.add(0, 1e12, kUnlimited, port);
  const auto b = network.add(0, 1e12, kUnlimited, port);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(slow), 4e9);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(a), 13e9);
  EXPECT_DOUBLE_EQ(network.rate_bytes_per_s(b), 13e9);
}

/// Two flows of 100 bytes at 10 bytes/ns share a port until the first ends; worked out by hand.
TEST(FlowNetwork, EndsMoveWhenFlowsComeAndGo) {
  FlowNetwork network({10e9});
  const Ports port{0};
  const auto first = network.add(0, 100, kUnlimited, port);  // alone: would end at 10
  EXPECT_EQ(network.next_end_ns(), 10);
  const auto second = network.add(4, 100, kUnlimited, port);  // first has 60 left, at 5: ends at 16
  EXPECT_EQ(network.next_end_ns(), 16);
  EXPECT_EQ(network.pop_ended(16), first);
  EXPECT_EQ(network.next_end_ns(), 20);  // second moved 60 by 16, the last 40 go at 10
  EXPECT_EQ(network.pop_ended(20), second);
  EXPECT_EQ(network.next_end_ns(), kNever);
  EXPECT_EQ(network.size(), 0u);
}

/// What defines max-min fairness: nothing is over its limit, and each flow is held back either by its
/// cap or by a full port on which no flow is faster than it.
RC_GTEST_PROP(FlowNetworkProperty, RatesAreMaxMinFair, ()) {
  const auto port_count = *rc::gen::inRange<std::size_t>(1, 8);
  const auto capacities = *rc::gen::container<std::vector<double>>(
      port_count, rc::gen::map(rc::gen::inRange(1, 1000), [](int gb) { return gb * 1e9; }));
  FlowNetwork network(capacities);
  struct Flow {
    FlowNetwork::FlowId id;
    double cap;
    Ports ports;
  };
  std::vector<Flow> flows;
  const auto flow_count = *rc::gen::inRange<std::size_t>(1, 20);
  flows.reserve(flow_count);
  for (std::size_t i = 0; i < flow_count; ++i) {
    const auto draws = *rc::gen::container<std::vector<std::uint32_t>>(
        rc::gen::inRange<std::uint32_t>(0, static_cast<std::uint32_t>(port_count)));
    const std::set<std::uint32_t> chosen(draws.begin(), draws.end());
    flows.push_back({0, *rc::gen::inRange(1, 2000) * 1e9, Ports(chosen.begin(), chosen.end())});
    flows.back().id = network.add(static_cast<TimeNs>(i), 1e15, flows.back().cap, flows.back().ports);
  }
  const auto removed = *rc::gen::inRange<std::size_t>(0, flow_count);
  for (std::size_t i = 0; i < removed; ++i) {
    network.remove(1000, flows.back().id);
    flows.pop_back();
  }

  constexpr double kSlack = 1e-9;
  const auto rate = [&](const Flow& flow) { return network.rate_bytes_per_s(flow.id); };
  std::vector<double> used(port_count, 0), fastest(port_count, 0);
  for (const Flow& flow : flows)
    for (const std::uint32_t port : flow.ports) {
      used[port] += rate(flow);
      fastest[port] = std::max(fastest[port], rate(flow));
    }
  for (std::size_t port = 0; port < port_count; ++port)
    RC_ASSERT(used[port] <= capacities[port] * (1 + kSlack));
  for (const Flow& flow : flows) {
    RC_ASSERT(rate(flow) <= flow.cap * (1 + kSlack));
    bool held_back = rate(flow) >= flow.cap * (1 - kSlack);
    for (const std::uint32_t port : flow.ports) {
      const bool full = used[port] >= capacities[port] * (1 - kSlack);
      held_back = held_back || (full && rate(flow) >= fastest[port] * (1 - kSlack));
    }
    RC_ASSERT(held_back);
  }
}

}  // namespace
}  // namespace harvest::sim
