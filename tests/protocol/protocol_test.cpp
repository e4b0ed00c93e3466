// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "core/object_table.hpp"
#include "memory/pool.hpp"
#include "protocol/spin.hpp"

/// Leases and reclaims, in every order there is: lease_and_reclaim.pml says what is searched, and how far.
namespace harvest::testing {
namespace {

std::string name_of(core::CopyState state) {
  switch (state) {
    case core::CopyState::none: return "none";
    case core::CopyState::filling: return "filling";
    case core::CopyState::live: return "live";
    case core::CopyState::leaving: return "leaving";
  }
  return "unknown";
}

std::string name_of(memory::SegmentState state) {
  switch (state) {
    case memory::SegmentState::unmapped: return "unmapped";
    case memory::SegmentState::active: return "active";
    case memory::SegmentState::fenced: return "fenced";
  }
  return "unknown";
}

std::set<std::string> transitions_of_the_code() {
  std::set<std::string> all;
  for (const auto& [from, to] : core::kCopyTransitions)
    all.insert(fmt::format("copy {} -> {}", name_of(from), name_of(to)));
  for (const auto& [from, to] : memory::kSegmentTransitions)
    all.insert(fmt::format("segment {} -> {}", name_of(from), name_of(to)));
  return all;
}

std::set<std::string> transitions_of_the_model() {
  const std::string text = model();
  const std::regex move(R"(move_(copy|segment)\([^,;]*, ([a-z]+), ([a-z]+)\))");
  std::set<std::string> all;
  for (std::sregex_iterator it(text.begin(), text.end(), move), end; it != end; ++it)
    if ((*it)[2] != "from") all.insert(fmt::format("{} {} -> {}", it->str(1), it->str(2), it->str(3)));
  return all;
}

TEST(ProtocolTest, ModelAndCodeKnowTheSameTransitions) {
  EXPECT_EQ(transitions_of_the_model(), transitions_of_the_code());
}

TEST(ProtocolTest, TheModelChangesAStateInNoOtherWay) {
  const std::string text = model();
  const std::regex assignment(R"((state|segment)\[[a-z0-9]+\] = [^=])");
  std::vector<std::string> changes;
  for (std::sregex_iterator it(text.begin(), text.end(), assignment), end; it != end; ++it)
    changes.push_back(it->str());
  const std::vector<std::string> expected{"state[8] = n", "segment[3] = s", "state[copy] = t",
                                          "segment[number] = s"};
  EXPECT_EQ(changes, expected) << "two beginnings, and the two macros";
}

template <typename Thing, typename State>
void go(Thing& thing, const std::vector<State>& way) {
  for (const State state : way) thing.become(state);
}

/// From the end of each way, every step that `table` does not have stops the process.
template <typename Thing, typename State, std::size_t N>
void expect_no_other_step(const std::array<Transition<State>, N>& table,
                          const std::vector<std::vector<State>>& ways) {
  for (const std::vector<State>& from : ways) {
    for (const std::vector<State>& to : ways) {
      Thing thing;
      Thing other;
      go(thing, from);
      go(other, to);
      const State next = other.state();
      if (is_legal(table, thing.state(), next))
        thing.become(next);
      else
        EXPECT_DEATH(thing.become(next), "only changes as the table says");
    }
  }
}

TEST(ProtocolTest, TheCodeStopsAtAStepThatIsNotInItsTable) {
  using enum core::CopyState;
  using enum memory::SegmentState;
  expect_no_other_step<core::Copy, core::CopyState>(core::kCopyTransitions,
                                                    {{}, {filling}, {live}, {live, leaving}});
  expect_no_other_step<memory::Segment, memory::SegmentState>(memory::kSegmentTransitions,
                                                              {{}, {active}, {active, fenced}});
}

/// Tests of one `-D` line each.
struct Case {
  const char* name;
  const char* definitions;
  const char* breaks = "";           ///< the promise, for a model with an error in it
  bool reaches_transitions = false;  ///< all of them: what is kept because nothing happens is worth nothing
};

void PrintTo(const Case& tried, std::ostream* out) {
  *out << tried.definitions;
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return info.param.name;
}

class SpinTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const auto why = no_spin()) GTEST_SKIP() << *why;
  }
  static void report(const Found& found) {
    fmt::print("{}: errors: {}, {} states stored, depth reached {}, {} MB, {} s\n", GetParam().definitions,
               found.errors, found.states, found.depth, found.memory_mb, found.seconds);
  }
};

