// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "threads/held_call.hpp"
#include "threads/threads_world.hpp"

/// A reader is held between two steps while others do what is dangerous for it.
namespace harvest::testing {
namespace {

class ReaderWindowTest : public ::testing::Test {
 protected:
  ThreadsWorld world_{4};
  Client client_{world_};
};

// --- between look-up and pin --------------------------------------------------------------------------

TEST_F(ReaderWindowTest, BeforeItsPinAReaderMissesWhatIsErasedAndReused) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::lossy)).has_value());
  Lease lease;
  HeldCall reader(PausePoint::between_look_up_and_pin,
                  [&] { lease = world_.cache->acquire(0, client_.stream()); });
  ASSERT_TRUE(reader.is_held());
  ASSERT_TRUE(world_.cache->erase(0).has_value());
  world_.settle();
  ASSERT_TRUE(world_.put(1, 1, backed_by(Backing::lossy)).has_value());  // in the same object, the same slot
  reader.finish();
  EXPECT_FALSE(lease) << "I2: key 0 is gone";
  EXPECT_EQ(lease.outcome(), ErrorCode::not_found);
  EXPECT_EQ(client_.read(1).version, 1U);
  world_.give_all_back();
}

TEST_F(ReaderWindowTest, BeforeItsPinAReaderGoesOnToTheNewGeneration) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::lossy)).has_value());
  Lease lease;
  HeldCall reader(PausePoint::between_look_up_and_pin,
                  [&] { lease = world_.cache->acquire(0, client_.stream()); });
  ASSERT_TRUE(reader.is_held());
  const auto generation = world_.put(0, 1, backed_by(Backing::lossy));
  ASSERT_TRUE(generation.has_value());
  world_.settle();
  reader.finish();
  ASSERT_TRUE(lease) << "a key that exists is always found";
  EXPECT_EQ(lease.generation(), *generation);
  EXPECT_EQ(client_.read_leased(0, std::move(lease)).version, 1U);
  world_.give_all_back();
}

TEST_F(ReaderWindowTest, BeforeItsPinAReaderGoesOnToTheHostWhenItsSegmentIsReclaimed) {
  world_.put_on_peer_and_host(0);
  std::vector<FetchItem> items;
  HeldCall reader(PausePoint::between_look_up_and_pin, [&] {
    const std::uint64_t key = 0;
    items = client_.submit({&key, 1});
  });
  ASSERT_TRUE(reader.is_held());
  world_.give_all_back();
  reader.finish();
  const Seen seen = client_.arrived(items).front();
  EXPECT_EQ(seen.tier, Tier::host);
  EXPECT_EQ(seen.version, 0U);
}

TEST_F(ReaderWindowTest, AStrayPinOnAReusedObjectHarmsNobody) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::lossy)).has_value());
  Lease lease;
  HeldCall reader(PausePoint::between_look_up_and_pin,
                  [&] { lease = world_.cache->acquire(0, client_.stream()); });
  ASSERT_TRUE(reader.is_held());
  ASSERT_TRUE(world_.cache->erase(0).has_value());
  world_.settle();
  ASSERT_TRUE(reader.go_on_to(PausePoint::between_pin_and_recheck));  // pins what belongs to nobody
  ASSERT_TRUE(world_.put(1, 1, backed_by(Backing::lossy)).has_value());
  EXPECT_EQ(client_.read(1).version, 1U);
  world_.begin_to_reclaim_all();
  world_.poll_a_few_times();
  reader.finish();
  EXPECT_FALSE(lease);
  world_.give_all_back();
}

// --- between pin and recheck --------------------------------------------------------------------------

TEST_F(ReaderWindowTest, OncePinnedAnErasedObjectStaysUntilItsReaderIsDone) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::lossy)).has_value());
  Lease lease;
  HeldCall reader(PausePoint::between_pin_and_recheck,
                  [&] { lease = world_.cache->acquire(0, client_.stream()); });
  ASSERT_TRUE(reader.is_held());
  ASSERT_TRUE(world_.cache->erase(0).has_value());
  ASSERT_TRUE(world_.put(0, 1, backed_by(Backing::lossy)).has_value());
  world_.poll_a_few_times();
  reader.finish();
  ASSERT_TRUE(lease) << "it was pinned before it was hidden";
  EXPECT_EQ(client_.read_leased(0, std::move(lease)).version, 0U) << "I1";
  EXPECT_EQ(client_.read(0).version, 1U);
  world_.give_all_back();
}

