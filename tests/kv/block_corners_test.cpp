// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include "kv/world.hpp"

/// Orders that are rare, and numbers that are large.
namespace harvest::kv {
namespace {

using ::testing::ElementsAre;
using Keys = std::vector<Key>;

FaultPlan failing_copy(std::uint64_t number) {
  FaultPlan plan;
  plan.fail_copy.at = number;
  return plan;
}

// --- what is read -----------------------------------------------------------------------------------------

TEST(BlockCorners, PagesOfACancelledLoadAreNotWrittenAgain) {
  World world;
  world.keep(Keys{1});
  ASSERT_TRUE(world.backend->set_faults(failing_copy(1)));
  const auto pages = world.pages_from(20, 1);
  auto load = world.blocks->load(Keys{1}, pages, world.stream);
  ASSERT_TRUE(load);
  ASSERT_TRUE(load->cancel(world.stream));
  world.wait_for(world.stream);
  world.fill(Key(50), pages);  // "the pages may be used for something else there"
  EXPECT_THAT(load->finish(), ElementsAre(0U));
  EXPECT_EQ(world.wrong_bytes(Key(50), pages), 0U);
}

}  // namespace
}  // namespace harvest::kv
