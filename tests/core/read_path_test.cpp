// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "backend/forwarding_backend.hpp"
#include "core/allocation_count.hpp"
#include "core/world.hpp"

/// I9: reads allocate nothing, take no global lock and wait for no reclaim. I8: callbacks may call back.
namespace harvest::testing {
namespace {

/// What a driver does inside its calls is its own affair; and one that can be held inside `map_segment`.
class WatchedBackend final : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  Result<DeviceId> stream_device(StreamId stream) const override {
    const NotCounting pause;
    return inner_.stream_device(stream);
  }
  bool is_capturing(StreamId stream) const override {
    const NotCounting pause;
    return inner_.is_capturing(stream);
  }
  Result<EventId> record_event(StreamId stream) override {
    const NotCounting pause;
    return inner_.record_event(stream);
  }
  void release_event(EventId event) override {
    const NotCounting pause;
    inner_.release_event(event);
  }
  EventState query_event(EventId event) override {
    const NotCounting pause;
    return inner_.query_event(event);
  }
  Status stream_wait(StreamId stream, EventId event) override {
    const NotCounting pause;
    return inner_.stream_wait(stream, event);
  }
  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override {
    const NotCounting pause;
    return inner_.copy(stream, route, copies);
  }
  Result<std::byte*> map_segment(DeviceId device, std::uint64_t bytes,
                                 std::span<const DeviceId> readers) override {
    {
      std::unique_lock lock(mutex_);
      if (hold_) {
        held_ = true;
        changed_.notify_all();
        changed_.wait(lock, [&] { return !hold_; });
        held_ = false;
      }
    }
    return inner_.map_segment(device, bytes, readers);
  }

  void hold_maps() {
    const std::lock_guard lock(mutex_);
    hold_ = true;
  }
  void wait_until_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return held_; });
  }
  void let_go() {
    const std::lock_guard lock(mutex_);
    hold_ = false;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hold_ = false;
  bool held_ = false;
};

constexpr std::uint64_t kObjectBytes = 4 * KiB;
constexpr std::uint64_t kObjects = 3000;