TEST_F(ReaderWindowTest, OncePinnedASegmentStaysMapped) {
  world_.put_on_peer_and_host(0);
  Lease lease;
  HeldCall reader(PausePoint::between_pin_and_recheck,
                  [&] { lease = world_.cache->acquire(0, client_.stream()); });
  ASSERT_TRUE(reader.is_held());
  world_.begin_to_reclaim_all();
  world_.poll_a_few_times();
  EXPECT_EQ(world_.mapped_on_peers(), 2 * MiB) << "I1: somebody is about to read there";
  EXPECT_EQ(client_.read(0).tier, Tier::host) << "who comes later reads elsewhere";
  reader.finish();
  EXPECT_EQ(lease.tier(), Tier::peer);
  EXPECT_EQ(client_.read_leased(0, std::move(lease)).version, 0U);
  world_.give_all_back();
}

// --- between pin and the wait for the write -----------------------------------------------------------

TEST_F(ReaderWindowTest, TheEventOfAWriteStaysWhileAReaderIsAboutToWaitForIt) {
  const StreamId writer = *world_.backend->create_stream(0);
  PutOptions options = backed_by(Backing::lossy);
  options.stream = writer;
  ASSERT_TRUE(world_.put(0, 3, options).has_value());
  Seen seen;
  HeldCall reader(PausePoint::between_pin_and_wait_for_write, [&] { seen = client_.lease_and_read(0); });
  ASSERT_TRUE(reader.is_held()) << "until a poll sees the write complete, readers wait for it";
  ASSERT_TRUE(world_.cache->forget_stream(writer).has_value());  // waits for the write
  world_.poll_a_few_times();
  reader.finish();
  EXPECT_EQ(seen.outcome, ErrorCode::ok);
  EXPECT_EQ(seen.version, 3U);
  world_.give_all_back();
}

TEST_F(ReaderWindowTest, AWriteIsWaitedForThoughItsObjectIsErased) {
  const StreamId writer = *world_.backend->create_stream(0);
  PutOptions options = backed_by(Backing::lossy);
  options.stream = writer;
  ASSERT_TRUE(world_.put(0, 3, options).has_value());
  Seen seen;
  HeldCall reader(PausePoint::between_pin_and_wait_for_write, [&] { seen = client_.lease_and_read(0); });
  ASSERT_TRUE(reader.is_held());
  ASSERT_TRUE(world_.cache->erase(0).has_value());
  ASSERT_TRUE(world_.put(1, 1, backed_by(Backing::lossy)).has_value());
  world_.begin_to_reclaim_all();
  world_.poll_a_few_times();
  reader.finish();
  EXPECT_EQ(seen.version, 3U);
  world_.give_all_back();
}

// --- between a fetch's copies, its events, its join and its unpin -------------------------------------

TEST_F(ReaderWindowTest, AFetchInsideOfTheDriverHoldsNeitherPollsNorErasures) {
  for (const std::uint64_t key : {0U, 1U}) ASSERT_TRUE(world_.put(key, 0).has_value());
  ASSERT_EQ(client_.read(1).version, 0U) << "so that the end of object 1 is tied to the stream";
  std::vector<FetchItem> items;
  HeldCall reader(PausePoint::between_copy_and_watch, [&] {
    const std::uint64_t key = 0;
    items = client_.submit({&key, 1});
  });
  ASSERT_TRUE(reader.is_held());
  world_.cache->poll();
  ASSERT_TRUE(world_.cache->erase(1).has_value());
  world_.poll_a_few_times();
  EXPECT_EQ(world_.cache->locate(1), Tier::none);
  reader.finish();
  EXPECT_EQ(client_.arrived(items).front().version, 0U);
  world_.settle();
}

// An event tells of failures since the event before it: whoever records one between a fetch's copies and the
// fetch's own event would take the failure away from it.
TEST_F(ReaderWindowTest, AnEraseDoesNotHideTheFailureOfAFetch) {
  for (const std::uint64_t key : {0U, 1U}) ASSERT_TRUE(world_.put(key, 0).has_value());
  ASSERT_EQ(client_.read(1).version, 0U) << "so that the end of object 1 is tied to the stream";
  world_.settle();
  FaultPlan plan;
  plan.fail_copy.at = 1;
  world_.backend->set_faults(plan);
  Seen seen;
  HeldCall reader(PausePoint::between_copy_and_watch,
                  [&] { seen = client_.read(0, Client::How::fetch_and_wait); });
  ASSERT_TRUE(reader.is_held());
  ASSERT_TRUE(world_.cache->erase(1).has_value());
  world_.poll_a_few_times();
  reader.finish();
  EXPECT_EQ(seen.outcome, ErrorCode::ok) << "served again";
  EXPECT_EQ(seen.version, 0U) << "I2";
}

