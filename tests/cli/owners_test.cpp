// SPDX-License-Identifier: Apache-2.0
#include "cli/owners.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace harvest::cli {
namespace {

constexpr double kGiB = 1ULL << 30;
constexpr double kHourNs = 3600e9;

/// The use of an owner after each of its changes.
struct Point {
  TimeNs at_ns;
  std::uint64_t use_bytes;
};

std::vector<Point> live(std::uint64_t seed, double hours) {
  OwnerModel owner(seed, 48ULL << 30);
  std::vector<Point> points{{0, owner.use_bytes()}};
  while (static_cast<double>(owner.next_ns()) < hours * kHourNs) {
    const TimeNs at = owner.next_ns();
    points.push_back({at, owner.step()});
  }
  return points;
}

/// The use that is not exceeded `share` of the time.
double quantile_gib(std::vector<std::pair<std::uint64_t, TimeNs>> spans, double share) {
  std::sort(spans.begin(), spans.end());
  double total = 0;
  for (const auto& [use, span] : spans) total += static_cast<double>(span);
  double seen = 0;
  for (const auto& [use, span] : spans) {
    seen += static_cast<double>(span);
    if (seen >= share * total) return static_cast<double>(use) / kGiB;
  }
  return 0;
}

TEST(OwnerModel, HasTheFiguresThatItsCommentPromises) {
  constexpr double kHours = 5000;
  const auto points = live(3, kHours);
  std::vector<double> rises;
  std::vector<std::pair<std::uint64_t, TimeNs>> spans;
  for (std::size_t i = 1; i < points.size(); ++i) {
    spans.emplace_back(points[i - 1].use_bytes, points[i].at_ns - points[i - 1].at_ns);
    if (points[i].use_bytes > points[i - 1].use_bytes)
      rises.push_back(static_cast<double>(points[i].use_bytes - points[i - 1].use_bytes) / kGiB);
  }
  std::sort(rises.begin(), rises.end());
  const auto per_hour = [&](double least) {
    return static_cast<double>(rises.end() - std::lower_bound(rises.begin(), rises.end(), least)) / kHours;
  };
  const auto size = [&](double share) {
    return rises[static_cast<std::size_t>(share * static_cast<double>(rises.size()))];
  };
  EXPECT_NEAR(quantile_gib(spans, 0.5), 23, 1);
  EXPECT_NEAR(quantile_gib(spans, 0.99), 36, 2);
  EXPECT_NEAR(per_hour(0.99), 9.4, 0.8);  // whole pages: a rise of 1 GiB may come out 2 MiB short
  EXPECT_NEAR(per_hour(5), 2.4, 0.4);
  EXPECT_NEAR(per_hour(10), 0.46, 0.15);
  EXPECT_NEAR(size(0.5), 3.2, 0.2);
  EXPECT_NEAR(size(0.9), 7.7, 0.5);
  EXPECT_NEAR(size(0.99), 15.7, 1.5);
}

/// Memory that is free now and stays free for 57 minutes, of 48 GiB.
double odds_to_stay(const std::vector<Point>& points, double free_gib) {
  const double most = (48 - free_gib) * kGiB;
  const auto span = static_cast<TimeNs>(0.95 * kHourNs);
  std::size_t free_now = 0;
  std::size_t free_later = 0;
  std::size_t at = 0;
  for (TimeNs now = 0; now + span < points.back().at_ns; now += static_cast<TimeNs>(0.37 * kHourNs)) {
    while (at + 1 < points.size() && points[at + 1].at_ns <= now) ++at;
    if (static_cast<double>(points[at].use_bytes) > most) continue;
    ++free_now;
    bool stays = true;
    for (std::size_t i = at; i < points.size() && points[i].at_ns <= now + span; ++i)
      stays = stays && static_cast<double>(points[i].use_bytes) <= most;
    free_later += stays ? 1 : 0;
  }
  return static_cast<double>(free_later) / static_cast<double>(free_now);
}

TEST(OwnerModel, FreeMemoryStaysFreeWithTheOddsThatItsCommentPromises) {
  const auto points = live(5, 5000);
  EXPECT_NEAR(odds_to_stay(points, 16), 0.75, 0.05);
  EXPECT_NEAR(odds_to_stay(points, 20), 0.50, 0.06);
  EXPECT_NEAR(odds_to_stay(points, 24), 0.40, 0.06);
}

TEST(OwnerModel, IsTheSameForTheSameSeedAndStaysInItsMemory) {
  const auto one = live(11, 200);
  const auto two = live(11, 200);
  const auto other = live(12, 200);
  const auto same = [](const std::vector<Point>& a, const std::vector<Point>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Point& x, const Point& y) {
      return x.at_ns == y.at_ns && x.use_bytes == y.use_bytes;
    });
  };
  EXPECT_TRUE(same(one, two));
  EXPECT_FALSE(same(one, other));
  OwnerModel small(1, 8ULL << 30);
  for (int i = 0; i < 1000; ++i) {
    const TimeNs at = small.next_ns();
    EXPECT_LE(small.step(), 8ULL << 30);
    EXPECT_GT(small.next_ns(), at);
  }
}

TEST(Owners, AskTheCacheForWhatIsMissingAndThenAllocate) {
  constexpr std::uint64_t kObject = 64ULL << 20;
  auto backend =
      make_simulated_backend(*machine_from_preset("4x4090-pcie"), {.bytes = SimulatedBytes::phantom});
  PeerCacheConfig config;
  config.peers = {1};
  config.verify_paths = false;
  config.pressure.reserve_bytes = 0;
  config.pressure.hysteresis_bytes = 0;
  Owners owners(**backend, {1}, OwnerActivity::bursty, 4);
  EXPECT_EQ((*backend)->tenant_bytes(1), OwnerModel::kMedianBytes);
  auto cache = PeerCache::create(**backend, config);
  ASSERT_TRUE(cache) << cache.error().message;

  // Fill whatever the owner leaves, for hours: what it wants back is ours then.
  std::byte* source = *(*backend)->reserve_host_range(kObject);
  std::uint64_t next_key = 0;
  while ((*backend)->now_ns() < static_cast<TimeNs>(12 * kHourNs)) {
    (*backend)->sleep_until(std::min(owners.next_ns(), (*backend)->now_ns() + 20'000'000'000));
    owners.act(cache->get());
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
