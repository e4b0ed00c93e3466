// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>

#include "base/test_hooks.hpp"

/// The registry of planted bugs: what can be chosen, and what is promised of it.
namespace harvest::testing {
namespace {

class PlantedBugsTest : public ::testing::Test {
 protected:
  ~PlantedBugsTest() override { EXPECT_TRUE(choose_planted_bug("none")); }
};

TEST_F(PlantedBugsTest, ThereAreSomeForEachInvariant) {
  std::map<std::string, int> bugs_of;
  std::set<std::string_view> names;
  for (const PlantedBugInfo& info : planted_bugs()) {
    ++bugs_of[std::string(info.invariant)];
    EXPECT_TRUE(names.insert(info.name).second) << info.name << " is there twice";
    EXPECT_FALSE(info.what_is_wrong.empty()) << info.name;
  }
  EXPECT_EQ(bugs_of.size(), 12U);
  for (int i = 1; i <= 12; ++i) EXPECT_GE(bugs_of[fmt::format("I{}", i)], 2) << "I" << i;
}

TEST_F(PlantedBugsTest, ThePageCountsThemAsTheyAre) {
  std::map<std::string, int> bugs_of;
  for (const PlantedBugInfo& info : planted_bugs()) ++bugs_of[std::string(info.invariant)];
  std::string row = "\n| planted bugs, found by the simulator |";
  for (int i = 1; i <= 12; ++i) row += fmt::format(" {} |", bugs_of[fmt::format("I{}", i)]);
  std::ifstream file(HARVEST_SOURCE_DIR "/docs/reliability.md");
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  EXPECT_NE(page.find(row + "\n"), std::string::npos) << "docs/reliability.md has no row" << row;
  EXPECT_NE(page.find(fmt::format("(`src/base/test_hooks.cpp`; {} of", planted_bugs().size())),
            std::string::npos)
      << "docs/reliability.md does not say that there are " << planted_bugs().size();
}

TEST_F(PlantedBugsTest, AProcessMakesTheChosenOneAlone) {
  for (const PlantedBugInfo& chosen : planted_bugs()) {
    ASSERT_TRUE(choose_planted_bug(chosen.name));
    for (const PlantedBugInfo& info : planted_bugs())
      EXPECT_EQ(planted_bug(info.bug), info.bug == chosen.bug) << info.name << " under " << chosen.name;
  }
  ASSERT_TRUE(choose_planted_bug("none"));
  for (const PlantedBugInfo& info : planted_bugs()) EXPECT_FALSE(planted_bug(info.bug)) << info.name;
}

TEST_F(PlantedBugsTest, AnUnknownNameChangesNothing) {
  ASSERT_TRUE(choose_planted_bug("loss_not_told"));
  EXPECT_FALSE(choose_planted_bug("loss_not_tell"));
  EXPECT_FALSE(choose_planted_bug(""));
  EXPECT_TRUE(planted_bug(PlantedBug::loss_not_told));
}

}  // namespace
}  // namespace harvest::testing
