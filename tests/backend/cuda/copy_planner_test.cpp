// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/copy_planner.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "backend/cuda/copy_kernel.hpp"
#include "core/allocation_count.hpp"

namespace harvest::cuda {
namespace {

std::byte* at(std::uintptr_t address) {
  return reinterpret_cast<std::byte*>(address);
}

constexpr std::uint64_t kKiB = 1024;
constexpr std::uint64_t kMiB = 1024 * kKiB;
constexpr std::uint64_t kGiB = 1024 * kMiB;

/// GPU 0 and 1 reach each other, GPU 2 reaches nobody.
class CopyPlannerTest : public ::testing::Test {
 protected:
  static constexpr std::uintptr_t kPinned = 0x1'0000'0000;
  static constexpr std::uintptr_t kLocal = 0x10'0000'0000;    ///< on GPU 0
  static constexpr std::uintptr_t kPeer = 0x20'0000'0000;     ///< on GPU 1
  static constexpr std::uintptr_t kFar = 0x30'0000'0000;      ///< on GPU 2
  static constexpr std::uintptr_t kUnknown = 0x40'0000'0000;  ///< the caller's, wherever a route says

  CopyPlannerTest() {
    map_.add({at(kPinned), 8 * kGiB, kHost, 0b111});
    map_.add({at(kLocal), 8 * kGiB, 0, 0b011});
    map_.add({at(kPeer), 8 * kGiB, 1, 0b011});
    map_.add({at(kFar), 8 * kGiB, 2, 0b100});
  }

  /// `count` runs that touch at no end.
  static std::vector<Copy> scattered(std::uintptr_t to, std::uintptr_t from, std::uint64_t bytes,
                                     std::size_t count) {
    std::vector<Copy> copies;
    for (std::size_t i = 0; i < count; ++i)
      copies.push_back({at(to + 2 * i * bytes), at(from + 2 * i * bytes), bytes});
    return copies;
  }

  std::span<const CopyStep> plan(Route route, std::span<const Copy> copies, DeviceId stream_device = 0) {
    request_.route = route;
    request_.stream_device = stream_device;
    return planner_.plan(request_, copies, capabilities_, calibration_, scratch_);
  }

  /// How many runs go which way.
  std::map<CopyMethod, std::size_t> runs_by_method(Route route, std::span<const Copy> copies,
                                                   DeviceId stream_device = 0) {
    std::map<CopyMethod, std::size_t> result;
    for (const CopyStep& step : plan(route, copies, stream_device)) result[step.method] += step.runs.size();
    return result;
  }

  using Counts = std::map<CopyMethod, std::size_t>;

  MemoryMap map_;
  CopyPlanner planner_{map_};
  PlanScratch scratch_;
  CopyCapabilities capabilities_{true, true};
  CopyCalibration calibration_ = default_calibration();
  CopyRequest request_;
};

constexpr Route kIn{kHost, 0};
constexpr Route kOut{0, kHost};
constexpr Route kFromPeer{1, 0};

TEST_F(CopyPlannerTest, MergesWhatIsContiguousAtBothEnds) {
  const std::vector<Copy> copies{{at(kLocal), at(kPeer), 100},
                                 {at(kLocal + 100), at(kPeer + 100), 50},   // goes on at both ends
                                 {at(kLocal + 150), at(kPeer + 200), 10},   // at the destination alone
                                 {at(kLocal + 170), at(kPeer + 210), 10}};  // at the source alone
  const auto steps = plan(kFromPeer, copies);
  ASSERT_EQ(steps.size(), 1U);
  ASSERT_EQ(steps[0].runs.size(), 3U);
  EXPECT_EQ(steps[0].runs[0].bytes, 150U);
}

TEST_F(CopyPlannerTest, BuffersOfTheCallerThatLieSideBySideStayTwoCopies) {
  const std::vector<Copy> copies{{at(kUnknown), at(kPeer), kMiB},
                                 {at(kUnknown + kMiB), at(kPeer + kMiB), kMiB}};
  EXPECT_EQ(runs_by_method(kFromPeer, copies), (Counts{{CopyMethod::batch, 2}}));
}

TEST_F(CopyPlannerTest, CutsWhereARangeEnds) {
  map_.add({at(kPeer + 8 * kGiB), kMiB, 1, 0b011});
  const Copy over{at(kLocal), at(kPeer + 8 * kGiB - 4 * kMiB), 5 * kMiB};
  const auto steps = plan(kFromPeer, std::span(&over, 1));
  ASSERT_EQ(steps.size(), 1U);
  ASSERT_EQ(steps[0].runs.size(), 2U);
  EXPECT_EQ(steps[0].runs[0].bytes, 4 * kMiB);
  EXPECT_EQ(steps[0].runs[1].source, at(kPeer + 8 * kGiB));
  EXPECT_EQ(steps[0].runs[1].destination, at(kLocal + 4 * kMiB));
  EXPECT_EQ(steps[0].runs[1].bytes, kMiB);
}

TEST_F(CopyPlannerTest, PageablePartsOfABufferGoOneByOneAndPinnedPartsDoNot) {
  // 1 MiB before the pinned memory and 2 in it; the parts before it may be anything.
  const Copy over{at(kLocal), at(kPinned - kMiB), 3 * kMiB};
  calibration_ = forced_calibration(CopyMethod::batch, 1);
  EXPECT_EQ(runs_by_method(kIn, std::span(&over, 1)),
            (Counts{{CopyMethod::single, 1}, {CopyMethod::batch, 1}}));
}

TEST_F(CopyPlannerTest, UnknownHostMemoryNeverGoesByBatchOrKernel) {
  for (CopyMethod method : {CopyMethod::batch, CopyMethod::kernel}) {
    calibration_ = forced_calibration(method, 8);
    EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kUnknown, kKiB, 100)),
              (Counts{{CopyMethod::single, 100}}));
    EXPECT_EQ(runs_by_method(kOut, scattered(kUnknown, kLocal, kKiB, 100)),
              (Counts{{CopyMethod::single, 100}}));
  }
}

