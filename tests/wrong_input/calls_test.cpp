// SPDX-License-Identifier: Apache-2.0
#include <harvest/runner.hpp>

#include <chrono>
#include <limits>
#include <stdexcept>
#include <thread>

#include "backend/forwarding_backend.hpp"
#include "core/world.hpp"
#include "wrong_input/table.hpp"

/// Writing, reading and asking.
namespace harvest::testing {
namespace {

constexpr std::uint64_t kBytes = 4 * KiB;
constexpr StreamId kNoStream{4711};
constexpr StreamId kHighestStream{UINT32_MAX};

PeerCacheConfig without(std::uint64_t PeerCacheConfig::*budget) {
  PeerCacheConfig config = small_config();
  config.*budget = 0;
  return config;
}

class PutTable : public ::testing::Test {
 protected:
  Outcome put(const PutOptions& options, std::uint64_t bytes = kBytes) {
    return world_.cache->put(1, bytes_.data(), bytes, options);
  }

  void show_sources();
  void show_options();
  void show_room();

  World world_;
  std::vector<std::byte> bytes_ = content(9, 1, kBytes);
  Table table_{"`put` and `erase`"};
};

void PutTable::show_sources() {
  PeerCache& cache = *world_.cache;
  const auto* last_page = reinterpret_cast<const std::byte*>(UINTPTR_MAX - 100);
  table_.shows("`source` null", cache.put(1, nullptr, kBytes));
  table_.shows("`bytes` 0", put({}, 0));
  table_.shows("`bytes` 2^63", put({}, 1ULL << 63));
  table_.shows("`bytes` 2^46 + 1", put({}, (1ULL << 46) + 1));
  table_.shows("`source` + `bytes` beyond the last address", cache.put(1, last_page, kBytes));
  table_.shows("the same, `external_host`",
               cache.put(1, last_page, kBytes, {.backing = Backing::external_host}));
  table_.shows("`source_device` 4", put({.source_device = 4}));
  table_.shows("`external_host`, `source_device` 0",
               put({.backing = Backing::external_host, .source_device = 0}));
  table_.shows("`source` of the host, `source_device` 0", put({.source_device = 0}));
  table_.shows("the same, `lossy`", put({.backing = Backing::lossy, .source_device = 0}));
}

void PutTable::show_options() {
  const StreamId destroyed = *world_.backend->create_stream(0);
  ASSERT_TRUE(world_.backend->destroy_stream(destroyed));
  table_.shows("`backing` 9", put({.backing = static_cast<Backing>(9)}));
  table_.shows("`recompute_cost_ns` not a number",
               put({.recompute_cost_ns = std::numeric_limits<double>::quiet_NaN()}));
  table_.shows("`recompute_cost_ns` -1", put({.recompute_cost_ns = -1}));
  table_.shows("`recompute_cost_ns` infinite",
               put({.recompute_cost_ns = std::numeric_limits<double>::infinity()}));
  table_.shows("`stream` 4711, which is none", put({.stream = kNoStream}));
  table_.shows("`stream` that was destroyed", put({.stream = destroyed}));
}

void PutTable::show_room() {
  table_.shows("`bytes` beyond the host's budget", put({}, GiB));
  table_.shows("`bytes` beyond each peer's budget, `lossy`", put({.backing = Backing::lossy}, GiB));
  table_.shows("`bytes` beyond every budget, `spill`", put({.backing = Backing::spill}, GiB));
  World alone(without(&PeerCacheConfig::peer_budget_bytes));
  table_.shows("`lossy` without peers", alone.put(1, 1, kBytes, backed_by(Backing::lossy)));
  World no_host(without(&PeerCacheConfig::host_budget_bytes));
  table_.shows("`managed_host` with `host_budget_bytes` 0", no_host.put(1, 1, kBytes));
  PeerCacheConfig three = small_config();
  three.max_objects = 3;
  World full(three);
  for (std::uint64_t key = 1; key <= 3; ++key) ASSERT_TRUE(full.put(key, 1, kBytes));
  table_.shows("one more than `max_objects`", full.put(4, 1, kBytes));
}

TEST_F(PutTable, IsTrue) {
  show_sources();
  show_options();
  show_room();
  const CacheStats stats = world_.cache->stats();
  EXPECT_EQ(stats.puts_refused, stats.puts) << "each was counted";
  EXPECT_EQ(stats.objects, 0U);
  for (const PoolStats& pool : stats.pools)
    EXPECT_TRUE(pool.in_service) << "the caller's mistake is no peer's";

  std::vector<std::byte> odd(kBytes + 1);
  write_content(std::span(odd).subspan(1), 7, 1);
  table_.shows("`source` at an odd address", world_.cache->put(7, odd.data() + 1, kBytes));
  EXPECT_NE(world_.fetch(7, 1, kBytes), Tier::none);
  table_.shows("`erase` of a key that is not there", world_.cache->erase(42));
  ASSERT_TRUE(world_.put(1, 1, kBytes));
  ASSERT_TRUE(world_.cache->erase(1));
  table_.shows("`erase` of a key twice", world_.cache->erase(1));
  world_.audit();
}

/// One of the two calls, on a cache with key 1 on a peer and key 2 on the host.
class FetchTable : public ::testing::TestWithParam<bool> {
 protected:
  FetchTable() {
    EXPECT_TRUE(world_.put(1, 1, kBytes, backed_by(Backing::lossy)));
    EXPECT_TRUE(world_.put(2, 1, kBytes));
  }