class SearchTest : public SpinTest {};

TEST_P(SearchTest, BreaksNoPromise) {
  const Found found = search(GetParam().definitions, Promise::safety);
  report(found);
  EXPECT_EQ(found.errors, 0) << found.broken;
  EXPECT_TRUE(found.exhaustive) << found.output;
  EXPECT_NE(found.output.find("invalid end states\t+"), std::string::npos) << found.output;
  if (GetParam().reaches_transitions) {
    EXPECT_EQ(found.reached, transitions_of_the_code());
  }
}

constexpr Case kSearches[] = {
    {"LossyReplaced", "-DLOSSY -DPUTS=2 -DFAILURES=1"},
    {"LossyErasedUnderTwoReclaims", "-DLOSSY -DERASES=1 -DRECLAIMS=2 -DFAILURES=1"},
    {"LossyWithTwoReaders", "-DLOSSY -DREADERS=2 -DFAILURES=1"},
    {"LossyWhoseSlotIsUsedAgain",
     "-DLOSSY -DPUTS=2 -DREADS=2 -DERASES=1 -DEVICTIONS=1 -DRECLAIMS=0 -DFAILURES=1"},
    {"SpillUnderTwoReclaims", "-DSPILL -DRECLAIMS=2 -DFAILURES=1"},
    {"SpillWhoseLeasesAreKept", "-DSPILL -DRECLAIMS=2 -DLEASES_ARE_KEPT"},
    {"SpillReplaced", "-DSPILL -DPUTS=2"},
    {"SpillWithTwoReaders", "-DSPILL -DREADERS=2"},
    {"SpillThatClimbsAgain", "-DSPILL -DREADS=2 -DPROMOTIONS=1 -DEVICTIONS=1 -DFAILURES=1"},
    {"ManagedHost", "-DMANAGED_HOST -DPROMOTIONS=1 -DEVICTIONS=1 -DFAILURES=2", "", true},
    {"ManagedHostUnderTwoReclaims", "-DMANAGED_HOST -DRECLAIMS=2 -DPROMOTIONS=1"},
    {"ManagedHostWithTwoReaders", "-DMANAGED_HOST -DREADERS=2 -DRECLAIMS=0 -DPROMOTIONS=1 -DEVICTIONS=1"},
    {"AnotherKeyTakesTheRecord", "-DLOSSY -DKEYS=2 -DPUTS=4 -DERASES=1 -DRECLAIMS=0"},
};
INSTANTIATE_TEST_SUITE_P(Protocol, SearchTest, ::testing::ValuesIn(kSearches), case_name);

class LivenessTest : public SpinTest {};

TEST_P(LivenessTest, EveryReclaimIsFinished) {
  const Found found = search(GetParam().definitions, Promise::liveness);
  report(found);
  EXPECT_EQ(found.errors, 0) << found.broken;
  EXPECT_TRUE(found.exhaustive) << found.output;
  EXPECT_NE(found.output.find("(fairness enabled)"), std::string::npos) << found.output;
}

constexpr Case kLives[] = {
    {"Lossy", "-DLOSSY -DRECLAIMS=2 -DFAILURES=1 -DWRITES=2"},
    {"Spill", "-DSPILL -DFAILURES=1 -DWRITES=5"},
    {"ManagedHost", "-DMANAGED_HOST -DPROMOTIONS=1 -DWRITES=5"},
};
INSTANTIATE_TEST_SUITE_P(Protocol, LivenessTest, ::testing::ValuesIn(kLives), case_name);

