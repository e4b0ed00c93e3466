// SPDX-License-Identifier: Apache-2.0
#include <thread>

#include "threads/held_call.hpp"
#include "threads/threads_world.hpp"

/// A thread that changes the cache is held between two steps. In most of them it has the control lock, so
/// that others who need it come after; readers do not, and go on (I9).
namespace harvest::testing {
namespace {

class WriterWindowTest : public ::testing::Test {
 protected:
  [[nodiscard]] DeviceId peer_in_use() const { return world_.backend->mapped_bytes(1) != 0 ? 1 : 2; }

  ThreadsWorld world_{4};
  Client client_{world_};
};

// --- put ----------------------------------------------------------------------------------------------

TEST_F(WriterWindowTest, WhileAKeyIsReplacedOneOfItsGenerationsIsFound) {
  for (const Backing backing : {Backing::lossy, Backing::managed_host, Backing::external_host}) {
    ASSERT_TRUE(world_.put(0, 0, backed_by(backing)).has_value());
    Lease old = world_.cache->acquire(0, client_.stream());
    HeldCall writer(PausePoint::between_link_and_unlink,
                    [&] { EXPECT_TRUE(world_.put(0, 1, backed_by(backing)).has_value()); });
    ASSERT_TRUE(writer.is_held());
    EXPECT_NE(world_.cache->locate(0), Tier::none);
    EXPECT_EQ(client_.read(0).version, 1U) << "the new one is in front";
    EXPECT_EQ(client_.lease_and_read(0).version, 1U);
    writer.finish();
    EXPECT_EQ(client_.read(0).version, 1U);
    EXPECT_EQ(client_.read_leased(0, std::move(old)).version, 0U) << "leases on the old bytes stay good";
    ASSERT_TRUE(world_.cache->erase(0).has_value());
    world_.settle();
  }
  world_.give_all_back();
}

TEST_F(WriterWindowTest, AnEraseThatMeetsAReplacementTakesWhatIsThereInTheEnd) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::lossy)).has_value());
  HeldCall writer(PausePoint::between_link_and_unlink,
                  [&] { EXPECT_TRUE(world_.put(0, 1, backed_by(Backing::lossy)).has_value()); });
  ASSERT_TRUE(writer.is_held());
  std::thread eraser([&] { EXPECT_TRUE(world_.cache->erase(0).has_value()); });
  writer.finish();
  eraser.join();
  EXPECT_EQ(world_.cache->locate(0), Tier::none);
  EXPECT_FALSE(world_.cache->erase(0).has_value());
  world_.give_all_back();
}

// A put that waits answers for its own copy, whatever becomes of the object meanwhile.
TEST_F(WriterWindowTest, APutWasStoredThoughItIsErasedOrReplacedBeforeItReturns) {
  for (const bool replaced : {false, true}) {
    Result<Generation> first;
    HeldCall writer(PausePoint::between_write_and_wait,
                    [&] { first = world_.put(0, 0, backed_by(Backing::lossy)); });
    ASSERT_TRUE(writer.is_held());
    if (replaced) {
      ASSERT_TRUE(world_.put(0, 1, backed_by(Backing::lossy)).has_value());
    } else {
      ASSERT_TRUE(world_.cache->erase(0).has_value());
    }
    world_.settle();
    writer.finish();
    EXPECT_TRUE(first.has_value()) << (first ? "" : first.error().message);
    EXPECT_EQ(client_.read(0).version, replaced ? std::optional<std::uint64_t>(1) : std::nullopt);
  }
  world_.give_all_back();
}

