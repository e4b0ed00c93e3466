// SPDX-License-Identifier: Apache-2.0
#include "backend/checked.hpp"

#include <gmock/gmock.h>

#include "backend/simulation.hpp"

namespace harvest::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t kBytes = 2 * kMiB;

/// A checked simulation of phantom bytes with a slot on each GPU and the caller's memory.
class Checked : public testing::Test {
 protected:
  void SetUp() override {
    constexpr DeviceId kReader[] = {0};
    local_ = checked_->map_segment(0, kBytes, {}).value();
    peer_ = checked_->map_segment(1, kBytes, kReader).value();
    closed_ = checked_->map_segment(1, kBytes, {}).value();
    stream_ = checked_->create_stream(0).value();
    other_ = checked_->create_stream(1).value();
  }
  Status copy(StreamId stream, Route route, std::byte* to, const std::byte* from,
              std::uint64_t bytes = kBytes) {
    return copy_one(*checked_, stream, route, to, from, bytes);
  }
  /// `after`'s next work comes after all of `before`'s so far.
  void order(StreamId before, StreamId after) {
    const EventId event = checked_->record_event(before).value();
    EXPECT_TRUE(checked_->stream_wait(after, event));
    checked_->release_event(event);
  }

  std::vector<std::string> told_;
  std::unique_ptr<SimulatedBackend> simulation_ = phantom("2xh100-nvl");
  std::byte* host_ = simulation_->reserve_host_range(kBytes).value();
  std::unique_ptr<CheckedBackend> checked_ = make_checked_backend(
      *simulation_, {.on_violation = [this](const std::string& what) { told_.push_back(what); }});
  std::byte *local_ = nullptr, *peer_ = nullptr, *closed_ = nullptr;
  StreamId stream_ = StreamId::none, other_ = StreamId::none;
};

TEST_F(Checked, CorrectUseIsNoViolation) {
  ASSERT_TRUE(copy(stream_, {kHost, 1}, peer_, host_));
  order(stream_, other_);
  ASSERT_TRUE(copy(other_, {1, kHost}, host_, peer_));
  order(other_, stream_);
  ASSERT_TRUE(checked_->fill(stream_, 1, peer_, kBytes, 0));
  ASSERT_TRUE(copy(stream_, {1, 0}, local_, peer_));
  ASSERT_TRUE(copy(other_, {1, kHost}, host_, closed_)) << "two reads elsewhere at the same time";
  EXPECT_EQ(finish(*checked_, stream_), EventState::complete);
  EXPECT_EQ(finish(*checked_, other_), EventState::complete);
  ASSERT_TRUE(copy(other_, {1, 0}, local_, peer_)) << "the host saw the end of it";
  EXPECT_EQ(finish(*checked_, other_), EventState::complete);
  for (std::byte* segment : {local_, peer_, closed_}) EXPECT_TRUE(checked_->unmap_segment(segment));
  EXPECT_TRUE(checked_->destroy_stream(stream_));
  EXPECT_TRUE(checked_->destroy_stream(other_));
  EXPECT_THAT(checked_->violations(), IsEmpty());
  checked_.reset();
  EXPECT_THAT(told_, IsEmpty());
}

TEST_F(Checked, ReadsMayOverlapAndWritesMayNot) {
  ASSERT_TRUE(copy(stream_, {1, 0}, local_, peer_, 1000));
  ASSERT_TRUE(copy(other_, {1, kHost}, host_, peer_, 1000));
  EXPECT_THAT(checked_->violations(), IsEmpty());
  ASSERT_TRUE(checked_->fill(other_, 1, peer_ + 999, 1, 0));  // after its own read, not after the other's
  EXPECT_THAT(checked_->violations(), ElementsAre(HasSubstr("writes bytes that unfinished work reads")));
  ASSERT_TRUE(checked_->fill(other_, 1, peer_ + 1000, 100, 0));  // beside all of it
  EXPECT_EQ(checked_->violations().size(), 1u);
  ASSERT_TRUE(checked_->fill(stream_, 1, peer_ + 1099, 1, 0));
  EXPECT_THAT(checked_->violations().back(), HasSubstr("writes bytes that unfinished work writes"));
  EXPECT_EQ(checked_->violations().size(), 2u);
}

TEST_F(Checked, AReadNeedsTheWriteBeforeIt) {
  ASSERT_TRUE(copy(stream_, {kHost, 1}, peer_, host_));
  const EventId early = checked_->record_event(other_).value();  // of the wrong stream
  ASSERT_TRUE(checked_->stream_wait(other_, early));
  ASSERT_TRUE(copy(other_, {1, 0}, local_, peer_));
  EXPECT_THAT(checked_->violations(), ElementsAre(HasSubstr("reads bytes that unfinished work writes")));
  checked_->release_event(early);
}