  Status fetch(std::span<FetchItem> items, StreamId stream) {
    return GetParam() ? world_.cache->fetch_and_wait(items, stream) : world_.cache->fetch(items, stream);
  }
  FetchItem item(std::uint64_t key, std::size_t place = 0, std::uint64_t capacity_bytes = kBytes) {
    FetchItem one;
    one.key = key;
    one.destination = world_.staging + place * kBytes;
    one.capacity_bytes = capacity_bytes;
    return one;
  }
  Outcome outcome(FetchItem one) {
    EXPECT_TRUE(fetch({&one, 1}, world_.stream));
    EXPECT_EQ(one.served == Tier::none, one.outcome != ErrorCode::ok);
    return one.outcome;
  }
  void show_items();

  World world_;
  Table table_{"`fetch` and `fetch_and_wait`"};
};

void FetchTable::show_items() {
  table_.shows("an item of a key that is not there", outcome(item(42)));
  table_.shows("an item with `capacity_bytes` 0", outcome(item(1, 0, 0)));
  FetchItem small = item(1, 0, kBytes - 1);
  EXPECT_TRUE(fetch({&small, 1}, world_.stream));
  EXPECT_EQ(small.bytes, kBytes) << "so that the caller knows what it needs";
  table_.shows("an item with `capacity_bytes` one too small", small.outcome);

  std::vector<std::byte> own(kBytes);
  std::vector<FetchItem> batch{item(1, 0), item(1, 1), item(2, 2), item(2, 3)};
  batch[1].destination = batch[2].destination = own.data();
  EXPECT_TRUE(fetch(batch, world_.stream));
  EXPECT_EQ(batch[1].outcome, batch[2].outcome);
  table_.shows("an item whose `destination` is not the consumer's memory", batch[1].outcome);
  EXPECT_EQ(batch[0].served, Tier::peer);
  EXPECT_EQ(batch[3].served, Tier::host);
  EXPECT_EQ(world_.download(world_.staging, kBytes), content(1, 1, kBytes));
  EXPECT_EQ(world_.download(world_.staging + 3 * kBytes, kBytes), content(2, 1, kBytes));
  world_.cache->poll();
  for (const PoolStats& pool : world_.cache->stats().pools) EXPECT_TRUE(pool.in_service) << pool.device;
  table_.shows("its neighbours in the same batch", batch[0].outcome);
}

TEST_P(FetchTable, IsTrue) {
  const StreamId other = *world_.backend->create_stream(1);
  std::vector<FetchItem> good{item(1), item(1, 1)};
  table_.shows("no items", fetch({}, world_.stream));
  table_.shows("`stream` `none`", fetch(good, StreamId::none));
  table_.shows("`stream` 4711, which is none", fetch(good, kNoStream));
  table_.shows("`stream` of another device", fetch(good, other));
  table_.shows("a key twice", fetch(good, world_.stream));
  for (const FetchItem& one : good) EXPECT_EQ(one.served, Tier::peer);
  good[1].destination = nullptr;
  table_.shows("`destination` null", fetch(good, world_.stream));
  show_items();
}

INSTANTIATE_TEST_SUITE_P(Both, FetchTable, ::testing::Bool());

/// A lease with a stream that does not exist holds nothing up once it is released.
Outcome acquire_with(World& world, StreamId stream) {
  const Lease lease = world.cache->acquire(1, stream);
  return lease.outcome();
}

void end_under_a_lease() {
  World world;
  static_cast<void>(world.put(1, 1, kBytes));
  const Lease lease = world.cache->acquire(1, StreamId::none);
  world.cache.reset();
}

/// Says that a stream is being captured.
class CapturedBackend final : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  bool is_capturing(StreamId stream) const override { return stream == captured; }
  Result<EventId> record_event(StreamId stream) override {
    if (stream == captured) return fail(ErrorCode::not_supported, "the event would be the graph's");
    return inner_.record_event(stream);
  }
  StreamId captured = StreamId::none;
};

void end_under_a_capture() {
  const auto machine = std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")));
  CapturedBackend backend(*machine);
  auto cache = std::move(*PeerCache::create(backend, small_config()));
  const std::vector<std::byte> bytes = content(1, 1, kBytes);
  EXPECT_TRUE(cache->put(1, bytes.data(), kBytes));
  const StreamId stream = *backend.create_stream(0);
  cache->acquire(1, stream).release();
  backend.captured = stream;
  cache.reset();
}

TEST(WrongInput, Leases) {
  Table table("Leases");
  World world;
  ASSERT_TRUE(world.put(1, 1, kBytes));
  ASSERT_TRUE(world.put(2, 1, kBytes, backed_by(Backing::lossy)));
  PeerCache& cache = *world.cache;
  table.shows("`acquire` of a key that is not there", cache.acquire(42, world.stream).outcome());
  table.shows("`acquire` of a `lossy` object by the host", cache.acquire(2, StreamId::none).outcome());
  {
    std::vector<Lease> leases(32'767);
    for (Lease& lease : leases) lease = cache.acquire(1, StreamId::none);
    EXPECT_TRUE(leases.back());
    table.shows("`acquire` number 32,768 on one copy", cache.acquire(1, StreamId::none).outcome());
    leases.pop_back();
    EXPECT_TRUE(cache.acquire(1, StreamId::none)) << "there is room again";
  }
  table.shows("`acquire` with `stream` 4711, which is none", acquire_with(world, kNoStream));
  table.shows("`acquire` with `stream` 2^32 - 1", acquire_with(world, kHighestStream));

  Lease lease = cache.acquire(1, StreamId::none);
  Lease& itself = lease;
  lease = std::move(itself);
  EXPECT_TRUE(lease);
  table.shows("a lease assigned to itself", lease.outcome());
  Lease moved = std::move(lease);
  lease.release();  // NOLINT: moved from, on purpose
  EXPECT_TRUE(moved);
  table.shows("`release` of a lease that was moved from", Status{});
  moved.release();
  moved.release();
  table.shows("`release` twice", Status{});
  EXPECT_EQ(moved.data(), nullptr);
  EXPECT_EQ(moved.bytes(), 0U);
  EXPECT_EQ(moved.device(), kHost);
  table.shows("`data`, `bytes`, `device` of a lease that is not held", Status{});

  ASSERT_TRUE(cache.erase(1));
  world.settle();
  table.stops("the cache ends while a stream that read a leased object is being captured",
              end_under_a_capture);
  table.stops("the cache ends while a lease is held", end_under_a_lease);
}

void throw_at_an_event() {
  const auto backend = std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")));
  PeerCacheConfig config = small_config();
  config.on_event = [](const CacheEvent&) { throw std::runtime_error("no more"); };
  const auto cache = std::move(*PeerCache::create(*backend, std::move(config)));
  const std::vector<std::byte> bytes = content(1, 1, kBytes);
  EXPECT_TRUE(cache->put(1, bytes.data(), kBytes, backed_by(Backing::lossy)));
  static_cast<void>(cache->reclaim(1, kBytes, 0));
}

Outcome prefetched(World& world, std::vector<Key> keys, Tier tier) {
  return std::to_string(world.cache->prefetch(keys, tier));
}

/// In real time; that it polls shows in a promotion which completes.
void show_runner(Table& table) {
  SimulationOptions options;
  options.time = SimulatedTime::real_time;
  for (const TimeNs pause : {TimeNs{0}, TimeNs{-1}, std::numeric_limits<TimeNs>::min()}) {
    World world(small_config(), options);
    ASSERT_TRUE(world.put(1, 1, kBytes));
    const Runner runner(*world.cache, pause);
    EXPECT_EQ(world.cache->prefetch(std::vector<Key>{1}, Tier::peer), 1U);
    while (world.cache->locate(1) != Tier::peer) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  table.shows("`Runner` with a pause of 0 or less", Status{});
}

TEST(WrongInput, LookingAndAsking) {
  Table table("Looking and asking");
  World world;
  ASSERT_TRUE(world.put(1, 1, kBytes));
  ASSERT_TRUE(world.put(2, 1, 48 * MiB));
  table.shows("`locate` of a key that is not there", std::string(to_string(world.cache->locate(42))));
  table.shows("`prefetch` of no keys", prefetched(world, {}, Tier::peer));
  table.shows("`prefetch` of keys that are not there", prefetched(world, {42, 43}, Tier::peer));
  table.shows("`prefetch` to `host`", prefetched(world, {1}, Tier::host));
  table.shows("`prefetch` to `none`", prefetched(world, {1}, Tier::none));
  table.shows("`prefetch` to `local` without `local_budget_bytes`", prefetched(world, {1}, Tier::local));
  world.settle();
  const std::uint64_t before = world.cache->stats().promotions;
  ASSERT_TRUE(world.put(3, 1, kBytes));
  table.shows("`prefetch` of a key twice", prefetched(world, {3, 3}, Tier::peer));
  table.shows("`prefetch` of an object that is larger than the tier", prefetched(world, {2}, Tier::peer));
  world.settle();
  EXPECT_EQ(world.cache->stats().promotions, before + 1);
  EXPECT_EQ(world.cache->locate(2), Tier::host);

  table.shows("`forget_stream` of `none`", world.cache->forget_stream(StreamId::none));
  table.shows("`forget_stream` of 2^32 - 1", world.cache->forget_stream(kHighestStream));
  // From number 63 on streams are asked for together, up to the highest known: which that one must not
  // become.
  StreamId high = world.stream;
  while (static_cast<std::uint32_t>(high) < 64) high = *world.backend->create_stream(0);
  world.cache->acquire(1, high).release();
  ASSERT_TRUE(world.cache->erase(1));
  world.settle();
  ASSERT_TRUE(world.cache->forget_stream(world.stream));
  table.shows("`forget_stream` twice", world.cache->forget_stream(world.stream));
  table.stops("`on_event` throws", throw_at_an_event);
  show_runner(table);
}

}  // namespace
}  // namespace harvest::testing
