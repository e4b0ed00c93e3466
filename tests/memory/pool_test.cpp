// SPDX-License-Identifier: Apache-2.0
#include "memory/pool.hpp"

#include <gtest/gtest.h>
#include <harvest/simulated_backend.hpp>

#include <random>

namespace harvest::memory {
namespace {

constexpr std::uint64_t MiB = 1ULL << 20;

class PoolTest : public ::testing::Test {
 protected:
  explicit PoolTest(std::uint64_t budget = 256 * MiB)
      : backend_(std::move(
            *make_simulated_backend(*machine_from_preset("2xh100-nvl"), {.bytes = SimulatedBytes::phantom}))),
        pool_(*backend_, {1, budget, 32 * MiB, 64 * MiB, {0}}) {}

  /// A slot for an object, growing if it must.
  Allocation take(std::uint64_t bytes, std::uint32_t owner) {
    auto allocation = pool_.allocate(bytes, owner);
    if (!allocation) {
      EXPECT_TRUE(pool_.grow(bytes).has_value());
      allocation = pool_.allocate(bytes, owner);
    }
    EXPECT_TRUE(allocation.has_value());
    EXPECT_GE(allocation->slot.bytes, bytes);
    EXPECT_TRUE(pool_.is_valid()) << "I7";
    return std::move(*allocation);
  }

  std::unique_ptr<SimulatedBackend> backend_;
  Pool pool_;
};

TEST(SizeClassTest, WastesAtMostASixteenth) {
  std::uint64_t before = 0;
  for (std::uint64_t bytes = 1; bytes < 400 * MiB; bytes += 1 + bytes / 97) {
    const std::uint64_t slot = slot_bytes_for(bytes);
    ASSERT_GE(slot, bytes);
    ASSERT_GE(slot, before) << "a larger object has no smaller slot";
    if (bytes >= 512) {
      ASSERT_LE(slot - bytes, bytes / 16) << bytes;
    }
    before = slot;
  }
  for (const std::uint64_t bytes : {2 * MiB, 9 * MiB, 36 * MiB, 64 * MiB})
    EXPECT_EQ(slot_bytes_for(bytes), bytes);
}

TEST(SegmentPlanTest, ChoosesTheSizeThatWastesLeast) {
  const SegmentPlan expert = plan_segment(9 * MiB, 32 * MiB, 64 * MiB, 2 * MiB);
  EXPECT_EQ(expert.segment_bytes, 36 * MiB);
  EXPECT_EQ(expert.slots, 4U);
  const SegmentPlan block = plan_segment(64 * MiB, 32 * MiB, 64 * MiB, 2 * MiB);
  EXPECT_EQ(block.segment_bytes, 64 * MiB);
  EXPECT_EQ(block.slots, 1U);
  const SegmentPlan large = plan_segment(336 * MiB + 1, 32 * MiB, 64 * MiB, 2 * MiB);
  EXPECT_EQ(large.segment_bytes, 338 * MiB) << "alone, rounded to the granularity";
  EXPECT_EQ(large.slots, 1U);
}

TEST_F(PoolTest, SlotsFillTheirSegmentExactly) {
  const Allocation first = take(5 * MiB + 7, 1);
  const Segment& segment = pool_.segments()[first.slot.segment];
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < segment.slots; ++i) sum += segment.bytes_of(i);
  EXPECT_EQ(sum, segment.bytes);
  for (std::uint32_t i = 1; i < segment.slots; ++i) take(5 * MiB + 7, i + 1);
  EXPECT_EQ(pool_.used_bytes(), pool_.mapped_bytes());
  EXPECT_FALSE(pool_.has_room(5 * MiB + 7));
}

TEST_F(PoolTest, ADrainingSlotIsHandedOverWithItsEvents) {
  const StreamId stream = *backend_->create_stream(0);
  ASSERT_TRUE(backend_->submit_kernel(stream, 1'000'000).has_value());
  const Allocation first = take(64 * MiB, 1);
  const EventId event = *backend_->record_event(stream);
  pool_.release(first.slot, {event});
  EXPECT_EQ(pool_.draining_bytes(), 64 * MiB);
  EXPECT_EQ(pool_.free_bytes(), 0U);
  const Allocation second = take(64 * MiB, 2);
  EXPECT_EQ(second.slot.address, first.slot.address);
  ASSERT_EQ(second.after, std::vector<EventId>{event});
  pool_.release(second.slot, second.after);
  pool_.collect();
  EXPECT_EQ(pool_.draining_bytes(), 64 * MiB) << "the kernel still runs";
  backend_->sleep_until(2'000'000);
  pool_.collect();
  EXPECT_EQ(pool_.free_bytes(), 64 * MiB);
  EXPECT_TRUE(pool_.is_valid()) << "I7";
}

TEST_F(PoolTest, AnEmptySegmentIsCutAnewForAnotherSize) {
  const Allocation large = take(60 * MiB, 1);
  pool_.release(large.slot, {});
  const Allocation small = take(MiB, 2);
  EXPECT_EQ(small.slot.segment, large.slot.segment);
  EXPECT_EQ(pool_.mapped_bytes(), 60 * MiB);
}

TEST_F(PoolTest, ANearlyFullSegmentIsFilledFirst) {
  std::vector<Allocation> first;
  for (std::uint32_t i = 0; i < 32; ++i) first.push_back(take(2 * MiB, i + 1));  // two segments of 16
  ASSERT_EQ(pool_.mapped_bytes(), 64 * MiB);
  pool_.release(first[0].slot, {});                                          // one hole in one,
  for (std::uint32_t i = 16; i < 31; ++i) pool_.release(first[i].slot, {});  // many in the other
  EXPECT_EQ(take(2 * MiB, 99).slot.segment, first[0].slot.segment) << "so that the other can become empty";
}

TEST_F(PoolTest, BudgetIsKeptAndNamed) {
  for (std::uint32_t i = 0; i < 4; ++i) take(64 * MiB, i + 1);
  EXPECT_FALSE(pool_.growth(64 * MiB).has_value());
  const Status refused = pool_.grow(64 * MiB);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::out_of_memory);
  EXPECT_NE(refused.error().message.find("268435456"), std::string::npos) << refused.error().message;
}

