// SPDX-License-Identifier: Apache-2.0
#include "cli/routing_evictions.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <harvest/moe/expert_cache.hpp>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

/// One cache of experts for all layers, on recordings.
namespace harvest::cli {
namespace {

/// Two layers of six experts, of which each step needs two.
class Recording {
 public:
  void step(std::vector<std::uint32_t> first, std::vector<std::uint32_t> second,
            moe::Phase phase = moe::Phase::decode) {
    EXPECT_TRUE(trace.add({steps_, phase, 0, 0, 1, first}));
    EXPECT_TRUE(trace.add({steps_++, phase, 0, 1, 1, second}));
  }
  [[nodiscard]] double misses(std::string_view eviction, std::uint64_t slots) const {
    if (eviction == "belady") return replay_belady(trace, slots).miss_ratio;
    const auto figures = replay_eviction(eviction, trace, slots);
    EXPECT_TRUE(figures) << (figures ? "" : figures.error().message);
    return figures ? figures->miss_ratio : -1;
  }

  moe::RoutingTrace trace{moe::RoutingShape{2, 6, 2}};

 private:
  std::uint64_t steps_ = 0;
};

TEST(RoutingEvictions, CountsWhatIsMissed) {
  Recording recording;
  recording.step({0, 1}, {0, 1});
  recording.step({0, 1}, {0, 2});
  recording.step({4, 5}, {4, 5}, moe::Phase::prefill);  // is not decode
  for (const std::string_view eviction : {"next_use", "lru", "belady"})
    EXPECT_DOUBLE_EQ(recording.misses(eviction, 12), 5.0 / 8) << eviction;
}

/// Of a pass that does not fit LRU keeps just what comes again last; Belady keeps half.
TEST(RoutingEvictions, LayersShareTheSlots) {
  Recording recording;
  constexpr int kSteps = 16;
  for (int i = 0; i < kSteps; ++i) recording.step({0, 1}, {0, 1});
  EXPECT_DOUBLE_EQ(recording.misses("lru", 2), 1);
  EXPECT_DOUBLE_EQ(recording.misses("belady", 2), (2.0 + 2 * kSteps) / (4 * kSteps));
  EXPECT_DOUBLE_EQ(recording.misses("belady", 4), 1.0 / kSteps);
  EXPECT_DOUBLE_EQ(recording.misses("lru", 4), 1.0 / kSteps);
}

TEST(RoutingEvictions, NothingOnlineBeatsBelady) {
  const auto model = moe::find_routing_model("qwen1.5-moe-a2.7b");
  ASSERT_TRUE(model);
  auto generator = moe::RoutingGenerator::create(*model, {4, {64, 64}, {16, 32}, 5});
  ASSERT_TRUE(generator);
  moe::RoutingTrace trace(model->shape);
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(trace.add(generator->next()));
  const auto figures = replay_evictions(trace, 24 * 60 * 2 / 5);
  ASSERT_TRUE(figures);
  ASSERT_EQ(figures->size(), moe::expert_eviction_names().size() + 1);
  EXPECT_EQ(figures->back().eviction, "belady");
  double best = 1;
  for (std::size_t i = 0; i + 1 < figures->size(); ++i) {
    EXPECT_EQ((*figures)[i].eviction, moe::expert_eviction_names()[i]);
    EXPECT_GT((*figures)[i].miss_ratio, figures->back().miss_ratio);
    best = std::min(best, (*figures)[i].miss_ratio);
  }
  EXPECT_GT(figures->back().miss_ratio, 0);
  EXPECT_LE(figures->front().miss_ratio, best + .01);  // the default
}

TEST(RoutingEvictions, SaysWhatItCannotDo) {
  Recording recording;
  recording.step({0, 1}, {0, 1});
  EXPECT_EQ(replay_eviction("lrru", recording.trace, 4).error().code, ErrorCode::not_found);
  EXPECT_EQ(replay_eviction("lru", recording.trace, 1).error().code, ErrorCode::invalid_argument);
}

}  // namespace
}  // namespace harvest::cli
