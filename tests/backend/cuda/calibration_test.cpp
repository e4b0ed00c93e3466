// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/calibration.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace harvest::cuda {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kSizes[] = {4'096, 16'384, 65'536, 262'144, 1'048'576};
constexpr std::uint32_t kCounts[] = {1, 4, 64, 1'024};

using Speed = std::function<double(std::uint64_t run_bytes, std::uint32_t runs)>;

void add_rows(std::vector<CopyMeasurement>& rows, LinkClass link, CopyMethod method, const Speed& speed,
              std::uint32_t blocks = 0) {
  for (std::uint64_t bytes : kSizes)
    for (std::uint32_t runs : kCounts)
      rows.push_back({link, method, blocks, bytes, runs, speed(bytes, runs)});
}

double engine_speed(std::uint64_t run_bytes, std::uint32_t) {
  return static_cast<double>(run_bytes) / (2.3e-6 + static_cast<double>(run_bytes) / 55e9);
}
/// A launch of 4 us, then 35 GB/s whatever the size.
double kernel_speed(std::uint64_t run_bytes, std::uint32_t runs) {
  const double bytes = static_cast<double>(run_bytes) * runs;
  return bytes / (4e-6 + bytes / 35e9);
}

TEST(CalibrationTest, DefaultsAndForcedOnesAreValid) {
  for (const CopyThresholds& link : default_calibration().links) EXPECT_TRUE(link.is_valid());
  for (CopyMethod method : {CopyMethod::single, CopyMethod::peer, CopyMethod::batch, CopyMethod::kernel})
    for (std::uint32_t blocks : {0U, 7U, 100'000U})
      for (const CopyThresholds& link : forced_calibration(method, blocks).links)
        EXPECT_TRUE(link.is_valid());
}

TEST(CalibrationTest, ThresholdsLieWhereTheOtherWayBecomesFaster) {
  std::vector<CopyMeasurement> rows;
  add_rows(rows, LinkClass::host_to_device, CopyMethod::single, engine_speed);
  add_rows(rows, LinkClass::host_to_device, CopyMethod::kernel, kernel_speed, 8);
  const Result<CopyCalibration> derived = derive_calibration(rows);
  ASSERT_TRUE(derived) << derived.error().message;
  const CopyThresholds& in = (*derived)[LinkClass::host_to_device];
  // 262,144 bytes: 37 GB/s by engine, 35 by kernel; 65,536: 18.8 against 33 for many, and 10.9 for one.
  EXPECT_EQ(in.kernel_below_bytes, 262'144U);
  EXPECT_EQ(in.kernel_min_runs, 4U);
  EXPECT_EQ(in.kernel_blocks, 8U);
  EXPECT_EQ(in.batch_below_bytes, default_calibration()[LinkClass::host_to_device].batch_below_bytes)
      << "no batch was measured";
}

TEST(CalibrationTest, EveryChoiceOfTheThresholdsIsTheBestOrNearItAtThePointsMeasured) {
  std::vector<CopyMeasurement> rows;
  add_rows(rows, LinkClass::peer, CopyMethod::single, engine_speed);
  const Speed batch = [](std::uint64_t run_bytes, std::uint32_t runs) {
    return engine_speed(run_bytes, runs) * (runs >= 4 ? 1.5 : 0.8);
  };
  add_rows(rows, LinkClass::peer, CopyMethod::batch, batch);
  add_rows(rows, LinkClass::peer, CopyMethod::kernel, kernel_speed, 16);
  const CopyThresholds peer = (*derive_calibration(rows))[LinkClass::peer];
  EXPECT_EQ(peer.batch_min_runs, 4U);
  EXPECT_EQ(peer.batch_below_bytes, kNoLimitBytes);
  for (std::uint64_t bytes : kSizes)
    for (std::uint32_t runs : kCounts) {
      const double by_kernel = kernel_speed(bytes, runs) * (1 - kKernelMargin);
      const double by_batch = batch(bytes, runs);
      const double by_single = engine_speed(bytes, runs);
      const double chosen = bytes < peer.kernel_below_bytes && runs >= peer.kernel_min_runs ? by_kernel
                            : bytes < peer.batch_below_bytes && runs >= peer.batch_min_runs ? by_batch
                                                                                            : by_single;
      EXPECT_GE(chosen, 0.75 * std::max({by_kernel, by_batch, by_single})) << bytes << " x " << runs;
    }
}

TEST(CalibrationTest, AKernelThatWinsByLittleIsNotWorthItsMultiprocessors) {
  std::vector<CopyMeasurement> rows;
  add_rows(rows, LinkClass::device_to_host, CopyMethod::single, [](auto, auto) { return 50e9; });
  add_rows(
      rows, LinkClass::device_to_host, CopyMethod::kernel, [](auto, auto) { return 52e9; }, 8);
  EXPECT_EQ((*derive_calibration(rows))[LinkClass::device_to_host].kernel_below_bytes, 0U);
  for (CopyMeasurement& row : rows)
    if (row.method == CopyMethod::kernel) row.bytes_per_s = 60e9;
  EXPECT_EQ((*derive_calibration(rows))[LinkClass::device_to_host].kernel_below_bytes, kNoLimitBytes);
}

TEST(CalibrationTest, OnePointOfNoiseDoesNotMoveAThreshold) {
  std::vector<CopyMeasurement> rows;
  add_rows(rows, LinkClass::host_to_device, CopyMethod::batch, [](auto, auto) { return 40e9; });
  add_rows(rows, LinkClass::host_to_device, CopyMethod::single, [](auto, auto) { return 10e9; });
  rows.front().bytes_per_s = 9e9;  // the smallest size, one run
  const CopyThresholds in = (*derive_calibration(rows))[LinkClass::host_to_device];
  EXPECT_EQ(in.batch_below_bytes, kNoLimitBytes);
  EXPECT_EQ(in.batch_min_runs, 1U);
}

TEST(CalibrationTest, TheFewestBlocksThatAreAboutAsFastAreTaken) {
  std::vector<CopyMeasurement> rows;
  const std::pair<std::uint32_t, double> speeds[] = {{4, 20e9}, {8, 49e9}, {16, 50e9}, {32, 50.1e9}};
  for (const auto& [blocks, speed] : speeds)
    add_rows(
        rows, LinkClass::same_device, CopyMethod::kernel, [s = speed](auto, auto) { return s; }, blocks);
  const CopyThresholds same = (*derive_calibration(rows))[LinkClass::same_device];
  EXPECT_EQ(same.kernel_blocks, 8U);
  EXPECT_EQ(same.kernel_below_bytes, kNoLimitBytes) << "nothing else was measured";
}

TEST(CalibrationTest, ClassesThatWereNotMeasuredKeepTheirDefaults) {
  EXPECT_EQ(*derive_calibration({}), default_calibration());
  std::vector<CopyMeasurement> rows;
  add_rows(rows, LinkClass::peer, CopyMethod::single, [](auto, auto) { return 50e9; });
  add_rows(rows, LinkClass::peer, CopyMethod::batch, [](auto, auto) { return 1e9; });
  CopyCalibration expected = default_calibration();
  expected[LinkClass::peer].batch_below_bytes = 0;
  expected[LinkClass::peer].batch_min_runs = 1;
  EXPECT_EQ(*derive_calibration(rows), expected);
}

TEST(CalibrationTest, RowsThatCannotBeAreRefused) {
  const CopyMeasurement good{LinkClass::peer, CopyMethod::kernel, 8, 4'096, 10, 1e9};
  const auto refusal = [&](auto change) {
    CopyMeasurement rows[] = {good, good};
    change(rows[1]);
    const auto derived = derive_calibration(rows);
    return derived ? std::string("accepted") : derived.error().message;
  };
  EXPECT_EQ(refusal([](CopyMeasurement&) {}), "accepted");
  EXPECT_THAT(refusal([](auto& row) { row.run_bytes = 0; }), HasSubstr("row 1: 10 runs of 0 bytes"));
  EXPECT_THAT(refusal([](auto& row) { row.runs = 0; }), HasSubstr("row 1: 0 runs"));
  EXPECT_THAT(refusal([](auto& row) { row.bytes_per_s = 0; }), HasSubstr("row 1: 0 bytes per second"));
  EXPECT_THAT(refusal([](auto& row) { row.bytes_per_s = -1; }), HasSubstr("-1 bytes per second"));
  EXPECT_THAT(refusal([](auto& row) { row.bytes_per_s = std::nan(""); }), HasSubstr("nan bytes per second"));
  EXPECT_THAT(refusal([](auto& row) { row.kernel_blocks = 0; }), HasSubstr("kernel of 0 blocks"));
  EXPECT_THAT(refusal([](auto& row) { row.kernel_blocks = 1'025; }), HasSubstr("1 to 1024"));
}

}  // namespace
}  // namespace harvest::cuda