/// That work happens to be over does not make it ordered.
TEST_F(Checked, LuckIsNotOrder) {
  ASSERT_TRUE(copy(stream_, {kHost, 1}, peer_, host_));
  checked_->sleep_until(checked_->now_ns() + 1'000'000'000);
  ASSERT_TRUE(copy(other_, {1, 0}, local_, peer_));
  EXPECT_THAT(checked_->violations(), ElementsAre(HasSubstr("race")));
}

TEST_F(Checked, OrderIsKnownThroughOtherStreams) {
  const StreamId third = checked_->create_stream(0).value();
  ASSERT_TRUE(copy(stream_, {kHost, 1}, peer_, host_));
  order(stream_, third);
  order(third, other_);
  ASSERT_TRUE(copy(other_, {1, 0}, local_, peer_));
  EXPECT_THAT(checked_->violations(), IsEmpty());
}

TEST_F(Checked, CopiesOfABatchAreUnorderedToo) {
  const Copy batch[] = {{local_, host_, 100}, {local_ + 99, host_ + 200, 100}};
  ASSERT_TRUE(checked_->copy(stream_, {kHost, 0}, batch));
  EXPECT_THAT(checked_->violations(), ElementsAre(HasSubstr("copies of one batch")));
}

TEST_F(Checked, MemoryIsUnmappedOnlyWhenTheHostSawTheEnd) {
  ASSERT_TRUE(copy(stream_, {kHost, 1}, peer_, host_));
  checked_->sleep_until(checked_->now_ns() + 1'000'000'000);
  const Status early = checked_->unmap_segment(peer_);
  ASSERT_FALSE(early);
  EXPECT_EQ(early.error().code, ErrorCode::busy);
  EXPECT_THAT(checked_->violations(), ElementsAre(HasSubstr("has not seen their end")));
  EXPECT_EQ(finish(*checked_, stream_), EventState::complete);
  EXPECT_TRUE(checked_->unmap_segment(peer_));
  EXPECT_FALSE(copy(stream_, {kHost, 1}, peer_, host_)) << "after it is gone";
  EXPECT_FALSE(checked_->unmap_segment(peer_));
  EXPECT_EQ(checked_->violations().size(), 3u);
}

TEST_F(Checked, PlacesAndRoutesMustMatch) {
  std::byte stray[8] = {};
  EXPECT_FALSE(copy(stream_, {kHost, 1}, stray, host_, 8));
  EXPECT_THAT(checked_->violations().back(), HasSubstr("in no live segment"));
  EXPECT_FALSE(copy(stream_, {kHost, 0}, peer_, host_, 8));
  EXPECT_THAT(checked_->violations().back(), HasSubstr("is memory of device 1"));
  EXPECT_FALSE(copy(stream_, {kHost, kHost}, host_, peer_, 8));
  EXPECT_THAT(checked_->violations().back(), HasSubstr("the work says device -1"));
  EXPECT_FALSE(copy(stream_, {kHost, 1}, peer_ + 1, host_, kBytes));
  EXPECT_THAT(checked_->violations().back(), HasSubstr("pass the end"));
  EXPECT_FALSE(copy(stream_, {kHost, 1}, peer_, host_, 0));
  EXPECT_THAT(checked_->violations().back(), HasSubstr("work on 0 bytes"));
  EXPECT_FALSE(checked_->fill(stream_, 1, nullptr, 8, 0));
  EXPECT_FALSE(checked_->copy(stream_, {kHost, 1}, {}));
  EXPECT_EQ(checked_->violations().size(), 7u);
  EXPECT_EQ(told_, checked_->violations());
}

TEST_F(Checked, ACopyNeedsADeviceThatReachesBothEnds) {
  ASSERT_TRUE(copy(stream_, {1, 0}, local_, peer_)) << "GPU 0 is a reader";
  EXPECT_THAT(checked_->violations(), IsEmpty());
  EXPECT_EQ(finish(*checked_, stream_), EventState::complete);
  (void)copy(stream_, {1, 0}, local_, closed_);
  EXPECT_THAT(checked_->violations(), ElementsAre(HasSubstr("none of them may access both ends")));
}

TEST_F(Checked, StreamsAndEventsMustBeAlive) {
  const EventId event = checked_->record_event(stream_).value();
  checked_->release_event(event);
  EXPECT_EQ(checked_->query_event(event), EventState::failed);
  EXPECT_EQ(checked_->wait_event(event, kNever), EventState::failed);
  EXPECT_FALSE(checked_->stream_wait(stream_, event));
  checked_->release_event(event);
  EXPECT_TRUE(checked_->destroy_stream(other_));
  EXPECT_FALSE(checked_->record_event(other_));
  EXPECT_FALSE(copy(other_, {kHost, 1}, peer_, host_));
  EXPECT_FALSE(checked_->fill(other_, 1, peer_, 8, 0));
  EXPECT_FALSE(checked_->destroy_stream(other_));
  EXPECT_EQ(checked_->violations().size(), 8u);
}

TEST_F(Checked, WhatIsLeftAtTheEndIsALeak) {
  (void)checked_->record_event(stream_).value();
  EXPECT_TRUE(checked_->register_host(host_, kBytes));
  checked_.reset();
  EXPECT_THAT(told_, ElementsAre(HasSubstr("a segment"), HasSubstr("a segment"), HasSubstr("a segment"),
                                 HasSubstr("registered host memory"), HasSubstr("stream"),
                                 HasSubstr("stream"), HasSubstr("1 events")));
}

TEST(CheckedDeathTest, CanStopAtTheFirstViolation) {
  const auto simulation = phantom("2xh100-nvl");
  const auto checked = make_checked_backend(*simulation, {.abort = true});
  EXPECT_DEATH((void)checked->unmap_segment(nullptr), "not the address of a live segment");
}

}  // namespace
}  // namespace harvest::test
