// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/simulated_backend.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "core/random.hpp"
#include "moe/life_witness.hpp"
#include "moe/slots.hpp"

namespace harvest::moe {
namespace {

using ::testing::ElementsAre;
using testing::Random;

// --- values -----------------------------------------------------------------------------------------------

/// Which of these goes first by the named eviction.
std::size_t goes_first(std::string_view name, const std::vector<SlotFacts>& slots) {
  const SlotValue value = *make_slot_value(name);
  std::size_t least = 0;
  for (std::size_t i = 1; i < slots.size(); ++i)
    if (value(slots[i]) < value(slots[least])) least = i;
  return least;
}

TEST(SlotValues, TheirNamesAreTheFirstThingTheyHave) {
  EXPECT_THAT(expert_eviction_names(), ElementsAre("next_use", "lfru", "lru", "lfu", "least_stale"));
  EXPECT_EQ(make_slot_value("fifo").error().code, ErrorCode::not_found);
}

TEST(SlotValues, LeastRecentlyUsed) {
  EXPECT_EQ(goes_first("lru", {{.layers = 4, .step = 99, .last_use_step = 50, .frequency = 0.9},
                               {.layers = 4, .step = 98, .last_use_step = 49, .frequency = 0.9},
                               {.layers = 4, .step = 97, .last_use_step = 97, .frequency = 0.1}}),
            1U);
}

TEST(SlotValues, LeastFrequentlyUsed) {
  EXPECT_EQ(goes_first("lfu", {{.layers = 4, .last_use_step = 3, .passes_since_use = 60, .frequency = 0.3},
                               {.layers = 4, .last_use_step = 2, .passes_since_use = 70, .frequency = 0.25},
                               {.layers = 4, .last_use_step = 99, .passes_since_use = 0, .frequency = 0.2}}),
            2U);
}

TEST(SlotValues, LeastFrequentForItsAge) {
  // 0.3 over 4, 0.2 over 2, 0.08 over 1.
  EXPECT_EQ(goes_first("lfru", {{.passes_since_use = 3, .frequency = 0.3},
                                {.passes_since_use = 1, .frequency = 0.2},
                                {.passes_since_use = 0, .frequency = 0.08}}),
            0U);
  EXPECT_EQ(goes_first("lfru", {{.passes_since_use = 3, .frequency = 0.4},
                                {.passes_since_use = 1, .frequency = 0.2},
                                {.passes_since_use = 0, .frequency = 0.08}}),
            2U);
}

TEST(SlotValues, TheLayerThatComesLatestAndThereTheOldestUse) {
  EXPECT_EQ(goes_first("least_stale", {{.layers = 4, .step = 97, .last_use_step = 1},
                                       {.layers = 4, .step = 100, .last_use_step = 100},
                                       {.layers = 4, .step = 100, .last_use_step = 96}}),
            2U);
  // However old the uses are, the layers' turn decides.
  EXPECT_EQ(goes_first("least_stale", {{.layers = 4, .step = 100'000, .last_use_step = 0},
                                       {.layers = 4, .step = 100'001, .last_use_step = 100'001}}),
            1U);
}

TEST(SlotValues, WhatIsExpectedToBeNeededLatest) {
  const SlotValue value = *make_slot_value("next_use");
  // Needed by every step of its layer: at the layer's next turn.
  EXPECT_DOUBLE_EQ(value({.layers = 32, .step = 100, .frequency = 1}), -132);
  // By every other one, and not by the last: 0.5 + 0.2 / 2 x 0.5.
  EXPECT_DOUBLE_EQ(value({.layers = 32, .step = 100, .passes_since_use = 1, .frequency = 0.5}),
                   -(100 + 32 / 0.55));
  // Of two that are as likely, the one whose layer just passed.
  EXPECT_EQ(goes_first("next_use", {{.layers = 32, .step = 80, .frequency = 0.5},
                                    {.layers = 32, .step = 100, .frequency = 0.5}}),
            1U);
  // A rare one goes before a frequent one, though its layer comes sooner.
  EXPECT_EQ(goes_first("next_use", {{.layers = 32, .step = 70, .passes_since_use = 9, .frequency = 0.05},
                                    {.layers = 32, .step = 100, .frequency = 0.9}}),
            0U);
  // One that the last step needed is not like one that none has needed for long.
  EXPECT_EQ(goes_first("next_use", {{.layers = 32, .step = 100, .passes_since_use = 0, .frequency = 0.1},
                                    {.layers = 32, .step = 100, .passes_since_use = 30, .frequency = 0.1}}),
            1U);
}

TEST(SlotValues, AreNumbersForAllFacts) {
  for (const std::string_view name : expert_eviction_names()) {
    const SlotValue value = *make_slot_value(name);
    for (const double frequency : {0.0, 1e-300, 0.5, 1.0})
      for (const std::uint32_t passes : {0U, 1U, UINT32_MAX})
        for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 40}) {
          const double worth = value({1024, step, step / 2, passes, frequency});
          EXPECT_TRUE(std::isfinite(worth)) << name;
          EXPECT_GT(worth, -1e14) << name << ": what is expendable goes before all";
        }
  }
}

// --- the table --------------------------------------------------------------------------------------------

TEST(SlotTable, GivesFreeSlotsFirstAndThenTheLeastValue) {
  SlotTable table(3, 2);
  for (std::uint32_t i = 0; i < 3; ++i) {
    const std::uint32_t slot = table.next_victim();
    EXPECT_EQ(slot, i);
    EXPECT_EQ(table.value_of(slot), -std::numeric_limits<double>::infinity());
    table.fill(slot, 10 + i, i % 2, 5.0 - i);
    EXPECT_EQ(table.used(), i + 1);
  }
  EXPECT_EQ(table.next_victim(), 2U);
  table.set_value(2, 0, 100);
  EXPECT_EQ(table.next_victim(), 1U);
  table.add_step(1, 1);
  EXPECT_EQ(table.next_victim(), 0U) << "what a step uses stays";
  table.add_step(0, 0);
  table.add_step(2, 0);
  EXPECT_EQ(table.next_victim(), kNone);
  table.end_step(1, 1);
  EXPECT_EQ(table.next_victim(), 1U);
  table.empty(1, 1);
  EXPECT_EQ(table.next_victim(), 1U);
  EXPECT_EQ(table.used(), 2U);
  EXPECT_THAT(table.of_layer(0), ElementsAre(0, 2));
  EXPECT_TRUE(table.of_layer(1).empty());
}

TEST(SlotTable, ANewContentForgetsTheOldOneButNotWhoIsStillAtIt) {
  SlotTable table(1, 1);
  table.fill(0, 7, 0, 1);
  Slot& slot = table.at(0);
  const std::uint64_t content = slot.content;
  slot.pieces = 3;
  slot.from = Tier::host;
  slot.flights = {4, 0, 9, 0};
  slot.ready_lanes = 5;
  slot.broken = slot.delivered = slot.guessed = slot.expendable = true;
  slot.uses.push_back({StreamId{1}, 0});
  table.empty(0, 0);
  table.fill(0, 8, 0, 2);
  EXPECT_NE(slot.content, content);
  EXPECT_EQ(slot.pieces, 0U);
  EXPECT_EQ(slot.from, Tier::none);
  EXPECT_EQ(slot.ready_lanes, 0U);
  EXPECT_FALSE(slot.broken || slot.delivered || slot.guessed || slot.expendable);
  EXPECT_EQ(slot.earlier_flights, (FlightNumbers{4, 0, 9, 0}));
  EXPECT_EQ(slot.uses.size(), 1U);
}

/// Beside a table that looks at every slot each time.
TEST(SlotTable, NamesTheLeastWhateverHappened) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    Random random(seed, 3);
    const auto slots = static_cast<std::uint32_t>(random.between(1, 20));
    const auto layers = static_cast<std::uint32_t>(random.between(1, 5));
    SlotTable table(slots, layers);
    std::vector<std::uint32_t> layer_of(slots, 0);
    const auto random_used = [&]() -> std::uint32_t {
      const auto slot = static_cast<std::uint32_t>(random.below(slots));
      return table.at(slot).expert == kNone ? kNone : slot;
    };
    for (std::uint32_t i = 0; i < 2000; ++i) {
      const std::uint32_t slot = random_used();
      switch (random.below(5)) {
        case 0: {
          const std::uint32_t victim = table.next_victim();
          if (victim == kNone) break;
          if (table.at(victim).expert != kNone) table.empty(victim, layer_of[victim]);
          layer_of[victim] = static_cast<std::uint32_t>(random.below(layers));
          table.fill(victim, i, layer_of[victim], static_cast<double>(random.below(50)));
          break;
        }
        case 1:
          if (slot != kNone) table.set_value(slot, layer_of[slot], static_cast<double>(random.below(50)));
          break;
        case 2:
          if (slot != kNone) table.add_step(slot, layer_of[slot]);
          break;
        case 3:
          if (slot != kNone && table.at(slot).steps > 0) table.end_step(slot, layer_of[slot]);
          break;
        default:
          if (slot != kNone && table.at(slot).steps == 0 && random.chance(0.2))
            table.empty(slot, layer_of[slot]);
      }
      double least = std::numeric_limits<double>::infinity();
      for (std::uint32_t s = 0; s < slots; ++s)
        if (table.at(s).steps == 0) least = std::min(least, table.value_of(s));
      const std::uint32_t victim = table.next_victim();
      ASSERT_EQ(victim == kNone, std::isinf(least) && least > 0) << "seed " << seed;
      if (victim == kNone) continue;
      ASSERT_EQ(table.at(victim).steps, 0U) << "seed " << seed;
      ASSERT_EQ(table.value_of(victim), least) << "seed " << seed;
    }
  }
}

// --- events -----------------------------------------------------------------------------------------------

TEST(UseEvents, AreReleasedWithTheLastOfTheirSlots) {
  const auto simulated = *make_simulated_backend(*machine_from_preset("2xh100-nvl"), {});
  LifeWitness backend(*simulated);
  const StreamId stream = *backend.create_stream(0);
  {
    UseEvents uses(backend);
    const std::uint32_t one = uses.add(*backend.record_event(stream));
    uses.hold(one);
    uses.drop(one);
    EXPECT_EQ(backend.live_events(), 1U);
    uses.drop(one);
    EXPECT_EQ(backend.live_events(), 0U);
    EXPECT_EQ(uses.add(*backend.record_event(stream)), one) << "places are used again";
    EXPECT_NE(uses.add(*backend.record_event(stream)), one);
    uses.hold(kNone);
    uses.drop(kNone);
    EXPECT_EQ(backend.live_events(), 2U);
  }
  EXPECT_EQ(backend.live_events(), 0U) << "and with the table";
}

}  // namespace
}  // namespace harvest::moe