TEST_F(CopyPlannerTest, WithoutAccessCopiesBetweenGpusGoByPeerCopy) {
  EXPECT_EQ(runs_by_method({2, 0}, scattered(kLocal, kFar, kKiB, 100)), (Counts{{CopyMethod::peer, 100}}));
  EXPECT_EQ(runs_by_method({0, 2}, scattered(kFar, kLocal, kKiB, 100)), (Counts{{CopyMethod::peer, 100}}));
  EXPECT_EQ(runs_by_method({0, 2}, scattered(kFar, kLocal, kKiB, 100), 2), (Counts{{CopyMethod::peer, 100}}))
      << "from the other end's stream too";
  EXPECT_EQ(runs_by_method({1, 0}, scattered(kLocal, kUnknown, kKiB, 100)), (Counts{{CopyMethod::peer, 100}}))
      << "who knows whether the caller's buffer there can be reached";
}

TEST_F(CopyPlannerTest, TheCallersBufferOnTheStreamsOwnDeviceIsReachable) {
  EXPECT_EQ(runs_by_method(kFromPeer, scattered(kUnknown, kPeer, kKiB, 100)),
            (Counts{{CopyMethod::kernel, 100}}));
}

TEST_F(CopyPlannerTest, WithTheHostAtOneEndThereIsNoPeerCopy) {
  EXPECT_EQ(runs_by_method({kHost, 2}, scattered(kFar, kPinned, kKiB, 9), 0),
            (Counts{{CopyMethod::single, 9}}));
  EXPECT_EQ(runs_by_method({kHost, kHost}, scattered(kPinned + kGiB, kPinned, kKiB, 9)),
            (Counts{{CopyMethod::single, 9}}));
}

TEST_F(CopyPlannerTest, InsideOneGpuEverythingGoesByKernel) {
  calibration_ = forced_calibration(CopyMethod::batch, 1);
  std::vector<Copy> copies = scattered(kLocal, kLocal + kGiB, kKiB, 3);
  copies.push_back({at(kLocal + 4 * kGiB), at(kLocal + 5 * kGiB + 1), 64 * kMiB});
  EXPECT_EQ(runs_by_method({0, 0}, copies), (Counts{{CopyMethod::kernel, 4}}));
  capabilities_.kernels = false;
  EXPECT_EQ(runs_by_method({0, 0}, copies), (Counts{{CopyMethod::batch, 4}}));
}

TEST_F(CopyPlannerTest, AKernelOnAThirdGpuWouldMoveEverythingTwice) {
  map_.add({at(0x50'0000'0000), kGiB, 0, 0b111});
  map_.add({at(0x60'0000'0000), kGiB, 1, 0b111});
  EXPECT_EQ(runs_by_method({1, 0}, scattered(0x50'0000'0000, 0x60'0000'0000, kKiB, 100), 2),
            (Counts{{CopyMethod::batch, 100}}));
}

TEST_F(CopyPlannerTest, AKernelDoesNotCopyBytewiseBetweenDevices) {
  std::vector<Copy> copies = scattered(kLocal, kPeer, kKiB, 100);
  for (Copy& copy : copies) ++copy.source;
  EXPECT_EQ(runs_by_method(kFromPeer, copies), (Counts{{CopyMethod::batch, 100}}));
}

TEST_F(CopyPlannerTest, SmallRunsGoByKernelAndLargeOnesByBatchInOneBatchOfBoth) {
  std::vector<Copy> copies = scattered(kLocal, kPinned, 4 * kKiB, 500);
  for (const Copy& large : scattered(kLocal + kGiB, kPinned + kGiB, 8 * kMiB, 3)) copies.push_back(large);
  EXPECT_EQ(runs_by_method(kIn, copies), (Counts{{CopyMethod::kernel, 500}, {CopyMethod::batch, 3}}));
  copies.resize(501);
  EXPECT_EQ(runs_by_method(kIn, copies), (Counts{{CopyMethod::kernel, 500}, {CopyMethod::single, 1}}));
}

