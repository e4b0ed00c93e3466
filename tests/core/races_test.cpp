// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "backend/forwarding_backend.hpp"
#include "core/world.hpp"

/// Two calls that meet at a point that threads alone would hardly ever find.
namespace harvest::testing {
namespace {

/// Does something on another thread right after the next copy on a stream was given, and gives it a while:
/// it may go on meanwhile or have to wait for this call to return, both are right.
class MeetingBackend final : public test::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  ~MeetingBackend() override {
    if (thread_.joinable()) thread_.join();
  }

  void after_next_copy(StreamId stream, std::function<void()> what) {
    stream_ = stream;
    what_ = std::move(what);
  }

  Status copy(StreamId stream, Route route, std::span<const Copy> copies) override {
    const Status status = inner_.copy(stream, route, copies);
    if (!what_ || stream != stream_) return status;
    thread_ = std::thread([this, what = std::exchange(what_, nullptr)] {
      what();
      const std::lock_guard lock(mutex_);
      done_ = true;
      changed_.notify_all();
    });
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, patience_, [this] { return done_; });
    return status;
  }
  void be_patient_for(std::chrono::milliseconds patience) { patience_ = patience; }
  void join() { thread_.join(); }

 private:
  StreamId stream_ = StreamId::none;
  std::function<void()> what_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::chrono::milliseconds patience_{100};
};

/// A driver may hold the caller of a copy for as long as the stream's earlier work takes. A fetch that is
/// held so holds nobody else: polls and erasures go on.
TEST(HeldFetchTest, HoldsNeitherPollsNorErasures) {
  const auto machine = std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")));
  MeetingBackend backend(*machine);
  PeerCacheConfig config = small_config();
  config.peer_budget_bytes = 0;
  const auto cache = std::move(*PeerCache::create(backend, config));
  const std::vector<std::byte> source = content(1, 1, MiB);
  for (std::uint64_t key = 1; key <= 2; ++key) ASSERT_TRUE(cache->put(key, source.data(), MiB));
  const StreamId stream = *backend.create_stream(0);
  FetchItem item;
  item.key = 1;
  item.destination = *backend.map_segment(0, 2 * MiB, {});
  item.capacity_bytes = MiB;
  FetchItem other = item;
  other.key = 2;
  ASSERT_TRUE(cache->fetch_and_wait({&other, 1}, stream))
      << "so that the end of object 2 is tied to the stream";

  std::atomic<bool> went_on{false};
  backend.after_next_copy(stream, [&] {
    cache->poll();
    EXPECT_TRUE(cache->erase(2));
    cache->poll();
    went_on = true;
  });
  backend.be_patient_for(std::chrono::seconds(20));
  ASSERT_TRUE(cache->fetch({&item, 1}, stream));
  EXPECT_TRUE(went_on) << "while the fetch was inside of the driver";
  backend.join();
  EXPECT_TRUE(cache->settle(backend.now_ns() + 1'000'000'000));
  EXPECT_EQ(cache->locate(2), Tier::none);
}

class MeetingTest : public ::testing::Test {
 protected:
  MeetingTest()
      : machine_(std::move(*make_simulated_backend(*machine_from_preset("2xh100-nvl")))),
        backend_(*machine_) {
    PeerCacheConfig config = small_config();
    config.peer_budget_bytes = 0;
    cache_ = std::move(*PeerCache::create(backend_, std::move(config)));
    stream_ = *machine_->create_stream(0);
    destination_ = *machine_->map_segment(0, 2 * MiB, {});
    for (std::uint64_t key = 1; key <= 2; ++key) {
      sources_.push_back(content(key, 1, MiB));
      EXPECT_TRUE(cache_->put(key, sources_.back().data(), MiB).has_value());
    }
    EXPECT_EQ(fetch(2), ErrorCode::ok);  // so that the end of object 2 is tied to the stream
  }

  ~MeetingTest() override {
    cache_.reset();
    EXPECT_TRUE(machine_->unmap_segment(destination_).has_value());
  }

  ErrorCode fetch(std::uint64_t key) {
    FetchItem item;
    item.key = key;
    item.destination = destination_;
    item.capacity_bytes = 2 * MiB;
    EXPECT_TRUE(cache_->fetch_and_wait({&item, 1}, stream_).has_value());
    return item.outcome;
  }

  std::vector<std::byte> fetched() {
    std::vector<std::byte> bytes(MiB);
    const Copy copy{bytes.data(), destination_, MiB};
    EXPECT_TRUE(machine_->copy(stream_, {0, kHost}, {&copy, 1}).has_value());
    const EventId event = *machine_->record_event(stream_);
    machine_->wait_event(event, kNever);
    machine_->release_event(event);
    return bytes;
  }

  void fail_the_next_copy() {
    FaultPlan plan;
    plan.fail_copy.at = 1;
    machine_->set_faults(plan);
  }

  std::unique_ptr<SimulatedBackend> machine_;
  MeetingBackend backend_;
  std::unique_ptr<PeerCache> cache_;
  StreamId stream_ = StreamId::none;
  std::byte* destination_ = nullptr;
  std::vector<std::vector<std::byte>> sources_;
};

// An event tells of failures since the event before it: whoever records one between a fetch's copies and the
// fetch's own event would take the failure away from it.
TEST_F(MeetingTest, AnEraseDoesNotHideTheFailureOfAFetch) {
  fail_the_next_copy();
  backend_.after_next_copy(stream_, [this] { EXPECT_TRUE(cache_->erase(2).has_value()); });
  EXPECT_EQ(fetch(1), ErrorCode::ok);
  EXPECT_EQ(fetched(), sources_[0]) << "I2";
  backend_.join();
}

TEST_F(MeetingTest, AFetchDoesNotHideTheFailureOfAPut) {
  fail_the_next_copy();
  const std::vector<std::byte> source = content(3, 1, MiB);
  PutOptions options;
  options.stream = stream_;
  backend_.after_next_copy(stream_, [this] { EXPECT_EQ(fetch(1), ErrorCode::ok); });
  EXPECT_TRUE(cache_->put(3, source.data(), MiB, options).has_value());
  backend_.join();
  EXPECT_TRUE(cache_->settle(machine_->now_ns() + 1'000'000'000).has_value());
  EXPECT_EQ(fetch(3), ErrorCode::not_found) << "I2: its bytes never arrived";
}

// A put that waits answers for its own copy, whatever becomes of the object meanwhile.
TEST_F(MeetingTest, APutThatIsErasedAtOnceWasStoredAllTheSame) {
  const std::vector<std::byte> source = content(3, 1, MiB);
  std::thread eraser([this] {
    while (!cache_->erase(3)) std::this_thread::yield();
  });
  EXPECT_TRUE(cache_->put(3, source.data(), MiB).has_value());
  eraser.join();
  EXPECT_TRUE(cache_->audit().has_value());
}

}  // namespace
}  // namespace harvest::testing