/// Errors that the protocol could have; one it had. If the search does not see them, it sees nothing.
class BrokenModelTest : public SpinTest {};

TEST_P(BrokenModelTest, IsFound) {
  const std::string promised = GetParam().breaks;
  const Found found =
      search(GetParam().definitions, promised == "liveness" ? Promise::liveness : Promise::safety);
  report(found);
  ASSERT_TRUE(found.ended) << found.output;
  EXPECT_EQ(found.errors, 1) << found.output;
  EXPECT_EQ(found.broken, promised);
}

constexpr Case kBroken[] = {
    {"PinIsNotChecked", "-DLOSSY -DBUG_PIN_IS_NOT_CHECKED", "I2"},
    {"KeyIsNotChecked", "-DLOSSY -DKEYS=2 -DPUTS=3 -DRECLAIMS=0 -DBUG_KEY_IS_NOT_CHECKED", "I2"},
    {"MissIsNotDoubted", "-DLOSSY -DPUTS=2 -DRECLAIMS=0 -DBUG_MISS_IS_NOT_DOUBTED", "I4"},
    {"OldGoesBeforeNew", "-DLOSSY -DPUTS=2 -DRECLAIMS=0 -DBUG_OLD_GOES_BEFORE_NEW", "I4"},
    {"UnmappedBeforeDrained", "-DLOSSY -DBUG_UNMAPPED_BEFORE_DRAINED", "I1"},
    {"WorkAfterReleaseIsForgotten", "-DLOSSY -DBUG_WORK_AFTER_RELEASE_IS_FORGOTTEN", "I1"},
    {"SlotIsWrittenUnderItsReaders",
     "-DLOSSY -DPUTS=2 -DERASES=1 -DRECLAIMS=0 -DBUG_SLOT_IS_WRITTEN_UNDER_ITS_READERS", "I2"},
    {"ShownBeforeComplete", "-DMANAGED_HOST -DPROMOTIONS=1 -DRECLAIMS=0 -DBUG_SHOWN_BEFORE_COMPLETE", "I3"},
    {"EventGoesBackUnderAReader", "-DLOSSY -DRECLAIMS=0 -DBUG_EVENT_GOES_BACK_UNDER_A_READER", "I3"},
    {"ReadIsJudgedByTheCopysState",
     "-DMANAGED_HOST -DPROMOTIONS=1 -DRECLAIMS=0 -DFAILURES=1 -DBUG_READ_IS_JUDGED_BY_THE_COPYS_STATE", "I2"},
    {"DroppedBeforeTheSpillArrived", "-DSPILL -DBUG_DROPPED_BEFORE_THE_SPILL_ARRIVED", "I4"},
    {"PerhapsIsTakenForSurely", "-DMANAGED_HOST -DFAILURES=1 -DBUG_PERHAPS_IS_TAKEN_FOR_SURELY", "I4"},
    {"LossIsNotTold", "-DLOSSY -DBUG_LOSS_IS_NOT_TOLD", "I4"},
    {"LossIsToldTwice", "-DLOSSY -DBUG_LOSS_IS_TOLD_TWICE", "I4"},
    {"CreditedBeforeUnmapped", "-DLOSSY -DBUG_CREDITED_BEFORE_UNMAPPED", "I5"},
    {"LeavingIsNotLookedAtAgain", "-DLOSSY -DWRITES=2 -DBUG_LEAVING_IS_NOT_LOOKED_AT_AGAIN", "liveness"},
    {"LeasesAreKept", "-DLOSSY -DWRITES=2 -DLEASES_ARE_KEPT", "liveness"},
};
INSTANTIATE_TEST_SUITE_P(Protocol, BrokenModelTest, ::testing::ValuesIn(kBroken), case_name);

}  // namespace
}  // namespace harvest::testing