TEST_F(CopyPlannerTest, FewSmallRunsJoinTheLargeOnes) {
  std::vector<Copy> copies = scattered(kLocal, kPinned, 4 * kKiB, 3);
  for (const Copy& large : scattered(kLocal + kGiB, kPinned + kGiB, 8 * kMiB, 3)) copies.push_back(large);
  EXPECT_EQ(runs_by_method(kIn, copies), (Counts{{CopyMethod::batch, 6}}));
}

TEST_F(CopyPlannerTest, ThresholdsDecideBySizeAndCount) {
  CopyThresholds& in = calibration_[LinkClass::host_to_device];
  in = {.kernel_below_bytes = 10'000,
        .kernel_min_runs = 10,
        .kernel_blocks = 5,
        .batch_below_bytes = 100'000,
        .batch_min_runs = 4};
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, 9'996, 10)), (Counts{{CopyMethod::kernel, 10}}));
  EXPECT_EQ(plan(kIn, scattered(kLocal, kPinned, 9'996, 10))[0].kernel_blocks, 5U);
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, 9'996, 9)), (Counts{{CopyMethod::batch, 9}}));
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, 10'000, 10)), (Counts{{CopyMethod::batch, 10}}));
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, 10'000, 3)), (Counts{{CopyMethod::single, 3}}));
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, 100'000, 10)), (Counts{{CopyMethod::single, 10}}));
  EXPECT_EQ(runs_by_method(kOut, scattered(kPinned, kLocal, 80 * kKiB, 10)),
            (Counts{{CopyMethod::batch, 10}}))
      << "each direction has its own";
}

TEST_F(CopyPlannerTest, ACapturedStreamGetsNoBatchCall) {
  request_.capturing = true;
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, kMiB, 50)), (Counts{{CopyMethod::single, 50}}));
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, kKiB, 50)), (Counts{{CopyMethod::kernel, 50}}));
}

TEST_F(CopyPlannerTest, TheLegacyStreamGetsNoBatchCall) {
  request_.legacy_stream = true;
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, kMiB, 50)), (Counts{{CopyMethod::single, 50}}));
}

TEST_F(CopyPlannerTest, WithoutBatchesAndKernelsThereAreSingles) {
  capabilities_ = {false, false};
  EXPECT_EQ(runs_by_method(kIn, scattered(kLocal, kPinned, kKiB, 50)), (Counts{{CopyMethod::single, 50}}));
}

TEST_F(CopyPlannerTest, CallsAreBoundedAndAboutEquallyLong) {
  const auto batches = plan(kIn, scattered(kLocal, kPinned, 64 * kKiB, 1030));
  ASSERT_EQ(batches.size(), 2U);
  EXPECT_EQ(batches[0].runs.size(), 515U);
  EXPECT_EQ(batches[1].runs.size(), 515U);
  const auto launches = plan(kIn, scattered(kLocal, kPinned, kKiB, 171));
  ASSERT_EQ(launches.size(), 2U);
  EXPECT_EQ(launches[0].runs.size(), 86U);
  EXPECT_EQ(launches[1].runs.size(), 85U);
}

TEST_F(CopyPlannerTest, AKernelsRunsFitItsParameter) {
  const Copy large{at(kLocal), at(kLocal + 4 * kGiB), 3 * kGiB + 5};
  const auto steps = plan({0, 0}, std::span(&large, 1));
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps[0].method, CopyMethod::kernel);
  ASSERT_EQ(steps[0].runs.size(), 4U);
  EXPECT_EQ(steps[0].runs[0].bytes, kMaxKernelRunBytes);
  EXPECT_EQ(steps[0].runs[3].bytes, 5U);
}

TEST_F(CopyPlannerTest, TheLongWorkComesFirst) {
  std::vector<Copy> copies = scattered(kLocal, kPinned, kKiB, 50);
  copies.push_back({at(kLocal + kGiB), at(kPinned + kGiB), 64 * kMiB});
  const auto steps = plan(kIn, copies);
  ASSERT_EQ(steps.size(), 2U);
  EXPECT_EQ(steps[0].method, CopyMethod::single);
  EXPECT_EQ(steps[1].method, CopyMethod::kernel);
}

TEST_F(CopyPlannerTest, PlanningAgainAllocatesNothing) {
  const std::vector<Copy> in = scattered(kLocal, kPinned, kKiB, 4'096);
  const std::vector<Copy> across = scattered(kLocal, kPeer, kMiB, 1'500);
  const auto plan_both = [&] { return plan(kIn, in).size() + plan(kFromPeer, across).size(); };
  const std::size_t steps = plan_both();
  const harvest::testing::AllocationCount count;
  const std::size_t again = plan_both();
  EXPECT_EQ(harvest::testing::AllocationCount::stop(), 0U);
  EXPECT_EQ(again, steps);
}

}  // namespace
}  // namespace harvest::cuda