TEST_F(PoolTest, AFencedSegmentTakesNothingInAndGoesBackWhole) {
  const Allocation first = take(2 * MiB, 1);
  pool_.fence(first.slot.segment);
  EXPECT_FALSE(pool_.allocate(2 * MiB, 2).has_value());
  pool_.release(first.slot, {});
  EXPECT_FALSE(pool_.allocate(2 * MiB, 2).has_value());
  const std::uint64_t mapped = pool_.mapped_bytes();
  EXPECT_EQ(backend_->mapped_bytes(1), mapped);
  ASSERT_TRUE(pool_.unmap(first.slot.segment).has_value());
  EXPECT_EQ(backend_->mapped_bytes(1), 0U) << "I5";
  EXPECT_EQ(pool_.mapped_bytes(), 0U);
  EXPECT_TRUE(pool_.is_valid()) << "I7";
  take(2 * MiB, 3);  // the hole is used again
  EXPECT_EQ(pool_.segments().size(), 1U);
}

TEST_F(PoolTest, AFailedMapChangesNothing) {
  FaultPlan plan;
  plan.fail_map.at = 1;
  backend_->set_faults(plan);
  EXPECT_EQ(pool_.grow(MiB).error().code, ErrorCode::out_of_memory);
  EXPECT_EQ(pool_.mapped_bytes(), 0U);
  EXPECT_TRUE(pool_.grow(MiB).has_value());
  EXPECT_TRUE(pool_.is_valid());
}

class PoolSequenceTest : public PoolTest, public ::testing::WithParamInterface<std::uint64_t> {};

/// Any order of calls keeps I7 and never hands out two slots that overlap.
TEST_P(PoolSequenceTest, AddsUpAfterEveryStep) {
  std::mt19937_64 random(GetParam());
  const StreamId stream = *backend_->create_stream(0);
  std::vector<Slot> held;
  std::uint64_t model_used = 0;
  std::uint32_t owner = 0;
  for (int step = 0; step < 400; ++step) {
    const std::uint64_t dice = random() % 10;
    if (dice < 5) {
      const std::uint64_t bytes = 1 + random() % (random() % 4 == 0 ? 80 * MiB : 3 * MiB);
      auto allocation = pool_.allocate(bytes, ++owner);
      if (!allocation && pool_.grow(bytes)) allocation = pool_.allocate(bytes, owner);
      if (allocation) {
        for (const EventId event : allocation->after) backend_->release_event(event);
        for (const Slot& other : held)
          ASSERT_TRUE(allocation->slot.address >= other.address + other.bytes ||
                      other.address >= allocation->slot.address + allocation->slot.bytes);
        held.push_back(allocation->slot);
        model_used += allocation->slot.bytes;
      }
    } else if (dice < 8 && !held.empty()) {
      const std::size_t i = random() % held.size();
      std::vector<EventId> events;
      if (random() % 2 == 0) {
        ASSERT_TRUE(backend_->submit_kernel(stream, 1000).has_value());
        events.push_back(*backend_->record_event(stream));
      }
      model_used -= held[i].bytes;
      pool_.release(held[i], std::move(events));
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
    } else if (dice == 8) {
      backend_->sleep_until(backend_->now_ns() + static_cast<TimeNs>(random() % 5000));
      pool_.collect();
    } else {
      for (std::uint32_t i = 0; i < pool_.segments().size(); ++i) {
        const Segment& segment = pool_.segments()[i];
        if (!segment.mapped() || !segment.empty()) continue;
        pool_.fence(i);
        ASSERT_TRUE(pool_.unmap(i).has_value());
        break;
      }
    }
    ASSERT_TRUE(pool_.is_valid()) << "I7 at step " << step;
    ASSERT_EQ(pool_.used_bytes(), model_used) << step;
    ASSERT_EQ(backend_->mapped_bytes(1), pool_.mapped_bytes()) << step;
    ASSERT_LE(pool_.mapped_bytes(), 256 * MiB) << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, PoolSequenceTest, ::testing::Range<std::uint64_t>(1, 13));

}  // namespace
}  // namespace harvest::memory