TEST_F(ReaderWindowTest, BetweenItsTwoPathsAFetchLosesNothing) {
  ASSERT_TRUE(world_.put(0, 2, backed_by(Backing::lossy)).has_value());
  ASSERT_TRUE(world_.put(1, 3, backed_by(Backing::external_host)).has_value());
  FaultPlan plan;
  plan.slow_copy.at = 1;  // that from the host, so that the stream has to wait for it
  plan.slow_copy_factor = 4000;
  world_.backend->set_faults(plan);
  std::vector<Seen> seen;
  HeldCall reader(PausePoint::between_record_and_join, [&] {
    const std::array<std::uint64_t, 2> keys{0, 1};
    seen = client_.read(keys);
  });
  ASSERT_TRUE(reader.is_held());
  for (const std::uint64_t key : {0U, 1U}) ASSERT_TRUE(world_.cache->erase(key).has_value());
  for (const std::uint64_t key : {2U, 3U})
    ASSERT_TRUE(world_.put(key, 0, backed_by(Backing::lossy)).has_value());
  world_.begin_to_reclaim_all();
  world_.poll_a_few_times();
  reader.finish();
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_EQ(seen[0].version, 2U);
  EXPECT_EQ(seen[0].tier, Tier::peer);
  EXPECT_EQ(seen[1].version, 3U);
  EXPECT_EQ(seen[1].tier, Tier::host);
  world_.give_all_back();
}

TEST_F(ReaderWindowTest, UntilItsUnpinAndThenUntilItsEndAFetchKeepsTheSegment) {
  world_.put_on_peer_and_host(0);
  std::vector<FetchItem> items;
  // Its copies wait for this, so that they are not over when the fetch lets go of its pins.
  ASSERT_TRUE(world_.backend->submit_kernel(client_.stream(), 100'000'000).has_value());
  HeldCall reader(PausePoint::between_submit_and_unpin, [&] {
    const std::uint64_t key = 0;
    items = client_.submit({&key, 1});
  });
  ASSERT_TRUE(reader.is_held());
  world_.begin_to_reclaim_all();
  world_.poll_a_few_times();
  EXPECT_EQ(world_.mapped_on_peers(), 2 * MiB) << "I1";
  reader.finish();
  world_.poll_a_few_times();  // unmapping under unfinished work would stop the process
  const Seen seen = client_.arrived(items).front();
  EXPECT_EQ(seen.tier, Tier::peer);
  EXPECT_EQ(seen.version, 0U);
  world_.poll_until([&] { return world_.mapped_on_peers() == 0; }, "the segment goes back");
}

// --- between a lease's unpin and the end of its release -----------------------------------------------

TEST_F(ReaderWindowTest, AfterItsUnpinALeaseTouchesItsObjectNoMore) {
  ASSERT_TRUE(world_.put(0, 0, backed_by(Backing::lossy)).has_value());
  Lease lease = world_.cache->acquire(0, client_.stream());
  ASSERT_TRUE(lease);
  HeldCall release(PausePoint::between_unpin_and_end_of_release, [&] { lease.release(); });
  ASSERT_TRUE(release.is_held());
  ASSERT_TRUE(world_.cache->erase(0).has_value());
  world_.settle();
  ASSERT_TRUE(world_.put(1, 1, backed_by(Backing::lossy)).has_value());  // in the same object
  Lease other = world_.cache->acquire(1, client_.stream());
  ASSERT_TRUE(other);
  release.finish();
  EXPECT_FALSE(lease);
  world_.begin_to_reclaim_all();
  world_.poll_a_few_times();
  EXPECT_EQ(world_.mapped_on_peers(), 2 * MiB) << "I1: the other lease is held";
  ASSERT_TRUE(world_.backend->submit_kernel(client_.stream(), 100'000'000).has_value());
  client_.use(std::move(other));
  world_.poll_a_few_times();  // unmapping under unfinished work would stop the process
  EXPECT_EQ(client_.version_of(1), 1U) << "I1: and then its work is under way";
  world_.give_all_back();
}

}  // namespace
}  // namespace harvest::testing
