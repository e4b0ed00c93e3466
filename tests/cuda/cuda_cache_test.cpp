// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <harvest/peer_cache.hpp>

#include <deque>
#include <map>
#include <numeric>

#include "backend/checked.hpp"
#include "cuda/fake_machine.hpp"

/// PeerCache over the CUDA backend, every byte compared.
namespace harvest::test {
namespace {

using Contents = std::map<std::uint64_t, std::vector<std::byte>>;

PeerCacheConfig small_config() {
  PeerCacheConfig config;
  config.host_budget_bytes = 64 * kMiB;
  config.peer_budget_bytes = 32 * kMiB;
  config.segment_min_bytes = 2 * kMiB;
  config.segment_max_bytes = 4 * kMiB;
  config.host_chunk_bytes = 4 * kMiB;
  config.max_objects = 4096;
  config.pressure.reserve_bytes = 64 * kMiB;
  config.pressure.hysteresis_bytes = 2 * kMiB;
  config.pressure.regrow_delay_ns = 50'000'000;
  return config;
}

/// The backend under `checked`, which calls every missing order a violation.
class CacheWorld {
 public:
  /// `prepare` runs when the machine is there and nothing has used it yet.
  explicit CacheWorld(
      const fake::MachineDescription& machine, PeerCacheConfig config = small_config(),
      void (*prepare)() = [] {})
      : machine_(machine), backend_(make_checked_backend(make_backend())) {
    prepare();
    config.on_event = [this](const CacheEvent& event) { events.push_back(event); };
    cache_ = PeerCache::create(*backend_, std::move(config)).value();
    stream_ = backend_->create_stream(0).value();
    staging_ = backend_->map_segment(0, kStagingBytes, {}).value();
  }
  ~CacheWorld() {
    cache_.reset();
    EXPECT_TRUE(backend_->unmap_segment(staging_));
    EXPECT_TRUE(backend_->destroy_stream(stream_));
    EXPECT_THAT(backend_->violations(), testing::IsEmpty());
  }

  Backend& backend() { return *backend_; }
  PeerCache& cache() { return *cache_; }
  StreamId stream() const { return stream_; }

  void put(std::uint64_t key, std::uint64_t bytes, Backing backing) {
    auto& source = sources_.emplace_back(content(bytes, key * 1000 + ++version_));
    PutOptions options;
    options.backing = backing;
    const auto put = cache_->put(key, source.data(), bytes, options);
    ASSERT_TRUE(put.has_value()) << put.error().message;
    current[key] = source;
  }

  std::vector<std::byte> download(const std::byte* address, DeviceId device, std::uint64_t bytes) {
    std::vector<std::byte> out(bytes);
    EXPECT_TRUE(copy_one(*backend_, stream_, {device, kHost}, out.data(), address, bytes));
    EXPECT_EQ(finish(*backend_, stream_), EventState::complete);
    return out;
  }

  /// Fetches all of `keys` in one batch and compares; the tier of each.
  std::map<std::uint64_t, Tier> fetch(const std::vector<std::uint64_t>& keys) {
    std::vector<FetchItem> items;
    std::uint64_t at = 0;
    for (const std::uint64_t key : keys) {
      items.push_back({.key = key, .destination = staging_ + at, .capacity_bytes = current[key].size()});
      at += (current[key].size() + 255) / 256 * 256;
    }
    EXPECT_LE(at, kStagingBytes);
    EXPECT_TRUE(backend_->fill(stream_, 0, staging_, at, 0xEE));
    EXPECT_TRUE(cache_->fetch(items, stream_));
    std::map<std::uint64_t, Tier> served;
    for (const FetchItem& item : items) {
      served[item.key.low] = item.served;
      if (item.served == Tier::none) continue;
      EXPECT_EQ(item.bytes, current[item.key.low].size());
      EXPECT_EQ(download(static_cast<const std::byte*>(item.destination), 0, item.bytes),
                current[item.key.low])
          << "wrong bytes for key " << item.key.low << " from tier " << to_string(item.served);
    }
    return served;
  }

