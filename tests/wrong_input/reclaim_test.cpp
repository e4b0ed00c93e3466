// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "core/world.hpp"
#include "wrong_input/table.hpp"

/// Giving back, and waiting for it.
namespace harvest::testing {
namespace {

constexpr std::uint64_t kBytes = MiB;
constexpr DeviceId kPeer = 1;
constexpr std::uint64_t kHuge = 1ULL << 63;
constexpr TimeNs kLongNs = 1'000'000'000;
constexpr TimeNs kLongAgo = std::numeric_limits<TimeNs>::min();

/// Eight objects on the peer and in host memory.
struct Filled : World {
  Filled() {
    std::vector<Key> keys;
    for (std::uint64_t key = 1; key <= 8; ++key) {
      EXPECT_TRUE(put(key, 1, kBytes));
      keys.emplace_back(key);
    }
    EXPECT_EQ(cache->prefetch(keys, Tier::peer), 8U);
    settle();
    EXPECT_GE(held(), 8 * kBytes);
  }
  [[nodiscard]] std::uint64_t held() const { return backend->mapped_bytes(kPeer); }
};

Outcome reclaim_all(std::uint64_t bytes, TimeNs deadline_ns) {
  Filled world;
  const std::uint64_t held = world.held();
  const auto report = world.cache->reclaim(kPeer, bytes, deadline_ns);
  EXPECT_TRUE(report && report->finished);
  EXPECT_EQ(report->returned_bytes, held);
  EXPECT_EQ(report->late_bytes, 0U);
  EXPECT_EQ(world.held(), 0U);
  world.audit();
  return report;
}

Outcome reclaim_twice() {
  Filled world;
  const Lease lease = world.cache->acquire(1, world.stream);  // so that both are open at once
  const auto first = world.cache->begin_reclaim(kPeer, kHuge, kNever);
  const auto second = world.cache->begin_reclaim(kPeer, kHuge, kNever);
  EXPECT_LE(world.held(), 4 * MiB) << "all but the leased segment is gone";
  EXPECT_TRUE(first);
  return second;
}

Outcome reclaim_leased() {
  Filled world;
  Lease lease = world.cache->acquire(1, world.stream);
  EXPECT_EQ(lease.tier(), Tier::peer);
  const TimeNs begin = world.backend->now_ns();
  const std::uint64_t held = world.held();
  const auto report = world.cache->reclaim(kPeer, held, begin - 1);
  EXPECT_TRUE(report && !report->finished);
  EXPECT_EQ(report->returned_bytes + report->late_bytes, held);
  EXPECT_GT(report->late_bytes, 0U);
  lease.release();
  world.settle();
  EXPECT_EQ(world.held(), 0U);
  return report;
}

Outcome status_of_the_first(int after_it) {
  Filled world;
  for (int i = 0; i <= after_it; ++i) EXPECT_TRUE(world.cache->reclaim(kPeer, 1, kNever));
  return world.cache->reclaim_status(ReclaimId{1});
}

Outcome settle_under_way(TimeNs deadline_ns) {
  World world;
  EXPECT_TRUE(world.backend->submit_kernel(world.stream, kLongNs));
  PutOptions options;
  options.stream = world.stream;
  EXPECT_TRUE(world.put(1, 1, kBytes, options));
  const TimeNs begin = world.backend->now_ns();
  const Status settled = world.cache->settle(deadline_ns);
  EXPECT_LT(world.backend->now_ns() - begin, kLongNs) << "it waited";
  return settled;
}

TEST(WrongInput, GivingBackAndWaiting) {
  Table table("Giving back and waiting");
  World world;
  PeerCache& cache = *world.cache;
  table.shows("`reclaim` of the consumer", cache.reclaim(0, MiB, kNever));
  table.shows("`reclaim` of the host", cache.reclaim(kHost, MiB, kNever));
  table.shows("`reclaim` of device 9", cache.reclaim(9, MiB, kNever));
  table.shows("`reclaim` of 0 bytes", cache.reclaim(kPeer, 0, kNever));
  table.shows("`begin_reclaim` of device 9", cache.begin_reclaim(9, MiB, kNever));
  table.shows("`begin_reclaim` of 0 bytes", cache.begin_reclaim(kPeer, 0, kNever));
  table.shows("`reclaim` of 2^63 bytes", reclaim_all(kHuge, kNever));
  table.shows("`begin_reclaim` of 2^63 bytes, twice", reclaim_twice());
  table.shows("`reclaim` with deadline 0", reclaim_all(kHuge, 0));
  table.shows("`reclaim` with a negative deadline", reclaim_all(kHuge, kLongAgo));
  table.shows("`reclaim` with a deadline in the past, of leased memory", reclaim_leased());
  table.shows("`reclaim_status` of `none`", cache.reclaim_status(ReclaimId::none));
  table.shows("`reclaim_status` of one never begun", cache.reclaim_status(ReclaimId{77}));
  EXPECT_EQ(status_of_the_first(63).answer, "ok");
  table.shows("`reclaim_status` of one that 64 came after", status_of_the_first(64));

  World idle;
  table.shows("`settle` with deadline 0, nothing under way", idle.cache->settle(0));
  table.shows("`settle` with deadline 0, a copy under way", settle_under_way(0));
  table.shows("`settle` with a negative deadline, a copy under way", settle_under_way(kLongAgo));
  EXPECT_GT(idle.cache->poll(), idle.backend->now_ns());
  table.shows("`poll` and `audit` of an empty cache", idle.cache->audit());
}

}  // namespace
}  // namespace harvest::testing
