// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/memory_map.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>
#include <vector>

namespace harvest::cuda {
namespace {

std::byte* at(std::uintptr_t address) {
  return reinterpret_cast<std::byte*>(address);
}

TEST(MemoryMapTest, FindsARangeByAnyOfItsBytesAndNoOther) {
  MemoryMap map;
  map.add({at(0x1000), 0x100, 2, 0b101});
  EXPECT_FALSE(map.find(at(0xfff)));
  ASSERT_TRUE(map.find(at(0x1000)));
  ASSERT_TRUE(map.find(at(0x10ff)));
  EXPECT_FALSE(map.find(at(0x1100)));
  const KnownRange range = *map.find(at(0x1080));
  EXPECT_EQ(range.begin, at(0x1000));
  EXPECT_EQ(range.device, 2);
  EXPECT_TRUE(range.is_accessible_by(0));
  EXPECT_FALSE(range.is_accessible_by(1));
  EXPECT_TRUE(range.is_accessible_by(2));
  EXPECT_FALSE(range.is_accessible_by(kHost));
  EXPECT_FALSE(range.is_accessible_by(64));
}

TEST(MemoryMapTest, AnExtentEndsWhereTheNextRangeBegins) {
  MemoryMap map;
  map.add({at(0x1000), 0x100, 0, 1});
  map.add({at(0x1100), 0x100, 0, 1});
  map.add({at(0x3000), 0x100, 0, 1});
  const MemoryExtent before = map.extent(at(0x10));
  EXPECT_FALSE(before.range);
  EXPECT_EQ(before.begin, at(0x10));
  EXPECT_EQ(before.end, at(0x1000));
  EXPECT_EQ(map.extent(at(0x10ff)).end, at(0x1100)) << "ranges that touch stay two";
  EXPECT_EQ(map.extent(at(0x1100)).end, at(0x1200));
  EXPECT_EQ(map.extent(at(0x1200)).end, at(0x3000));
  const MemoryExtent after = map.extent(at(0x3100));
  EXPECT_FALSE(after.range);
  EXPECT_EQ(after.end, at(std::numeric_limits<std::uintptr_t>::max()));
}

TEST(MemoryMapTest, RemovesByTheBeginAlone) {
  MemoryMap map;
  map.add({at(0x1000), 0x100, 1, 2});
  EXPECT_FALSE(map.remove(at(0x1001)));
  const auto removed = map.remove(at(0x1000));
  ASSERT_TRUE(removed);
  EXPECT_EQ(removed->bytes, 0x100U);
  EXPECT_EQ(removed->device, 1);
  EXPECT_FALSE(map.find(at(0x1000)));
  EXPECT_FALSE(map.remove(at(0x1000)));
  map.add({at(0x1080), 0x100, 1, 2});
  EXPECT_TRUE(map.find(at(0x1080)));
}

TEST(MemoryMapTest, OverlapIsOneByteInCommon) {
  MemoryMap map;
  map.add({at(0x1000), 0x100, kHost, 1});
  EXPECT_FALSE(map.overlaps(at(0xf00), 0x100));
  EXPECT_TRUE(map.overlaps(at(0xf00), 0x101));
  EXPECT_TRUE(map.overlaps(at(0x1010), 1));
  EXPECT_TRUE(map.overlaps(at(0x10ff), 0x1000));
  EXPECT_FALSE(map.overlaps(at(0x1100), 0x1000));
  EXPECT_TRUE(map.overlaps(at(0x800), 0x10000));
  EXPECT_FALSE(map.overlaps(at(0x1000), 0));
  EXPECT_TRUE(map.overlaps(at(0x800), std::numeric_limits<std::uint64_t>::max()));
}

TEST(MemoryMapDeathTest, AKnownByteCannotBeAddedAgain) {
  MemoryMap map;
  map.add({at(0x1000), 0x100, 0, 1});
  EXPECT_DEATH(map.add({at(0x10ff), 1, 0, 1}), "known already");
  EXPECT_DEATH(map.add({at(0x2000), 0, 0, 1}), "empty");
}

TEST(MemoryMapTest, ReadersSeeWholeRangesWhileOthersComeAndGo) {
  MemoryMap map;
  map.add({at(0x10000), 0x1000, 3, 8});
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (std::uintptr_t i = 0; i < 2; ++i)
    threads.emplace_back([&map, i] {
      for (int round = 0; round < 2'000; ++round) {
        map.add({at(0x100000 * (i + 1)), 0x1000, static_cast<DeviceId>(i), 1});
        EXPECT_TRUE(map.remove(at(0x100000 * (i + 1))));
      }
    });
  threads.emplace_back([&] {
    while (!stop) {
      EXPECT_EQ(map.extent(at(0x10800)).end, at(0x11000));
      const auto range = map.find(at(0x100800));
      EXPECT_TRUE(!range || (range->bytes == 0x1000 && range->device == 0));
    }
  });
  threads[0].join();
  threads[1].join();
  stop = true;
  threads[2].join();
}

}  // namespace
}  // namespace harvest::cuda
