// SPDX-License-Identifier: Apache-2.0
#include "threads/held_call.hpp"

#include <atomic>

/// The tool of the tests beside this one: does it hold whom it should, where it should, as long as it should?
namespace harvest::testing {
namespace {

TEST(HeldCallTest, HoldsItsOwnCallAtItsOwnPoint) {
  std::atomic<int> steps{0};
  HeldCall held(PausePoint::between_link_and_unlink, [&] {
    pause_point(PausePoint::between_copy_and_watch);
    ++steps;
    pause_point(PausePoint::between_link_and_unlink);
    ++steps;
  });
  ASSERT_TRUE(held.is_held());
  EXPECT_EQ(steps, 1);
  pause_point(PausePoint::between_link_and_unlink);  // this thread is nobody's: it passes
  held.finish();
  EXPECT_EQ(steps, 2);
  EXPECT_FALSE(held.is_held());
}

TEST(HeldCallTest, HoldsOnceMoreElsewhere) {
  std::atomic<int> steps{0};
  HeldCall held(PausePoint::between_link_and_unlink, [&] {
    pause_point(PausePoint::between_link_and_unlink);
    ++steps;
    pause_point(PausePoint::between_copy_and_watch);
    ++steps;
  });
  ASSERT_TRUE(held.is_held());
  ASSERT_TRUE(held.go_on_to(PausePoint::between_copy_and_watch));
  EXPECT_EQ(steps, 1);
  EXPECT_FALSE(held.go_on_to(PausePoint::between_copy_and_watch)) << "it does not come by again";
  EXPECT_EQ(steps, 2);
}

TEST(HeldCallTest, SaysThatACallNeverCameBy) {
  HeldCall call(PausePoint::between_link_and_unlink, [] {});
  EXPECT_FALSE(call.is_held());
}

TEST(HeldCallTest, TwoCallsAreHeldApart) {
  std::atomic<int> over{0};
  HeldCall first(PausePoint::between_link_and_unlink, [&] {
    pause_point(PausePoint::between_link_and_unlink);
    ++over;
  });
  HeldCall second(PausePoint::between_copy_and_watch, [&] {
    pause_point(PausePoint::between_copy_and_watch);
    ++over;
  });
  ASSERT_TRUE(first.is_held());
  ASSERT_TRUE(second.is_held());
  first.finish();
  EXPECT_EQ(over, 1);
  EXPECT_TRUE(second.is_held());
}

}  // namespace
}  // namespace harvest::testing
