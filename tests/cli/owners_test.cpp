// SPDX-License-Identifier: Apache-2.0
#include "cli/owners.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <vector>

namespace harvest::cli {
namespace {

constexpr double kGiB = 1ULL << 30;
constexpr double kHourNs = 3600e9;

constexpr TimeNs kLookNs = 57'000'000'000;
constexpr std::size_t kLooksToStay = 60;  // 57 minutes

/// What the study would have seen of owners of 48 GiB: each one's use, every 57 seconds.
std::vector<double> look_at_owner(std::uint64_t seed, double hours) {
  OwnerModel owner(seed, 48ULL << 30);
  std::vector<double> looks;
  for (TimeNs at = 0; static_cast<double>(at) < hours * kHourNs; at += kLookNs) {
    while (owner.next_ns() <= at) owner.step();
    looks.push_back(static_cast<double>(owner.use_bytes()) / kGiB);
  }
  return looks;
}

double quantile(std::vector<double> values, double share) {
  const auto rank = static_cast<std::size_t>(share * static_cast<double>(values.size()));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(rank), values.end());
  return values[rank];
}

TEST(OwnerModel, HasTheFiguresOfTheStudy) {
  constexpr double kHours = 20'000;
  const std::vector<double> looks = look_at_owner(3, kHours);
  std::vector<double> growth;
  std::vector<double> rises;
  for (std::size_t i = 1; i < looks.size(); ++i) {
    growth.push_back(std::max(0.0, looks[i] - looks[i - 1]));
    if (growth.back() >= .99) rises.push_back(growth.back());  // whole pages: it may come out 2 MiB short
  }
  const auto per_hour = [&](double least) {
    return static_cast<double>(
               std::count_if(rises.begin(), rises.end(), [&](double rise) { return rise >= least; })) /
           kHours;
  };
  EXPECT_NEAR(quantile(looks, .50), 23, .8);
  EXPECT_NEAR(quantile(looks, .99), 37, 1.5);
  EXPECT_NEAR(per_hour(.99), 9.4, .8);
  EXPECT_NEAR(per_hour(5), 3.0, .4);
  EXPECT_NEAR(per_hour(10), .5, .1);
  EXPECT_NEAR(quantile(rises, .50), 3.1, .2);
  EXPECT_NEAR(quantile(rises, .90), 8.4, .6);
  EXPECT_NEAR(quantile(rises, .99), 14.4, 1);
  EXPECT_NEAR(quantile(growth, .999), 16, 1);
  EXPECT_NEAR(*std::max_element(rises.begin(), rises.end()), 31.7, 5);
}

/// Of the moments at which `free_gib` of 48 are free: the share after which they stay free for 57 minutes.
double odds_to_stay(const std::vector<double>& looks, double free_gib) {
  const double most = 48 - free_gib;
  std::size_t free_now = 0;
  std::size_t stays = 0;
  std::size_t free_looks = 0;  // in a row, from the one at `i` on
  for (std::size_t i = looks.size(); i-- > 0;) {
    free_looks = looks[i] <= most ? free_looks + 1 : 0;
    if (free_looks == 0 || i + kLooksToStay >= looks.size()) continue;
    ++free_now;
    stays += free_looks > kLooksToStay ? 1 : 0;
  }
  return static_cast<double>(stays) / static_cast<double>(free_now);
}

TEST(OwnerModel, FreeMemoryStaysFreeWithTheOddsOfTheStudy) {
  const std::vector<double> looks = look_at_owner(5, 20'000);
  EXPECT_NEAR(odds_to_stay(looks, 16), .87, .04);
  EXPECT_NEAR(odds_to_stay(looks, 20), .72, .05);
  EXPECT_NEAR(odds_to_stay(looks, 24), .20, .04);
}

TEST(OwnerModel, StaysInItsMemoryAndGoesOn) {
  OwnerModel small(1, 8ULL << 30);
  for (int i = 0; i < 1000; ++i) {
    const TimeNs at = small.next_ns();
    EXPECT_LE(small.step(), 8ULL << 30);
    EXPECT_GT(small.next_ns(), at);
  }
}

TEST(GeneratedOwners, AreTheSameForTheSameSeedWhoeverTheOthersAre) {
  const auto duration = static_cast<TimeNs>(50 * kHourNs);
  const std::vector<OwnedDevice> both{{1, 48ULL << 30}, {2, 48ULL << 30}};
  const OwnerTrace trace = generate_owner_trace(both, duration, 11);
  EXPECT_EQ(trace.steps, generate_owner_trace(both, duration, 11).steps);
  EXPECT_NE(trace.steps, generate_owner_trace(both, duration, 12).steps);
  EXPECT_EQ(trace.devices(), (std::vector<DeviceId>{1, 2}));
  EXPECT_EQ(trace.duration_ns(), duration);
  EXPECT_TRUE(std::is_sorted(trace.steps.begin(), trace.steps.end(),
                             [](const OwnerStep& a, const OwnerStep& b) { return a.at_ns < b.at_ns; }));
  std::vector<OwnerStep> second;
  std::copy_if(trace.steps.begin(), trace.steps.end(), std::back_inserter(second),
               [](const OwnerStep& step) { return step.device == 2; });
  EXPECT_EQ(second, generate_owner_trace({&both[1], 1}, duration, 11).steps);
  EXPECT_EQ(second.front().at_ns, 0);
  EXPECT_EQ(second.back().at_ns, duration);
}

TEST(Owners, SteadyOnesHoldTheMedian) {
  auto backend = make_simulated_backend(*machine_from_preset("dgx-h100"), {.bytes = SimulatedBytes::phantom});
  const Owners owners(**backend, {1, 2}, OwnerActivity::steady, 4);
  EXPECT_EQ((*backend)->tenant_bytes(1), OwnerModel::kMedianBytes);
  EXPECT_EQ((*backend)->tenant_bytes(2), OwnerModel::kMedianBytes);
  EXPECT_EQ(owners.next_ns(), kNever);
}

TEST(Owners, AskTheCacheForWhatIsMissingAndThenAllocate) {
  constexpr std::uint64_t kObject = 64ULL << 20;
  Machine machine = *machine_from_preset("4x4090-pcie");
  machine.devices[1].info.total_bytes = 48ULL << 30;
  auto backend = make_simulated_backend(machine, {.bytes = SimulatedBytes::phantom});
  PeerCacheConfig config;
  config.peers = {1};
  config.verify_paths = false;
  config.pressure.reserve_bytes = 0;
  config.pressure.hysteresis_bytes = 0;
  Owners owners(**backend, {1}, OwnerActivity::bursty, 4);
  EXPECT_GT((*backend)->tenant_bytes(1), 0U);
  auto cache = PeerCache::create(**backend, config);
  ASSERT_TRUE(cache) << cache.error().message;

  // Fill whatever the owner leaves, for hours: what it wants back is ours then.
  std::byte* source = *(*backend)->reserve_host_range(kObject);
  std::uint64_t next_key = 0;
  while ((*backend)->now_ns() < static_cast<TimeNs>(12 * kHourNs)) {
    (*backend)->sleep_until(std::min(owners.next_ns(), (*backend)->now_ns() + 20'000'000'000));
    owners.act(cache->get());
    (*cache)->poll();
    for (int i = 0; i < 16; ++i) {
      PutOptions options;
      options.backing = Backing::lossy;
      if (!(*cache)->put(next_key++ % 4096, source, kObject, options)) break;
    }
  }
  const OwnerFigures& figures = owners.figures();
  EXPECT_GT(figures.rises, 10U);
  EXPECT_GT(figures.reclaim_ns.size(), 0U);
  EXPECT_EQ(figures.refused, 0U);
  EXPECT_EQ(figures.late, 0U);
  EXPECT_EQ(figures.bytes_returned, figures.bytes_requested);
}

}  // namespace
}  // namespace harvest::cli