class ReadPathTest : public ::testing::Test {
 protected:
  ReadPathTest()
      : machine_(std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")))),
        backend_(*machine_) {
    PeerCacheConfig config = small_config();
    config.local_budget_bytes = 4 * MiB;
    config.peer_budget_bytes = 8 * MiB;
    config.on_event = [this](const CacheEvent& event) {
      if (on_event_) on_event_(event);
    };
    cache_ = std::move(*PeerCache::create(backend_, std::move(config)));
    stream_ = *backend_.create_stream(0);
    destination_ = *backend_.map_segment(0, 16 * MiB, {});
    source_ = content(1, 1, kObjects * kObjectBytes);
    PutOptions options;
    options.backing = Backing::external_host;
    for (std::uint64_t i = 0; i < kObjects; ++i)
      EXPECT_TRUE(cache_->put(i, source_.data() + i * kObjectBytes, kObjectBytes, options).has_value());
    settle();
  }

  ~ReadPathTest() override {
    cache_.reset();
    EXPECT_TRUE(backend_.unmap_segment(destination_).has_value());
  }

  void settle() { EXPECT_TRUE(cache_->settle(backend_.now_ns() + 10'000'000'000).has_value()); }

  std::vector<FetchItem> batch(std::uint64_t first, std::uint64_t count) {
    std::vector<FetchItem> items(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      items[i].key = (first + i * 7) % kObjects;
      items[i].destination = destination_ + i * kObjectBytes;
      items[i].capacity_bytes = kObjectBytes;
    }
    return items;
  }

  std::unique_ptr<SimulatedBackend> machine_;
  WatchedBackend backend_;
  std::function<void(const CacheEvent&)> on_event_;
  std::unique_ptr<PeerCache> cache_;
  StreamId stream_ = StreamId::none;
  std::byte* destination_ = nullptr;
  std::vector<std::byte> source_;
};

TEST_F(ReadPathTest, TheCounterCounts) {
  const AllocationCount count;
  ::operator delete(::operator new(1));  // an expression with new could be optimised away
  EXPECT_GE(count.stop(), 1U);
}

TEST_F(ReadPathTest, AcquireAndReleaseAllocateNothing) {
  const CacheStats before = cache_->stats();
  const AllocationCount count;
  for (std::uint64_t key = 0; key < kObjects + 100; ++key) {
    Lease lease = cache_->acquire(key, stream_);
    const Lease by_host = cache_->acquire(key, StreamId::none);
    lease.release();
  }
  EXPECT_EQ(count.stop(), 0U) << "I9";
  const CacheStats after = cache_->stats();
  for (std::size_t tier = 0; tier < kTiers; ++tier)
    EXPECT_GT(after.hits[tier], before.hits[tier]) << "the keys were meant to lie in every tier";
  EXPECT_EQ(after.misses - before.misses, 200U);
}

TEST_F(ReadPathTest, SubmittingAFetchAllocatesNothing) {
  auto warm = batch(0, 64);  // the side stream is made when a batch first needs it
  ASSERT_TRUE(cache_->fetch(warm, stream_).has_value());
  for (const std::uint64_t size : {1U, 64U, 1024U, 3000U}) {
    auto items = batch(size, size);
    const AllocationCount count;
    const Status status = cache_->fetch(items, stream_);
    EXPECT_EQ(count.stop(), 0U) << "I9, batch of " << size;
    ASSERT_TRUE(status.has_value());
    for (const FetchItem& item : items) EXPECT_EQ(item.outcome, ErrorCode::ok);
    settle();
  }
  // The path is down: every item of the peer is served from the next tier.
  ASSERT_TRUE(machine_->set_link_up(1, 0, false).has_value());
  const std::uint64_t fallbacks = cache_->stats().fetch_fallbacks;
  auto items = batch(5, 1024);
  {
    const AllocationCount count;
    const Status status = cache_->fetch(items, stream_);
    // The refused copies' messages are the simulated machine's, made inside its calls.
    EXPECT_EQ(count.stop(), 0U) << "I9, next tier";
    ASSERT_TRUE(status.has_value());
  }
  EXPECT_GT(cache_->stats().fetch_fallbacks, fallbacks);
  for (const FetchItem& item : items) EXPECT_EQ(item.outcome, ErrorCode::ok);
}

TEST_F(ReadPathTest, ReadsGoOnWhileTheControlPlaneIsStuck) {
  backend_.hold_maps();
  const std::vector<std::byte> big = content(2, 1, 4 * MiB);
  std::atomic<bool> put_returned{false};
  std::thread writer([&] {
    EXPECT_TRUE(
        cache_->put(100'000, big.data(), big.size()).has_value());  // needs a new chunk of host memory
    put_returned = true;
  });
  backend_.wait_until_held();

  std::thread reader([&] {
    for (std::uint64_t key = 0; key < kObjects; ++key) EXPECT_TRUE(cache_->acquire(key, stream_));
    auto items = batch(0, 1024);
    EXPECT_TRUE(cache_->fetch(items, stream_).has_value());
    for (const FetchItem& item : items) EXPECT_EQ(item.outcome, ErrorCode::ok);
  });
  reader.join();  // would hang here if a read needed the control lock
  EXPECT_FALSE(put_returned) << "the control plane was meant to be stuck";
  backend_.let_go();
  writer.join();
}

TEST_F(ReadPathTest, WhatReadsBehindAWriteWaitsOnTheDevice) {
  const StreamId writer = *backend_.create_stream(0);
  ASSERT_TRUE(machine_->submit_kernel(writer, 20'000'000).has_value());
  PutOptions options;
  options.stream = writer;
  ASSERT_TRUE(cache_->put(kObjects, source_.data(), kObjectBytes, options).has_value());
  std::vector<FetchItem> items = batch(kObjects, 1);
  items[0].key = kObjects;
  const TimeNs before = backend_.now_ns();
  ASSERT_TRUE(cache_->fetch(items, stream_).has_value());
  EXPECT_EQ(items[0].outcome, ErrorCode::ok);
  EXPECT_TRUE(cache_->acquire(kObjects, stream_));
  EXPECT_EQ(backend_.now_ns(), before) << "I9: the call did not wait";
}

TEST_F(ReadPathTest, CallbacksMayCallTheCache) {
  int told = 0;
  on_event_ = [&](const CacheEvent& event) {
    if (event.kind != CacheEvent::Kind::revoked || ++told > 20) return;
    static_cast<void>(cache_->stats());
    static_cast<void>(cache_->erase(event.key));
    EXPECT_TRUE(cache_->put(200'000 + event.key.low, source_.data(), kObjectBytes).has_value());
    EXPECT_TRUE(cache_->acquire(200'000 + event.key.low, StreamId::none));
    EXPECT_TRUE(cache_->reclaim(1, 2 * MiB, backend_.now_ns()).has_value());
    static_cast<void>(cache_->poll());
    EXPECT_TRUE(cache_->audit().has_value());
  };
  ASSERT_TRUE(cache_->reclaim(1, 8 * MiB, backend_.now_ns() + 1'000'000'000).has_value());
  EXPECT_GT(told, 0) << "I8";
  settle();
  EXPECT_TRUE(cache_->audit().has_value());
}

}  // namespace
}  // namespace harvest::testing
