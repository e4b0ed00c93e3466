// SPDX-License-Identifier: Apache-2.0
#include "backend/forwarding_backend.hpp"
#include "core/world.hpp"

/// A driver that cannot order work on the device, or cannot record an event, must not cost a right byte:
/// the cache waits on the host instead, or says that the read failed. One that does not wipe costs room.
namespace harvest::testing {
namespace {

/// Lets calls fail by their number, counted from the one after `..._after` was set.
class FailingBackend final : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  Status stream_wait(StreamId stream, EventId event) override {
    if (fails(fail_wait_after_)) return fail(ErrorCode::out_of_memory, "no wait can be had now");
    return inner_.stream_wait(stream, event);
  }
  Result<EventId> record_event(StreamId stream) override {
    if (stream == eventless_ || fails(fail_record_after_))
      return fail(ErrorCode::out_of_memory, "no event can be had now");
    return inner_.record_event(stream);
  }
  Status fill(StreamId stream, DeviceId device, std::byte* address, std::uint64_t bytes,
              std::uint8_t value) override {
    if (refuses_fills_) return fail(ErrorCode::out_of_memory, "no fill can be had now");
    return inner_.fill(stream, device, address, bytes, value);
  }
  /// The machine's memory is this process's, so what a segment holds when it goes can be looked at.
  Status unmap_segment(std::byte* address) override {
    if (address == watched_) went_wiped_ = *address == std::byte{0};
    return inner_.unmap_segment(address);
  }
  void refuse_fills(bool refuses) { refuses_fills_ = refuses; }
  void watch_segment(const std::byte* address) { watched_ = address; }
  /// Whether the segment that is watched was wiped when it went; nothing if it is there.
  std::optional<bool> went_wiped() const { return went_wiped_; }

  bool is_capturing(StreamId stream) const override { return stream == capturing_; }
  void capture(StreamId stream) { capturing_ = stream; }

  /// The call after the next `calls` fails, once.
  void fail_wait_after(int calls) { fail_wait_after_ = calls; }
  void refuse_events_of(StreamId stream) { eventless_ = stream; }
  void fail_record_after(int calls) { fail_record_after_ = calls; }

 private:
  static bool fails(int& after) { return after >= 0 && after-- == 0; }

