// SPDX-License-Identifier: Apache-2.0
#include "backend/forwarding_backend.hpp"
#include "core/world.hpp"

/// A driver that cannot order work on the device, or cannot record an event, must not cost a right byte:
/// the cache waits on the host instead, or says that the read failed.
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
    if (fails(fail_record_after_)) return fail(ErrorCode::out_of_memory, "no event can be had now");
    return inner_.record_event(stream);
  }
  bool is_capturing(StreamId stream) const override { return stream == capturing_; }
  void capture(StreamId stream) { capturing_ = stream; }

  /// The call after the next `calls` fails, once.
  void fail_wait_after(int calls) { fail_wait_after_ = calls; }
  void fail_record_after(int calls) { fail_record_after_ = calls; }

 private:
  static bool fails(int& after) { return after >= 0 && after-- == 0; }

  int fail_wait_after_ = -1;
  int fail_record_after_ = -1;
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

  void put(std::uint64_t key, Backing backing) {
    sources_[key] = content(key, 1, kBytes);
    const auto stored = cache_->put(key, sources_[key].data(), kBytes, {.backing = backing});
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