TEST_F(WriterWindowTest, AFetchDoesNotHideTheFailureOfAPut) {
  ASSERT_TRUE(world_.put(1, 0).has_value());
  world_.settle();
  FaultPlan plan;
  plan.fail_copy.at = 1;
  world_.backend->set_faults(plan);
  PutOptions options;
  options.stream = client_.stream();
  HeldCall writer(PausePoint::between_copy_and_watch,
                  [&] { EXPECT_TRUE(world_.put(0, 0, options).has_value()) << "it does not wait"; });
  ASSERT_TRUE(writer.is_held());
  Seen seen;
  std::thread reader([&] { seen = client_.read(1); });
  writer.finish();
  reader.join();
  EXPECT_EQ(seen.version, 0U);
  world_.settle();
  EXPECT_EQ(client_.read(0).outcome, ErrorCode::not_found) << "I2: its bytes never arrived";
}

// --- a copy leaves ------------------------------------------------------------------------------------

TEST_F(WriterWindowTest, WhoComesWhenACopyIsHiddenReadsElsewhere) {
  world_.put_on_peer_and_host(0);
  const DeviceId peer = peer_in_use();
  HeldCall owner(PausePoint::between_hide_and_look_at_pins, [&] {
    EXPECT_TRUE(world_.cache->reclaim(peer, GiB, world_.backend->now_ns() + 60'000'000'000)->finished);
  });
  ASSERT_TRUE(owner.is_held());
  const Seen fetched = client_.read(0);
  EXPECT_EQ(fetched.tier, Tier::host);
  EXPECT_EQ(fetched.version, 0U);
  const Seen leased = client_.lease_and_read(0);
  EXPECT_EQ(leased.tier, Tier::host);
  EXPECT_EQ(leased.version, 0U);
  owner.finish();
  EXPECT_EQ(world_.backend->mapped_bytes(peer), 0U) << "I5";
  world_.settle();
}

TEST_F(WriterWindowTest, ALeaseThatEndsJustBeforeItIsLookedForIsNotWaitedForAgain) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::lossy)).has_value());
  Lease lease = world_.cache->acquire(0, client_.stream());
  HeldCall eraser(PausePoint::between_hide_and_look_at_pins,
                  [&] { EXPECT_TRUE(world_.cache->erase(0).has_value()); });
  ASSERT_TRUE(eraser.is_held());
  EXPECT_EQ(client_.read(0).outcome, ErrorCode::not_found);
  EXPECT_EQ(client_.read_leased(0, std::move(lease)).version, 0U);
  eraser.finish();
  world_.give_all_back();
}

TEST_F(WriterWindowTest, ALeaseThatOutlivesTheLookAtPinsKeepsItsBytes) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::lossy)).has_value());
  Lease lease = world_.cache->acquire(0, client_.stream());
  HeldCall eraser(PausePoint::between_hide_and_look_at_pins,
                  [&] { EXPECT_TRUE(world_.cache->erase(0).has_value()); });
  ASSERT_TRUE(eraser.is_held());
  eraser.finish();
  ASSERT_TRUE(world_.put(1, 1, backed_by(Backing::lossy)).has_value());
  world_.poll_a_few_times();
  EXPECT_EQ(client_.read_leased(0, std::move(lease)).version, 0U) << "I1";
  EXPECT_EQ(client_.read(1).version, 1U);
  world_.give_all_back();
}