  int fail_wait_after_ = -1;
  int fail_record_after_ = -1;
  StreamId eventless_ = StreamId::none;
  bool refuses_fills_ = false;
  const std::byte* watched_ = nullptr;
  std::optional<bool> went_wiped_;
  StreamId capturing_ = StreamId::none;
};

constexpr std::uint64_t kBytes = 4 * MiB;

class FailedWaitTest : public ::testing::Test {
 protected:
  FailedWaitTest()
      : machine_(std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")))),
        backend_(*machine_) {
    PeerCacheConfig config = small_config();
    config.peer_budget_bytes = kBytes;  // room for one object
    config.balance_paths = false;
    cache_ = std::move(*PeerCache::create(backend_, std::move(config)));
    stream_ = *backend_.create_stream(0);
    staging_ = *backend_.map_segment(0, 16 * MiB, {});
  }
  ~FailedWaitTest() override {
    cache_.reset();
    EXPECT_TRUE(backend_.unmap_segment(staging_).has_value());
  }

  void put(std::uint64_t key, Backing backing, std::uint32_t tenant = 0) {
    sources_[key] = content(key, 1, kBytes);
    const auto stored =
        cache_->put(key, sources_[key].data(), kBytes, {.backing = backing, .tenant = tenant});
    ASSERT_TRUE(stored.has_value()) << stored.error().message;
  }

  std::vector<std::byte> download(const std::byte* from) {
    std::vector<std::byte> out(kBytes);
    const Copy copy{out.data(), from, kBytes};
    EXPECT_TRUE(machine_->copy(stream_, {0, kHost}, {&copy, 1}).has_value());
    const EventId event = *machine_->record_event(stream_);
    machine_->wait_event(event, kNever);
    machine_->release_event(event);
    return out;
  }

  FetchItem item(std::uint64_t key, std::byte* destination) {
    FetchItem wanted;
    wanted.key = key;
    wanted.destination = destination;
    wanted.capacity_bytes = kBytes;
    return wanted;
  }

  std::unique_ptr<SimulatedBackend> machine_;
  FailingBackend backend_;
  std::unique_ptr<PeerCache> cache_;
  StreamId stream_ = StreamId::none;
  std::byte* staging_ = nullptr;
  std::map<std::uint64_t, std::vector<std::byte>> sources_;
};

TEST_F(FailedWaitTest, ASlotIsNotWrittenUnderItsReaders) {
  put(1, Backing::lossy);
  FetchItem first = item(1, staging_);
  ASSERT_TRUE(machine_->submit_kernel(stream_, 20'000'000).has_value());
  ASSERT_TRUE(cache_->fetch({&first, 1}, stream_).has_value());  // reads the slot in 20 ms
  ASSERT_EQ(first.served, Tier::peer);
  ASSERT_TRUE(cache_->erase(1).has_value());
  backend_.fail_wait_after(0);
  put(2, Backing::lossy);  // takes the same slot
  EXPECT_EQ(download(staging_), content(1, 1, kBytes)) << "write after read";
}

TEST_F(FailedWaitTest, TheCallersStreamWaitsForBothPaths) {
  put(1, Backing::lossy);
  put(2, Backing::external_host);
  ASSERT_TRUE(cache_->settle(backend_.now_ns() + 1'000'000'000).has_value());
  std::vector<FetchItem> items{item(1, staging_), item(2, staging_ + kBytes)};
  backend_.fail_wait_after(1);  // the first is the side stream's, the second joins it
  ASSERT_TRUE(cache_->fetch(items, stream_).has_value());
  ASSERT_EQ(items[0].served, Tier::peer);
  ASSERT_EQ(items[1].served, Tier::host);
  EXPECT_EQ(download(staging_ + kBytes), content(2, 1, kBytes)) << "read after write";
  EXPECT_EQ(download(staging_), content(1, 1, kBytes));
}

TEST_F(FailedWaitTest, AFetchThatCannotBeWaitedForIsNotCalledDone) {
  put(1, Backing::external_host);
  FetchItem wanted = item(1, staging_);
  ASSERT_TRUE(machine_->submit_kernel(stream_, 20'000'000).has_value());
  backend_.fail_record_after(0);
  ASSERT_TRUE(cache_->fetch_and_wait({&wanted, 1}, stream_).has_value());
  ASSERT_EQ(wanted.outcome, ErrorCode::ok) << "served again, and waited for";
  EXPECT_GE(machine_->now_ns(), 20'000'000);
  EXPECT_EQ(download(staging_), content(1, 1, kBytes));
}

TEST_F(FailedWaitTest, ASlotWhoseReadersCannotBeAskedIsNotFreed) {
  put(1, Backing::lossy);
  FetchItem first = item(1, staging_);
  ASSERT_TRUE(machine_->submit_kernel(stream_, 20'000'000).has_value());
  ASSERT_TRUE(cache_->fetch({&first, 1}, stream_).has_value());
  backend_.fail_record_after(0);
  ASSERT_TRUE(cache_->erase(1).has_value());
  const auto refused = cache_->put(2, content(2, 1, kBytes).data(), kBytes, {.backing = Backing::lossy});
  EXPECT_FALSE(refused.has_value()) << "the slot is not known to be free";
  EXPECT_EQ(download(staging_), content(1, 1, kBytes)) << "write after read";
  ASSERT_TRUE(cache_->settle(backend_.now_ns() + 1'000'000'000).has_value());
  put(2, Backing::lossy);
}

TEST_F(FailedWaitTest, AWriteWhoseEventComesLateIsAWrite) {
  for (int after = 0; after < 3; ++after) {
    backend_.fail_record_after(after);
    put(1, Backing::lossy);
    FetchItem wanted = item(1, staging_);
    ASSERT_TRUE(cache_->fetch_and_wait({&wanted, 1}, stream_).has_value());
    ASSERT_EQ(wanted.served, Tier::peer) << after;
    EXPECT_EQ(download(staging_), content(1, 1, kBytes)) << after;
    backend_.fail_record_after(-1);
    ASSERT_TRUE(cache_->erase(1).has_value());
    ASSERT_TRUE(cache_->settle(backend_.now_ns() + 1'000'000'000).has_value());
  }
}

TEST_F(FailedWaitTest, ASlotThatCannotBeWipedIsNotUsedAgain) {
  put(1, Backing::lossy, 7);
  const std::byte* const slot = cache_->acquire(1, stream_).data();
  ASSERT_EQ(std::memcmp(slot, sources_[1].data(), kBytes), 0);
  backend_.refuse_fills(true);
  ASSERT_TRUE(cache_->erase(1).has_value());
  const std::vector<std::byte> theirs = content(2, 1, kBytes - 4096);  // the slot is larger
  const PutOptions options{.backing = Backing::lossy, .tenant = 8};
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(cache_->put(2, theirs.data(), theirs.size(), options).has_value()) << "I12";
    EXPECT_TRUE(cache_->audit().has_value()) << "I7";
    cache_->poll();
  }
  backend_.refuse_fills(false);
  ASSERT_TRUE(cache_->settle(backend_.now_ns() + 1'000'000'000).has_value());
  ASSERT_TRUE(cache_->put(2, theirs.data(), theirs.size(), options).has_value());
  const Lease lease = cache_->acquire(2, stream_);
  ASSERT_EQ(lease.data(), slot);
  EXPECT_TRUE(std::all_of(slot + theirs.size(), slot + kBytes, [](std::byte b) { return b == std::byte{0}; }))
      << "I12";
}

TEST_F(FailedWaitTest, ASegmentThatCannotBeWipedDoesNotGoBack) {
  put(1, Backing::lossy, 7);
  backend_.watch_segment(cache_->acquire(1, stream_).data());
  backend_.refuse_fills(true);
  const auto report = cache_->reclaim(1, kBytes, backend_.now_ns() + 10'000'000);
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->late_bytes, kBytes);
  ASSERT_FALSE(backend_.went_wiped().has_value()) << "I12: it is gone, and was not wiped";
  backend_.refuse_fills(false);
  ASSERT_TRUE(cache_->settle(backend_.now_ns() + 1'000'000'000).has_value());
  EXPECT_EQ(backend_.went_wiped(), true) << "I12";
  EXPECT_EQ(machine_->mapped_bytes(1), 0U) << "I5";
}

TEST_F(FailedWaitTest, ACacheEndsThoughNothingIsWiped) {
  put(1, Backing::lossy, 7);
  put(2, Backing::managed_host, 7);
  backend_.refuse_fills(true);
  cache_.reset();
  EXPECT_EQ(machine_->mapped_bytes(1), 0U);
  EXPECT_EQ(machine_->mapped_bytes(kHost), 0U);
}

/// What still reads a copy cannot be waited for then: its memory is kept rather than given away (I1), and the
/// process goes on (I10).
TEST_F(FailedWaitTest, ACacheEndsThoughNoEventIsToBeHad) {
  put(1, Backing::lossy);
  put(2, Backing::managed_host);
  FetchItem first = item(1, staging_);
  ASSERT_TRUE(machine_->submit_kernel(stream_, 5'000'000'000).has_value());
  ASSERT_TRUE(cache_->fetch({&first, 1}, stream_).has_value());
  backend_.refuse_events_of(stream_);
  cache_.reset();
  EXPECT_EQ(machine_->mapped_bytes(1), kBytes) << "I1";
  EXPECT_EQ(machine_->mapped_bytes(kHost), 0U);
  EXPECT_EQ(download(staging_), content(1, 1, kBytes));
}

/// A lost device refuses too, but nothing is left there to wipe.
TEST_F(FailedWaitTest, ALostDeviceIsNotWiped) {
  put(1, Backing::lossy, 7);
  ASSERT_TRUE(machine_->lose_device(1).has_value());
  ASSERT_TRUE(cache_->erase(1).has_value());
  EXPECT_EQ(cache_->stats().pools.front().draining_bytes, 0U);
  backend_.sleep_until(backend_.now_ns() + cache_->config().pressure.sample_interval_ns);
  EXPECT_TRUE(cache_->settle(backend_.now_ns() + 1'000'000'000).has_value());
  EXPECT_EQ(machine_->mapped_bytes(1), 0U);
}

/// What a graph reads at each of its replays, a lease must hold; a fetch holds nothing when it has returned.
TEST_F(FailedWaitTest, NothingIsFetchedOrPutOnAStreamThatIsCaptured) {
  put(1, Backing::external_host);
  FetchItem wanted = item(1, staging_);
  backend_.capture(stream_);
  EXPECT_EQ(cache_->fetch({&wanted, 1}, stream_).error().code, ErrorCode::not_supported);
  EXPECT_EQ(cache_->fetch_and_wait({&wanted, 1}, stream_).error().code, ErrorCode::not_supported);
  const PutOptions on_stream{.backing = Backing::lossy, .stream = stream_};
  EXPECT_EQ(cache_->put(2, sources_[1].data(), kBytes, on_stream).error().code, ErrorCode::not_supported);
  EXPECT_TRUE(cache_->acquire(1, stream_)) << "the caller's own copies may be captured";
  backend_.capture(StreamId::none);
  EXPECT_TRUE(cache_->fetch({&wanted, 1}, stream_));
}

}  // namespace
}  // namespace harvest::testing
