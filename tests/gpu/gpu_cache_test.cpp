// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <numeric>
#include <utility>

#include "cuda/cache_world.hpp"
#include "gpu/real_gpus.hpp"

/// The cache on real GPUs, every byte compared.
namespace harvest::test {
namespace {

class GpuCache : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << why;
    gpus_ = open_gpus().value();
    auto top = gpus_.loopback ? std::move(gpus_.loopback) : std::move(gpus_.cuda);
    world_ = std::make_unique<CacheWorld>(std::move(top));
  }
  void TearDown() override { world_.reset(); }

  CacheWorld& world() { return *world_; }
  std::uint64_t free_on_peer() { return world().backend().query_memory(1)->free_bytes; }
  std::uint64_t ours_on_peer() {
    for (const PoolStats& pool : world().cache().stats().pools)
      if (pool.tier == Tier::peer && pool.device == 1) return pool.mapped_bytes;
    return 0;
  }

 private:
  RealGpus gpus_;  ///< in loopback, what the world's backend stands on
  std::unique_ptr<CacheWorld> world_;
};

TEST_F(GpuCache, DeliversEveryByteFromEveryTier) {
  const auto keys = put_all(world());
  EXPECT_EQ(world().cache().prefetch(std::vector<Key>(keys.begin(), keys.end()), Tier::peer), keys.size());
  world().settle();
  std::size_t from_peers = 0;
  for (int round = 0; round < 3; ++round)
    for (const auto& [key, tier] : world().fetch(keys)) {
      EXPECT_TRUE(tier != Tier::none || is_lossy(key)) << key;
      from_peers += tier == Tier::peer ? 1 : 0;
    }
  EXPECT_GT(from_peers, 0U);
}

TEST_F(GpuCache, ManySmallObjectsComeWholeInOneBatch) {
  std::vector<std::uint64_t> keys(500);
  std::iota(keys.begin(), keys.end(), 1);
  for (const std::uint64_t key : keys) world().put(key, 16'384 + key % 7, Backing::managed_host);
  world().cache().prefetch(std::vector<Key>(keys.begin(), keys.end()), Tier::peer);
  world().settle();
  for (int round = 0; round < 2; ++round)
    for (const auto& [key, tier] : world().fetch(keys)) EXPECT_NE(tier, Tier::none) << key;
}

TEST_F(GpuCache, AReclaimGivesThePhysicalMemoryBack) {
  const auto keys = put_all(world());
  world().cache().prefetch(std::vector<Key>(keys.begin(), keys.end()), Tier::peer);
  world().settle();
  const std::uint64_t ours = ours_on_peer();
  ASSERT_GT(ours, 0U);
  const std::uint64_t free_before = free_on_peer();
  const auto report = world().cache().reclaim(1, ours, world().backend().now_ns() + 10'000'000'000);
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(report->returned_bytes, ours);
  EXPECT_GE(free_on_peer(), free_before + ours) << "I5, where nobody else allocates meanwhile";
  for (const auto& [key, tier] : world().fetch(keys))
    EXPECT_TRUE(tier != Tier::none || is_lossy(key)) << key << " was lost (I4)";
}

TEST_F(GpuCache, ALeaseHoldsItsSegmentThroughAReclaim) {
  for (std::uint64_t key = 1; key <= 12; ++key) world().put(key, kMiB, Backing::spill);
  world().settle();
  Lease lease = world().cache().acquire(5, world().stream());
  ASSERT_TRUE(lease);
  ASSERT_EQ(lease.tier(), Tier::peer);
  const DeviceId peer = lease.device();
  const auto id =
      world().cache().begin_reclaim(peer, UINT64_MAX / 2, world().backend().now_ns() + 20'000'000);
  ASSERT_TRUE(id);
  for (int i = 0; i < 100; ++i) {
    world().cache().poll();
    world().backend().sleep_until(world().backend().now_ns() + 1'000'000);
  }
  EXPECT_FALSE(world().cache().reclaim_status(*id)->finished) << "a segment under a lease went away (I1)";
  EXPECT_EQ(world().download(lease.data(), peer, kMiB), world().current[5]);
  lease.release();
  world().settle();
  EXPECT_TRUE(world().cache().reclaim_status(*id)->finished);
}

/// A captured copy would be replayed when the slot holds something else; the caller's own, under a lease, is
/// good for as long as the lease.
TEST_F(GpuCache, AStreamThatIsCapturedIsNotFetchedOn) {
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  cudaStream_t native = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), cudaSuccess);
  const StreamId stream = world().backend().wrap_stream(0, native).value();
  world().put(1, kMiB, Backing::managed_host);
  world().settle();
  std::byte* target = world().backend().map_segment(0, 2 * kMiB, {}).value();
  FetchItem item{.key = 1, .destination = target, .capacity_bytes = kMiB};

  ASSERT_EQ(cudaStreamBeginCapture(native, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(world().cache().fetch({&item, 1}, stream).error().code, ErrorCode::not_supported);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(native, &graph), cudaSuccess) << "the refusal broke the capture";
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);

  EXPECT_TRUE(world().cache().fetch_and_wait({&item, 1}, stream));
  EXPECT_EQ(world().download(target, 0, kMiB), world().current[1]);
  EXPECT_TRUE(world().cache().forget_stream(stream));
  EXPECT_TRUE(world().backend().destroy_stream(stream));
  EXPECT_EQ(cudaStreamDestroy(native), cudaSuccess);
  EXPECT_TRUE(world().backend().unmap_segment(target));
}

}  // namespace
}  // namespace harvest::test