// The events are those of the streams that had work then. Who reads another copy of the object afterwards
// marks its stream on the same object, and must not hold the freed slot up, nor be forgotten.
TEST_F(WriterWindowTest, ReadsOfAnotherCopyGoOnWhileASlotIsFreed) {
  world_.put_on_peer_and_host(0);
  const DeviceId peer = peer_in_use();
  Client other(world_);
  ASSERT_EQ(client_.read(0).tier, Tier::peer);
  HeldCall owner(PausePoint::between_events_and_free_slot, [&] {
    EXPECT_TRUE(world_.cache->reclaim(peer, GiB, world_.backend->now_ns() + 60'000'000'000)->finished);
  });
  ASSERT_TRUE(owner.is_held());
  for (Client* client : {&client_, &other}) {
    const Seen seen = client->read(0);
    EXPECT_EQ(seen.tier, Tier::host);
    EXPECT_EQ(seen.version, 0U);
  }
  Lease lease = world_.cache->acquire(0, other.stream());
  EXPECT_EQ(lease.tier(), Tier::host);
  std::thread forgetter([&] { EXPECT_TRUE(world_.cache->forget_stream(client_.stream()).has_value()); });
  owner.finish();
  forgetter.join();
  ASSERT_TRUE(world_.cache->erase(0).has_value());
  ASSERT_TRUE(world_.put(1, 1).has_value());
  world_.poll_a_few_times();
  EXPECT_EQ(other.read_leased(0, std::move(lease)).version, 0U) << "I1";
  EXPECT_EQ(other.read(1).version, 1U);
  world_.give_all_back();
}

// --- a copy comes -------------------------------------------------------------------------------------

TEST_F(WriterWindowTest, APromotionThatIsCompleteAndNotShownIsReadByNobody) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::managed_host)).has_value());
  const Key wanted = 0;
  ASSERT_EQ(world_.cache->prefetch({&wanted, 1}, Tier::peer), 1U);
  HeldCall poller(PausePoint::between_end_of_fill_and_reveal, [&] { world_.settle(); });
  ASSERT_TRUE(poller.is_held());
  const Seen seen = client_.read(0);
  EXPECT_EQ(seen.tier, Tier::host) << "I3";
  EXPECT_EQ(seen.version, 0U);
  poller.finish();
  EXPECT_EQ(client_.read(0).tier, Tier::peer);
  world_.give_all_back();
}

TEST_F(WriterWindowTest, AnObjectThatIsErasedWhenItsPromotionEndsIsGone) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::managed_host)).has_value());
  const Key wanted = 0;
  ASSERT_EQ(world_.cache->prefetch({&wanted, 1}, Tier::peer), 1U);
  HeldCall poller(PausePoint::between_end_of_fill_and_reveal, [&] { world_.settle(); });
  ASSERT_TRUE(poller.is_held());
  Lease lease = world_.cache->acquire(0, StreamId::none);
  ASSERT_TRUE(lease) << "by the host, from the source of the promotion";
  std::thread eraser([&] { EXPECT_TRUE(world_.cache->erase(0).has_value()); });
  poller.release();
  eraser.join();
  EXPECT_EQ(version_in({lease.data(), kObjectBytes}, 0), 0U) << "I1";
  lease.release();
  poller.finish();
  EXPECT_EQ(world_.cache->locate(0), Tier::none);
  world_.give_all_back();
}

// --- memory goes back ---------------------------------------------------------------------------------

TEST_F(WriterWindowTest, WhatIsCreditedHasGoneBackBefore) {
  world_.put_on_peer_and_host(0);
  const DeviceId peer = peer_in_use();
  ReclaimReport report;
  HeldCall owner(PausePoint::between_unmap_and_credit, [&] {
    report = *world_.cache->reclaim(peer, GiB, world_.backend->now_ns() + 60'000'000'000);
  });
  ASSERT_TRUE(owner.is_held());
  EXPECT_EQ(world_.backend->mapped_bytes(peer), 0U) << "I5";
  const Seen seen = client_.read(0);
  EXPECT_EQ(seen.tier, Tier::host);
  EXPECT_EQ(seen.version, 0U);
  // A second owner and a poller come at this moment; both find everything as it is after the first.
  std::thread second([&] {
    const auto nothing = world_.cache->reclaim(peer, 1, world_.backend->now_ns() + 60'000'000'000);
    EXPECT_TRUE(nothing->finished);
    EXPECT_EQ(nothing->returned_bytes, 0U) << "each byte is credited once";
  });
  std::thread poller([&] { world_.cache->poll(); });
  owner.finish();
  second.join();
  poller.join();
  EXPECT_TRUE(report.finished);
  EXPECT_EQ(report.returned_bytes, 2 * MiB);
  world_.settle();
}

}  // namespace
}  // namespace harvest::testing
