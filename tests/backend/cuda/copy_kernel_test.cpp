// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/copy_kernel.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

namespace harvest::cuda {
namespace {

/// What the GPU would do at a misaligned access or one past the run is the end of the process's context; here
/// it is counted. Bytes written twice are too.
struct CheckedMemory {
  static inline const unsigned char* source_begin = nullptr;
  static inline const unsigned char* source_end = nullptr;
  static inline unsigned char* destination_begin = nullptr;
  static inline std::vector<int> writes;
  static inline int misaligned = 0;
  static inline int outside = 0;
  static inline std::size_t widest = 0;

  template <typename Unit>
  static Unit load(const unsigned char* address) {
    if (reinterpret_cast<std::uintptr_t>(address) % sizeof(Unit) != 0) ++misaligned;
    Unit unit{};
    if (address < source_begin || address + sizeof(Unit) > source_end) {
      ++outside;
      return unit;
    }
    widest = std::max(widest, sizeof(Unit));
    std::memcpy(&unit, address, sizeof unit);
    return unit;
  }
  template <typename Unit>
  static void store(unsigned char* address, const Unit& unit) {
    if (reinterpret_cast<std::uintptr_t>(address) % sizeof(Unit) != 0) ++misaligned;
    const std::ptrdiff_t at = address - destination_begin;
    if (at < 0 || static_cast<std::size_t>(at) + sizeof(Unit) > writes.size()) {
      ++outside;
      return;
    }
    for (std::size_t i = 0; i < sizeof(Unit); ++i) ++writes[static_cast<std::size_t>(at) + i];
    std::memcpy(address, &unit, sizeof unit);
  }
};

constexpr unsigned char kGuard = 0xA5;

/// Source bytes that no shift by less than 251 maps to themselves.
std::vector<unsigned char> pattern(std::size_t bytes) {
  std::vector<unsigned char> result(bytes);
  for (std::size_t i = 0; i < bytes; ++i) result[i] = static_cast<unsigned char>(i % 251);
  return result;
}

unsigned char* aligned(std::vector<unsigned char>& buffer) {
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
  return buffer.data() + (64 - address % 64) % 64;
}

std::uint64_t number(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

void run_on_all_lanes(const RunBatch& batch, std::uint32_t warps, std::uint32_t lanes) {
  for (std::uint32_t warp = 0; warp < warps; ++warp)
    for (std::uint32_t lane = 0; lane < lanes; ++lane)
      copy_runs<CheckedMemory>(batch, warp, warps, {lane, lanes});
}

/// One run of `bytes` from and to the given places within 64 bytes; everything around it must stay.
testing::AssertionResult copies_one(std::size_t to, std::size_t from, std::uint32_t bytes,
                                    std::uint32_t warps, std::uint32_t lanes) {
  constexpr std::size_t kMargin = 64;
  std::vector<unsigned char> source_buffer = pattern(bytes + 4 * kMargin);
  std::vector<unsigned char> destination_buffer(bytes + 4 * kMargin, kGuard);
  const unsigned char* source = aligned(source_buffer) + kMargin + from;
  unsigned char* destination = aligned(destination_buffer) + kMargin + to;

  CheckedMemory::source_begin = source;
  CheckedMemory::source_end = source + bytes;
  CheckedMemory::destination_begin = destination;
  CheckedMemory::writes.assign(bytes, 0);
  CheckedMemory::misaligned = CheckedMemory::outside = 0;
  RunBatch batch;
  batch.count = batch.tiles = 0;
  if (!add_run(batch, number(destination), number(source), bytes))
    return testing::AssertionFailure() << "full";
  run_on_all_lanes(batch, warps, lanes);

  const auto where =
      fmt::format("to {} from {}, {} bytes, {} warps of {} lanes", to, from, bytes, warps, lanes);
  if (CheckedMemory::misaligned != 0)
    return testing::AssertionFailure()
           << where << ": " << CheckedMemory::misaligned << " misaligned accesses";
  if (CheckedMemory::outside != 0)
    return testing::AssertionFailure() << where << ": " << CheckedMemory::outside << " accesses outside";
  if (std::any_of(CheckedMemory::writes.begin(), CheckedMemory::writes.end(), [](int n) { return n != 1; }))
    return testing::AssertionFailure() << where << ": a byte was not written exactly once";
  if (!std::equal(source, source + bytes, destination))
    return testing::AssertionFailure() << where << ": wrong bytes";
  const auto is_guard = [](unsigned char byte) { return byte == kGuard; };
  const auto end = destination_buffer.data() + destination_buffer.size();
  if (!std::all_of(destination_buffer.data(), destination, is_guard) ||
      !std::all_of(destination + bytes, end, is_guard))
    return testing::AssertionFailure() << where << ": wrote around the run";
  return testing::AssertionSuccess();
}

TEST(CopyKernelTest, EveryAlignmentAndSmallSizeIsRight) {
  for (std::size_t to = 0; to < 16; ++to)
    for (std::size_t from = 0; from < 16; ++from)
      for (std::uint32_t bytes = 1; bytes <= 100; ++bytes) {
        ASSERT_TRUE(copies_one(to, from, bytes, 1, kThreadsPerWarp));
        ASSERT_TRUE(copies_one(to, from, bytes, 1, 1));
      }
}

TEST(CopyKernelTest, SizesAroundATileAreRightAtEveryAlignment) {
  for (std::size_t to = 0; to < 16; ++to)
    for (std::size_t from = 0; from < 16; ++from)
      for (std::uint32_t bytes :
           {kTileBytes - 16, kTileBytes - 1, kTileBytes, kTileBytes + 1, 3 * kTileBytes + 7})
        ASSERT_TRUE(copies_one(to, from, bytes, 3, kThreadsPerWarp));
}

TEST(CopyKernelTest, UsesTheWidestAccessThatFitsBothEnds) {
  const auto widest = [](std::size_t to, std::size_t from) {
    CheckedMemory::widest = 0;
    EXPECT_TRUE(copies_one(to, from, 200, 1, kThreadsPerWarp));
    return CheckedMemory::widest;
  };
  EXPECT_EQ(widest(0, 0), 16U);
  EXPECT_EQ(widest(5, 5), 16U);  // a head, then both are aligned
  EXPECT_EQ(widest(0, 8), 8U);
  EXPECT_EQ(widest(3, 7), 4U);
  EXPECT_EQ(widest(1, 3), 2U);
  EXPECT_EQ(widest(0, 1), 1U);
}

TEST(CopyKernelTest, ABatchOfMixedRunsIsRightWhateverTheNumberOfWarps) {
  std::mt19937 random(7);
  for (std::uint32_t warps : {1U, 2U, 16U, 128U, 1000U}) {
    std::vector<unsigned char> source = pattern(4 << 20);
    std::vector<unsigned char> destination(source.size(), kGuard);
    std::vector<unsigned char> expected = destination;
    RunBatch batch;
    batch.count = batch.tiles = 0;
    std::size_t at = 0;
    while (batch.count < kRunsPerLaunch) {
      const auto bytes = static_cast<std::uint32_t>(random() % (random() % 8 == 0 ? 100000 : 5000) + 1);
      const std::size_t from = random() % (source.size() - bytes);
      at += random() % 40;
      ASSERT_LE(at + bytes, destination.size());
      ASSERT_TRUE(add_run(batch, number(&destination[at]), number(&source[from]), bytes));
      std::copy_n(&source[from], bytes, &expected[at]);
      at += bytes;
    }
    EXPECT_FALSE(add_run(batch, number(destination.data()), number(source.data()), 1))
        << "more than it holds";
    EXPECT_EQ(batch.count, kRunsPerLaunch);
    for (std::uint32_t warp = 0; warp < warps; ++warp)
      for (std::uint32_t lane = 0; lane < kThreadsPerWarp; ++lane)
        copy_runs(batch, warp, warps, {lane, kThreadsPerWarp});
    EXPECT_TRUE(destination == expected) << warps << " warps";
  }
}

TEST(CopyKernelTest, WarpsShareRunsOfDifferentSizesEvenly) {
  RunBatch batch;
  batch.count = batch.tiles = 0;
  std::uint64_t total = 0;
  const auto add = [&](std::uint32_t bytes) {
    ASSERT_TRUE(add_run(batch, 1 << 20, 1 << 20, bytes));
    total += bytes;
  };
  add(50 << 20);
  for (int i = 0; i < 100; ++i) add(64 << 10);
  constexpr std::uint32_t kWarps = 8 * kWarpsPerBlock;
  std::uint64_t most = 0;
  for (std::uint32_t warp = 0; warp < kWarps; ++warp) {
    std::uint64_t bytes = 0;
    for (std::uint32_t tile = warp; tile < batch.tiles; tile += kWarps) bytes += tile_at(batch, tile).bytes;
    most = std::max(most, bytes);
  }
  EXPECT_LE(most, total / kWarps + kTileBytes);
}

TEST(CopyKernelTest, TheLongestRunsAddUp) {
  RunBatch batch;
  batch.count = batch.tiles = 0;
  constexpr std::uint64_t kPlace = (std::uint64_t{1} << 40) + 13;
  for (std::uint32_t i = 0; i < kRunsPerLaunch; ++i)
    ASSERT_TRUE(add_run(batch, kPlace, kPlace, static_cast<std::uint32_t>(kMaxKernelRunBytes)));
  EXPECT_EQ(batch.tiles, kRunsPerLaunch * (kMaxKernelRunBytes / kTileBytes + 1));  // 13 bytes over
  const Tile last = tile_at(batch, batch.tiles - 1);
  EXPECT_EQ(number(last.destination) + last.bytes, kPlace + kMaxKernelRunBytes);
  EXPECT_EQ(last.bytes, 13U);
}

}  // namespace
}  // namespace harvest::cuda
