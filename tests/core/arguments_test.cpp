// SPDX-License-Identifier: Apache-2.0
#include "core/world.hpp"

/// What wrong calls get: a code, and a message that names the value and the limit.
namespace harvest::testing {
namespace {

class CreateTest : public ::testing::Test {
 protected:
  CreateTest() : backend_(std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")))) {}

  void refuses(const PeerCacheConfig& config, ErrorCode code, const std::string& words) {
    const auto cache = PeerCache::create(*backend_, config);
    ASSERT_FALSE(cache.has_value());
    EXPECT_EQ(cache.error().code, code) << cache.error().message;
    EXPECT_NE(cache.error().message.find(words), std::string::npos) << cache.error().message;
  }

  std::unique_ptr<SimulatedBackend> backend_;
  PeerCacheConfig config_ = small_config();
};

TEST_F(CreateTest, PeersThatAreSlowerThanTheHostAreUsedOnlyIfTheyAreNamed) {
  const auto machine = std::move(*make_simulated_backend(*machine_from_preset("4x4090-pcie")));
  const auto by_itself = PeerCache::create(*machine, config_).value();
  for (const PoolStats& pool : by_itself->stats().pools) EXPECT_NE(pool.tier, Tier::peer) << pool.device;
  config_.peers = {2};
  const auto named = PeerCache::create(*machine, config_).value();
  EXPECT_EQ(named->stats().pools.front().device, 2);
}

TEST_F(CreateTest, NamesTheFieldItsValueAndItsLimit) {
  const auto with = [&](auto change) {
    PeerCacheConfig config = small_config();
    change(config);
    return config;
  };
  refuses(with([](auto& c) { c.consumer = 5; }), ErrorCode::not_found, "consumer 5");
  refuses(with([](auto& c) { c.consumer = kHost; }), ErrorCode::not_found, "consumer -1");
  refuses(with([](auto& c) { c.peers = {7}; }), ErrorCode::not_found, "peer 7");
  refuses(with([](auto& c) { c.peers = {0}; }), ErrorCode::invalid_argument, "own peer");
  refuses(with([](auto& c) { c.peers = {1, 1}; }), ErrorCode::invalid_argument, "twice");
  refuses(with([](auto& c) { c.segment_min_bytes = 0; }), ErrorCode::invalid_argument,
          "segment_min_bytes is 0");
  refuses(with([](auto& c) { c.segment_max_bytes = 1; }), ErrorCode::invalid_argument, "segment_min_bytes");
  refuses(with([](auto& c) { c.host_chunk_bytes = 2 * GiB; }), ErrorCode::invalid_argument, "1073741824");
  refuses(with([](auto& c) { c.max_objects = 0; }), ErrorCode::invalid_argument, "max_objects is 0");
  refuses(with([](auto& c) { c.local_budget_bytes = 1ULL << 50; }), ErrorCode::invalid_argument,
          "local_budget_bytes");
  refuses(with([](auto& c) { c.host_budget_bytes = 1ULL << 60; }), ErrorCode::invalid_argument,
          "host_budget_bytes");
  refuses(with([](auto& c) { c.pressure.sample_interval_ns = 0; }), ErrorCode::invalid_argument,
          "sample_interval_ns");
  refuses(with([](auto& c) { c.background_bytes = 0; }), ErrorCode::invalid_argument, "background_bytes");
  refuses(with([](auto& c) { c.peer_policy.eviction = "clever"; }), ErrorCode::not_found, "lru_2");
  refuses(with([](auto& c) { c.local_policy.admission = "clever"; }), ErrorCode::not_found, "second_hit");
  refuses(with([](auto& c) { c.placement = "clever"; }), ErrorCode::not_found, "best_fit");
}

TEST_F(CreateTest, APeerWithoutPeerAccessIsRefusedByNameAndLeftOutOtherwise) {
  Machine machine = *machine_from_preset("2xh100-nvl");
  for (MachineLink& link : machine.links)
    if (link.info.from != kHost && link.info.to != kHost) link.info.peer_access = false;
  backend_ = std::move(*make_simulated_backend(machine));
  config_.peers = {1};
  refuses(config_, ErrorCode::unavailable, "no peer access");
  config_.peers = {};
  const auto cache = PeerCache::create(*backend_, config_);
  ASSERT_TRUE(cache.has_value());
  EXPECT_EQ((*cache)->stats().pools.size(), 1U) << "host memory alone";
}

TEST_F(CreateTest, APathThatCorruptsIsFoundAndNotUsed) {
  SimulationOptions options;
  options.faults.corrupt_copy.rate = 1;
  backend_ = std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl"), options));
  config_.verify_paths = true;
  config_.peers = {1};
  refuses(config_, ErrorCode::unavailable, "the pattern came back changed");
}

class CallTest : public ::testing::Test {
 protected:
  World world_;
  std::vector<std::byte> bytes_ = content(9, 1, MiB);
};

TEST_F(CallTest, PutRefusesWhatCannotBeMeant) {
  const auto refused = [&](const void* source, std::uint64_t bytes, const PutOptions& options) {
    const auto result = world_.cache->put(1, source, bytes, options);
    EXPECT_FALSE(result.has_value());
    return result ? Error{} : result.error();
  };
  EXPECT_EQ(refused(nullptr, MiB, {}).code, ErrorCode::invalid_argument);
  EXPECT_EQ(refused(bytes_.data(), 0, {}).code, ErrorCode::invalid_argument);
  const Error huge = refused(bytes_.data(), 1ULL << 63, {});
  EXPECT_EQ(huge.code, ErrorCode::invalid_argument);
  EXPECT_NE(huge.message.find("9223372036854775808"), std::string::npos) << huge.message;
  EXPECT_EQ(refused(bytes_.data(), MiB, {.source_device = 4}).code, ErrorCode::invalid_argument);
  EXPECT_EQ(refused(bytes_.data(), MiB, {.backing = Backing::external_host, .source_device = 0}).code,
            ErrorCode::invalid_argument);
  EXPECT_EQ(refused(bytes_.data(), MiB, {.stream = static_cast<StreamId>(4711)}).code, ErrorCode::not_found);
  EXPECT_EQ(refused(bytes_.data(), 1ULL << 40, {}).code, ErrorCode::out_of_memory);
  EXPECT_EQ(refused(bytes_.data(), 1ULL << 40, {.backing = Backing::lossy}).code, ErrorCode::out_of_memory);
  const CacheStats stats = world_.cache->stats();
  EXPECT_EQ(stats.puts, stats.puts_stored + stats.puts_refused);
  EXPECT_EQ(stats.puts_refused, 8U);
  EXPECT_EQ(stats.objects, 0U);
}

TEST_F(CallTest, APutThatFailsLeavesTheOldContent) {
  ASSERT_TRUE(world_.put(1, 1, MiB));
  ASSERT_FALSE(world_.cache->put(1, bytes_.data(), 1ULL << 40).has_value());
  FaultPlan plan;
  plan.refuse_copy.rate = 1;
  world_.backend->set_faults(plan);
  ASSERT_FALSE(world_.put(1, 2, MiB).has_value());
  world_.backend->set_faults({});
  EXPECT_NE(world_.fetch(1, 1, MiB), Tier::none);
  world_.audit();
}

TEST_F(CallTest, PinnedMemoryThatCannotBeHadIsAnErrorAndNoMore) {
  FaultPlan plan;
  plan.fail_host_map.rate = 1;
  world_.backend->set_faults(plan);
  EXPECT_EQ(world_.put(1, 1, MiB).error().code, ErrorCode::out_of_memory);
  world_.backend->set_faults({});
  EXPECT_TRUE(world_.put(1, 1, MiB).has_value());
  EXPECT_NE(world_.fetch(1, 1, MiB), Tier::none);
}

TEST(LimitTest, MaxObjectsIsNamed) {
  PeerCacheConfig config = small_config();
  config.max_objects = 3;
  World world(config);
  for (std::uint64_t key = 1; key <= 3; ++key) ASSERT_TRUE(world.put(key, 1, KiB));
  const auto refused = world.put(4, 1, KiB);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::out_of_memory);
  EXPECT_NE(refused.error().message.find("3 objects"), std::string::npos) << refused.error().message;
  ASSERT_TRUE(world.cache->erase(1).has_value());
  world.settle();
  EXPECT_TRUE(world.put(4, 1, KiB).has_value());
}

TEST_F(CallTest, FetchChecksStreamDestinationAndSize) {
  ASSERT_TRUE(world_.put(1, 1, MiB));
  FetchItem item;
  item.key = 1;
  item.capacity_bytes = MiB;
  EXPECT_EQ(world_.cache->fetch({&item, 1}, world_.stream).error().code, ErrorCode::invalid_argument);
  item.destination = world_.staging;
  EXPECT_EQ(world_.cache->fetch({&item, 1}, static_cast<StreamId>(4711)).error().code, ErrorCode::not_found);
  const StreamId other = *world_.backend->create_stream(1);
  const Status wrong = world_.cache->fetch({&item, 1}, other);
  ASSERT_FALSE(wrong.has_value());
  EXPECT_EQ(wrong.error().code, ErrorCode::invalid_argument) << wrong.error().message;
  item.capacity_bytes = MiB - 1;
  ASSERT_TRUE(world_.cache->fetch({&item, 1}, world_.stream).has_value());
  EXPECT_EQ(item.outcome, ErrorCode::invalid_argument);
  EXPECT_EQ(item.bytes, MiB) << "so that the caller knows what it needs";
  EXPECT_TRUE(world_.cache->fetch({}, world_.stream).has_value()) << "nothing to do is no error";
}

TEST_F(CallTest, ReclaimsNameTheirDevice) {
  EXPECT_EQ(world_.cache->reclaim(0, MiB, 0).error().code, ErrorCode::not_found);
  EXPECT_EQ(world_.cache->begin_reclaim(9, MiB, 0).error().code, ErrorCode::not_found);
  EXPECT_EQ(world_.cache->reclaim(1, 0, 0).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(world_.cache->reclaim_status(static_cast<ReclaimId>(77)).error().code, ErrorCode::not_found);
}

TEST_F(CallTest, UnknownKeysTiersAndStreams) {
  EXPECT_EQ(world_.cache->erase(1).error().code, ErrorCode::not_found);
  EXPECT_EQ(world_.cache->acquire(1, world_.stream).outcome(), ErrorCode::not_found);
  EXPECT_EQ(world_.cache->locate(1), Tier::none);
  EXPECT_EQ(world_.cache->forget_stream(static_cast<StreamId>(4711)).error().code, ErrorCode::not_found);
  const Key key = 1;
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host, Tier::none})
    EXPECT_EQ(world_.cache->prefetch({&key, 1}, tier), 0U);
  Lease empty;
  empty.release();
  EXPECT_FALSE(empty);
}

TEST_F(CallTest, LeasesOnOneCopyHaveALimit) {
  ASSERT_TRUE(world_.put(1, 1, KiB));
  std::vector<Lease> leases;
  for (int i = 0; i < 32'767; ++i) {
    leases.push_back(world_.cache->acquire(1, StreamId::none));
    ASSERT_TRUE(leases.back()) << i;
  }
  EXPECT_EQ(world_.cache->acquire(1, StreamId::none).outcome(), ErrorCode::out_of_memory);
  leases.pop_back();
  EXPECT_TRUE(world_.cache->acquire(1, StreamId::none));
}

}  // namespace
}  // namespace harvest::testing