  void settle() {
    const Status settled = cache_->settle(backend_->now_ns() + 20'000'000'000);
    EXPECT_TRUE(settled.has_value()) << settled.error().message;
    const Status audit = cache_->audit();
    EXPECT_TRUE(audit.has_value()) << audit.error().message;
  }

  std::size_t count(CacheEvent::Kind kind) const {
    return static_cast<std::size_t>(std::count_if(
        events.begin(), events.end(), [&](const CacheEvent& event) { return event.kind == kind; }));
  }

  std::vector<DeviceId> peers() const {
    std::vector<DeviceId> gpus;
    for (const DeviceInfo& device : backend_->devices())
      if (device.id > 0) gpus.push_back(device.id);
    return gpus;
  }

  Contents current;
  std::vector<CacheEvent> events;

 private:
  static constexpr std::uint64_t kStagingBytes = 96 * kMiB;
  FakeMachine machine_;
  std::unique_ptr<CheckedBackend> backend_;
  std::deque<std::vector<std::byte>> sources_;  ///< outlives the cache, which reads external objects in place
  std::unique_ptr<PeerCache> cache_;
  StreamId stream_ = StreamId::none;
  std::byte* staging_ = nullptr;
  std::uint64_t version_ = 0;
};

constexpr Backing kBackings[] = {Backing::external_host, Backing::managed_host, Backing::spill,
                                 Backing::lossy};
constexpr std::uint64_t kSizes[] = {1, 4'097, 65'536, 300'001, 2 * kMiB, 5 * kMiB + 3};

/// Objects of each size and backing; their keys.
std::vector<std::uint64_t> put_all(CacheWorld& world, std::uint64_t first_key = 1) {
  std::vector<std::uint64_t> keys;
  for (const Backing backing : kBackings) {
    for (const std::uint64_t bytes : kSizes) {
      keys.push_back(first_key + keys.size());
      world.put(keys.back(), bytes, backing);
    }
  }
  return keys;
}

bool is_lossy(std::uint64_t key) {
  return (key - 1) / std::size(kSizes) == 3;
}

class CudaCache : public testing::TestWithParam<int> {};

TEST_P(CudaCache, DeliversEveryByteFromEveryTier) {
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 128 * kMiB;  // room for all, so that nothing lossy makes way
  CacheWorld world(machine_of(GetParam()), config);
  const auto keys = put_all(world);
  for (const auto& [key, tier] : world.fetch(keys)) EXPECT_NE(tier, Tier::none) << key;
  EXPECT_EQ(world.cache().prefetch(std::vector<Key>(keys.begin(), keys.end()), Tier::peer), keys.size());
  world.settle();
  std::size_t from_peers = 0;
  for (int round = 0; round < 3; ++round)
    for (const auto& [key, tier] : world.fetch(keys)) from_peers += tier == Tier::peer ? 1 : 0;
  EXPECT_GE(from_peers, 3 * keys.size() / 2) << "promotion brought most to the peers";
  // New bytes under old keys.
  for (const std::uint64_t key : {keys[0], keys[7], keys[13]}) world.put(key, 70'001, Backing::managed_host);
  for (const auto& [key, tier] : world.fetch(keys)) EXPECT_NE(tier, Tier::none) << key;
  world.settle();
}

TEST_P(CudaCache, LosesNothingToReclaims) {
  CacheWorld world(machine_of(GetParam()));
  const auto keys = put_all(world);
  ASSERT_EQ(world.cache().prefetch(std::vector<Key>(keys.begin(), keys.end()), Tier::peer), keys.size());
  world.settle();
  for (const DeviceId peer : world.peers()) {
    const std::uint64_t free_before = world.backend().query_memory(peer)->free_bytes;
    const std::uint64_t ours = 512 * kMiB - free_before;
    if (ours == 0) continue;
    const auto report = world.cache().reclaim(peer, ours, world.backend().now_ns() + 10'000'000'000);
    ASSERT_TRUE(report.has_value()) << report.error().message;
    EXPECT_TRUE(report->finished);
    EXPECT_EQ(report->returned_bytes, ours);
    EXPECT_EQ(world.backend().query_memory(peer)->free_bytes, 512 * kMiB)
        << "given back means given back (I5)";
    EXPECT_EQ(fake::used_bytes(peer), 0U);
    for (const auto& [key, tier] : world.fetch(keys)) {
      EXPECT_TRUE(tier != Tier::none || is_lossy(key)) << key << " was lost (I4)";
    }
  }
  std::size_t missing = 0;
  for (const auto& [key, tier] : world.fetch(keys)) missing += tier == Tier::none ? 1 : 0;
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), missing) << "each loss is told once";
  world.settle();
}

TEST_P(CudaCache, ALeaseHoldsItsSegmentThroughAReclaim) {
  CacheWorld world(machine_of(GetParam()));
  for (std::uint64_t key = 1; key <= 12; ++key) world.put(key, kMiB, Backing::spill);
  world.settle();
  Lease lease = world.cache().acquire(5, world.stream());
  ASSERT_TRUE(lease);
  ASSERT_EQ(lease.tier(), Tier::peer);
  const DeviceId peer = lease.device();
  const std::uint64_t ours = fake::used_bytes(peer);
  const auto id = world.cache().begin_reclaim(peer, ours, world.backend().now_ns() + 20'000'000);
  ASSERT_TRUE(id);
  for (int i = 0; i < 100; ++i) {
    world.cache().poll();
    world.backend().sleep_until(world.backend().now_ns() + 1'000'000);
  }
  const auto held = world.cache().reclaim_status(*id);
  ASSERT_TRUE(held);
  EXPECT_FALSE(held->finished) << "a segment under a lease went away (I1)";
  EXPECT_GT(held->late_bytes, 0U);
  EXPECT_LE(fake::used_bytes(peer), 4 * kMiB) << "more than the lease's own segment waited for it";
  EXPECT_EQ(world.download(lease.data(), peer, kMiB), world.current[5]);
  lease.release();
  world.settle();
  EXPECT_TRUE(world.cache().reclaim_status(*id)->finished);
  EXPECT_EQ(fake::used_bytes(peer), 0U);
  std::vector<std::uint64_t> keys(12);
  std::iota(keys.begin(), keys.end(), 1);
  for (const auto& [key, tier] : world.fetch(keys)) EXPECT_NE(tier, Tier::none) << key;
}

/// Only what has no host copy is spilled, and comes back from wherever it went.
TEST_P(CudaCache, SpillsToHostWhenEveryPeerIsReclaimed) {
  PeerCacheConfig config = small_config();
  config.pressure.regrow_delay_ns = 600'000'000'000;
  CacheWorld world(machine_of(GetParam()), config);
  std::vector<std::uint64_t> keys;
  for (std::uint64_t key = 1; key <= 8; ++key) {
    keys.push_back(key);
    world.put(key, kMiB + key, Backing::spill);
  }
  world.settle();
  for (const auto& [key, tier] : world.fetch(keys)) EXPECT_EQ(tier, Tier::peer);
  std::uint64_t spilled = 0;
  for (const DeviceId peer : world.peers())
    if (const std::uint64_t ours = fake::used_bytes(peer); ours > 0)
      spilled += world.cache().reclaim(peer, ours, world.backend().now_ns() + 10'000'000'000)->spilled_bytes;
  EXPECT_GE(spilled, 8 * kMiB);
  for (const DeviceId peer : world.peers()) EXPECT_EQ(fake::used_bytes(peer), 0U);
  for (const auto& [key, tier] : world.fetch(keys)) EXPECT_EQ(tier, Tier::host) << key;
}

/// CUDA says that the path works, and its bytes are wrong: the self-test finds it before anybody reads.
TEST_P(CudaCache, APathThatCorruptsSilentlyIsNotUsed) {
  CacheWorld world(machine_of(GetParam()), small_config(), [] { fake::corrupt_path(1, 0); });
  const Topology& topology = world.cache().topology();
  EXPECT_EQ(topology.path(1, 0)->state, PathState::failed);
  EXPECT_FALSE(topology.usable_as_peer(1, 0));
  for (DeviceId other = 2; other < GetParam(); ++other)
    EXPECT_TRUE(topology.usable_as_peer(other, 0)) << other;
  std::vector<std::uint64_t> keys;
  for (std::uint64_t key = 1; key <= 8; ++key) {
    keys.push_back(key);
    world.put(key, kMiB + key, GetParam() > 2 ? Backing::spill : Backing::managed_host);
  }
  world.cache().prefetch(std::vector<Key>(keys.begin(), keys.end()), Tier::peer);
  world.settle();
  for (const auto& [key, tier] : world.fetch(keys)) EXPECT_EQ(tier, GetParam() > 2 ? Tier::peer : Tier::host);
  EXPECT_EQ(fake::used_bytes(1), 0U);
}

/// Copies that cannot go directly are not for a cache, but nothing breaks: all is served from host memory.
TEST(CudaCacheAlone, WithoutPeerAccessServesFromHost) {
  CacheWorld world(without_peer_access(machine_of(2)));
  for (std::uint64_t key = 1; key <= 8; ++key) world.put(key, 300'000 + key, Backing::managed_host);
  for (const auto& [key, tier] : world.fetch({1, 2, 3, 4, 5, 6, 7, 8})) EXPECT_EQ(tier, Tier::host) << key;
  EXPECT_EQ(fake::used_bytes(1), 0U);
}

/// A peer that dies takes what was only there with it, and nothing else.
TEST(CudaCacheAlone, ALostPeerLeavesTheRestReadable) {
  CacheWorld world(machine_of(4));
  const auto keys = put_all(world);
  world.cache().prefetch(std::vector<Key>(keys.begin(), keys.end()), Tier::peer);
  world.settle();
  fake::lose_device(2);
  for (int i = 0; i < 200; ++i) {
    world.cache().poll();
    world.backend().sleep_until(world.backend().now_ns() + 1'000'000);
  }
  std::size_t missing = 0;
  for (const auto& [key, tier] : world.fetch(keys)) {
    missing += tier == Tier::none ? 1 : 0;
    const Backing backing = kBackings[(key - 1) / std::size(kSizes)];
    const bool is_at_host = backing == Backing::external_host || backing == Backing::managed_host;
    EXPECT_TRUE(tier != Tier::none || !is_at_host) << key;
  }
  EXPECT_EQ(world.count(CacheEvent::Kind::lost), missing);
}

// --- two processes
// ------------------------------------------------------------------------------------------

/// What another process answers that wants `bytes` of a device that it shares with this one: 0 if it got
/// them.
int other_process_allocates(int device, std::uint64_t bytes) {
  const std::string number = std::to_string(device), size = std::to_string(bytes);
  std::string program = HARVEST_CUDA_OWNER;
  char* arguments[] = {program.data(), const_cast<char*>(number.c_str()), const_cast<char*>(size.c_str()),
                       nullptr};
  pid_t child = 0;
  EXPECT_EQ(::posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments, environ), 0);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

/// Given back means that anybody can have it now (I5).
TEST(CudaTwoProcesses, TheOtherGetsWhatAReclaimReturned) {
  const std::string shared = testing::TempDir() + "harvest_shared_" + std::to_string(::getpid());
  ::setenv("HARVEST_FAKE_CUDA_SHARED", shared.c_str(), 1);
  ::setenv("HARVEST_FAKE_CUDA_DEVICES", "2", 1);
  ::setenv("HARVEST_FAKE_CUDA_BYTES", std::to_string(128 * kMiB).c_str(), 1);
  fake::reset();
  {
    PeerCacheConfig config = small_config();
    config.peer_budget_bytes = 48 * kMiB;
    config.pressure.reserve_bytes = 8 * kMiB;
    config.pressure.regrow_delay_ns = 600'000'000'000;
    const auto backend = make_backend();
    auto cache = PeerCache::create(*backend, config).value();
    const auto source = content(kMiB, 1);
    PutOptions options;
    options.backing = Backing::managed_host;
    std::vector<Key> keys;
    for (std::uint64_t key = 1; key <= 40; ++key) {
      ASSERT_TRUE(cache->put(key, source.data(), kMiB, options));
      keys.emplace_back(key);
    }
    cache->prefetch(keys, Tier::peer);
    ASSERT_TRUE(cache->settle(backend->now_ns() + 20'000'000'000));
    const std::uint64_t ours = fake::used_bytes(1);
    ASSERT_GE(ours, 32 * kMiB);
    EXPECT_EQ(other_process_allocates(1, 120 * kMiB), 2) << "it should not fit beside the cache";
    const auto report = cache->reclaim(1, ours, backend->now_ns() + 10'000'000'000);
    ASSERT_TRUE(report && report->finished);
    EXPECT_EQ(other_process_allocates(1, 120 * kMiB), 0) << "reclaimed bytes are not there for others";
  }
  EXPECT_EQ(fake::leaks().total(), fake::leaks().libraries) << to_string(fake::leaks());
  for (const char* name :
       {"HARVEST_FAKE_CUDA_SHARED", "HARVEST_FAKE_CUDA_DEVICES", "HARVEST_FAKE_CUDA_BYTES"})
    ::unsetenv(name);
  ::unlink(shared.c_str());
}

INSTANTIATE_TEST_SUITE_P(Devices, CudaCache, testing::Values(2, 4, 8));

}  // namespace
}  // namespace harvest::test
