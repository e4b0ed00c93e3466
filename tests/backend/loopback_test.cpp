// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/loopback.hpp>
#include <harvest/topology.hpp>

#include "backend/simulation.hpp"

namespace harvest::test {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

TEST(Loopback, OneGpuIsItsOwnPeer) {
  const auto machine = phantom("4x4090-pcie");
  const auto backend = make_loopback_backend(*machine, 2).value();
  EXPECT_TRUE(backend->info().loopback);
  EXPECT_TRUE(backend->info().simulated);
  EXPECT_THAT(backend->info().name, EndsWith("loopback"));
  ASSERT_EQ(backend->devices().size(), 3U);
  EXPECT_THAT(backend->devices()[1].name, HasSubstr("loopback"));

  const Topology topology = Topology::probe(*backend).value();
  EXPECT_TRUE(topology.usable_as_peer(1, 0));
  EXPECT_EQ(topology.path(0, 1)->link.kind, LinkKind::same_device);
  EXPECT_EQ(topology.paths().size(), 9U);  // all pairs of two GPUs and the host
}

TEST(Loopback, BothDevicesHaveTheSameMemory) {
  const auto machine = phantom("2xh100-nvl");
  const auto backend = make_loopback_backend(*machine, 1).value();
  const std::uint64_t before = backend->query_memory(0)->free_bytes;
  std::byte* segment = backend->map_segment(1, 64 * kMiB, {}).value();
  EXPECT_EQ(backend->query_memory(0)->free_bytes, before - 64 * kMiB);
  EXPECT_EQ(machine->mapped_bytes(1), 64 * kMiB);
  EXPECT_EQ(machine->mapped_bytes(0), 0U);
  EXPECT_TRUE(backend->unmap_segment(segment));
  EXPECT_EQ(backend->query_memory(1)->free_bytes, before);
}

TEST(Loopback, AStreamIsOfTheDeviceItWasMadeFor) {
  const auto machine = phantom("2xh100-nvl");
  const auto backend = make_loopback_backend(*machine).value();
  const StreamId first = backend->create_stream(0).value();
  const StreamId twin = backend->create_stream(1).value();
  EXPECT_EQ(backend->stream_device(first).value(), 0);
  EXPECT_EQ(backend->stream_device(twin).value(), 1);
  EXPECT_EQ(machine->stream_device(twin).value(), 0);
}

}  // namespace
}  // namespace harvest::test
