// SPDX-License-Identifier: Apache-2.0
// Where keys and values lie, and what a server makes of those that are not there: page tables, sharing, and
// prompts whose beginning was promised and did not come. The cache of blocks joins in kv_server_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kv_server/kv_pages.hpp"
#include "kv_server/page_pool.hpp"
#include "kv_server/paged_kv.hpp"
#include "transformer/cpu_compute.hpp"
#include "transformer/experts.hpp"
#include "transformer/kernels.hpp"
#include "transformer/random.hpp"
#include "transformer/server.hpp"
#include "transformer/surroundings.hpp"

namespace harvest::kv_server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr Shape kShape{.layers = 3,
                       .experts = 4,
                       .top_k = 2,
                       .hidden = 32,
                       .intermediate = 40,
                       .heads = 4,
                       .kv_heads = 2,
                       .vocabulary = 40};
constexpr std::uint32_t kPositions = 40;
constexpr const char* kHow = "in plain memory";

std::vector<Request> draw_requests(std::uint32_t count) {
  Random random(11);
  std::vector<Request> requests(count);
  for (std::uint32_t id = 0; id < count; ++id) {
    requests[id].id = id;
    requests[id].prompt.resize(random.between(1, 28));
    for (std::uint32_t& token : requests[id].prompt)
      token = static_cast<std::uint32_t>(random.below(kShape.vocabulary));
    requests[id].new_tokens = static_cast<std::uint32_t>(random.between(1, 12));
  }
  return requests;
}

class ServedFrom : public ::testing::Test {
 protected:
  std::vector<Answer> serve(KvMemory& kv, Kernels& kernels, ServerLimits limits,
                            const std::vector<Request>& requests) {
    CpuCompute compute(model_, kernels, kv);
    Server server(model_, compute, experts_, kv, limits, {});
    for (const Request& request : requests) server.submit(request);
    while (!server.idle())
      if (const Status done = server.step(); !done) {
        ADD_FAILURE() << done.error().message;
        return {};
      }
    stats_ = server.stats();
    std::vector<Answer> answers = server.answers();
    std::ranges::sort(answers, {}, &Answer::id);
    return answers;
  }
  std::vector<Answer> serve_plainly(const std::vector<Request>& requests) {
    Kernels kernels;
    PlainKv kv(kShape, 1, kPositions);
    return serve(kv, kernels, {.sequences = 1, .tokens_per_step = 7}, requests);
  }

  const Model model_{kShape, 5};
  ResidentExperts experts_{model_};
  ServerStats stats_;
};

// --- pages -------------------------------------------------------------------------------------------------

class PagesOf : public ServedFrom, public ::testing::WithParamInterface<std::string_view> {
 protected:
  std::unique_ptr<KvPages> make_pages(std::uint32_t page_tokens, std::uint32_t pages) {
    return KvPages::create(*backend_, kShape, *kv::kv_arrangement_from(GetParam()), page_tokens, pages)
        .value();
  }
  std::unique_ptr<SimulatedBackend> backend_ = make_small_machine("2xh100-nvl", 0, 1).value();
};

/// In whichever order a table has them.
TEST_P(PagesOf, EveryElementHasAPlaceOfItsOwn) {
  const auto pages = make_pages(3, 5);
  std::set<const float*> places;
  for (std::uint32_t layer = 0; layer < kShape.layers; ++layer)
    for (std::uint32_t part = 0; part < 2; ++part)
      for (std::uint32_t page = 0; page < 5; ++page)
        for (std::uint32_t token = 0; token < 3; ++token)
          for (std::uint32_t i = 0; i < kShape.kv_size(); ++i)
            places.insert(&row_of(pages->layout(), layer, part, page, token)[i]);
  const std::size_t elements = pages->layout().page_bytes() * 5 / sizeof(float);
  EXPECT_EQ(places.size(), elements);
  EXPECT_EQ(static_cast<std::size_t>(*places.rbegin() - *places.begin()) + 1, elements);
}

TEST_P(PagesOf, KeysOfAHeadAreOneAfterTheOther) {
  const auto pages = make_pages(3, 5);
  EXPECT_EQ(row_of(pages->layout(), 1, 0, 4, 2).stride, 1U);
}

TEST_P(PagesOf, ServeWhatPlainMemoryServesToTheLastBit) {
  const auto requests = draw_requests(9);
  const auto pages = make_pages(4, 22);
  Kernels kernels(*backend_, backend_->create_stream(0).value(), 1'000, 3);
  PagedKv kv(*pages, nullptr, {.sequences = 5, .block_pages = 2, .seed = 8}, kernels.stream(),
             {.before_layer = [] { return Status(); }, .before_load = [] { return Status(); }});
  const auto answers = serve(kv, kernels, {.sequences = 5, .tokens_per_step = 16}, requests);
  EXPECT_GT(stats_.mixed_steps, 0U);
  EXPECT_EQ(compare(answers, serve_plainly(requests), kHow), "");
  EXPECT_EQ(kv.stats().shared_tokens, 0U);
}

INSTANTIATE_TEST_SUITE_P(Arrangements, PagesOf, ::testing::ValuesIn(kv::kv_arrangement_names()),
                         [](const auto& test) { return std::string(test.param); });

TEST(PageTableTest, ASequenceWaitsUntilThereIsRoom) {
  const auto backend = make_small_machine("2xh100-nvl", 0, 1).value();
  const auto pages = KvPages::create(*backend, kShape, kv::KvArrangement::page_first, 4, 10).value();
  PagedKv kv(*pages, nullptr, {.sequences = 3, .block_pages = 2}, StreamId::none, {});
  const std::vector<std::uint32_t> prompt{1, 2, 3};
  EXPECT_EQ(kv.enter(0, prompt, 17).value(), 0U);  // 3 of the 5 blocks
  EXPECT_EQ(kv.enter(1, prompt, 17).value(), std::nullopt);
  EXPECT_EQ(kv.enter(1, prompt, 16).value(), 0U);
  EXPECT_NE(kv.keys(0, 0, 9).first, kv.keys(0, 1, 9).first);
  kv.leave(0);
  EXPECT_EQ(kv.enter(2, prompt, 24).value(), 0U);
}

// --- who has which pages -----------------------------------------------------------------------------------

class PagePoolTest : public ::testing::Test {
 protected:
  std::vector<std::uint32_t> take(std::size_t blocks) {
    const auto pages = pool_.take(blocks, dropped_);
    EXPECT_TRUE(pages);
    return pages.value_or(std::vector<std::uint32_t>());
  }
  PagePool pool_{8, 2, 1};
  std::vector<Key> dropped_;
};

TEST_F(PagePoolTest, HandsOutEveryPageOnce) {
  const auto first = take(3);
  const auto second = take(1);
  EXPECT_EQ(first.size(), 6U);
  std::set<std::uint32_t> all(first.begin(), first.end());
  all.insert(second.begin(), second.end());
  EXPECT_EQ(all.size(), 8U);
  EXPECT_EQ(*all.rbegin(), 7U);
  EXPECT_FALSE(pool_.take(1, dropped_));
  pool_.give_back(second);
  EXPECT_THAT(take(1), UnorderedElementsAre(second[0], second[1]));
  EXPECT_THAT(dropped_, IsEmpty());
}

TEST_F(PagePoolTest, WhatIsUsedStays) {
  const auto pages = take(3);
  ASSERT_TRUE(pool_.share(Key{1}, std::span(pages).first(2)));
  ASSERT_TRUE(pool_.use(Key{1}));
  pool_.leave(Key{1});
  EXPECT_FALSE(pool_.take(2, dropped_)) << "one still uses the block";
  pool_.leave(Key{1});
  EXPECT_EQ(pool_.free_pages(), 2U) << "it stays until its pages are needed";
  EXPECT_TRUE(pool_.use(Key{1}));
  pool_.leave(Key{1});
  take(2);
  EXPECT_THAT(dropped_, ElementsAre(Key{1}));
  EXPECT_FALSE(pool_.use(Key{1}));
}

TEST_F(PagePoolTest, WhatWasLeftFirstMakesWayFirstAndOnlyIfThatHelps) {
  const auto pages = take(4);
  for (std::uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(pool_.share(Key{i}, std::span(pages).subspan(2 * i, 2)));
  for (const std::uint64_t key : {1U, 2U, 0U}) pool_.leave(Key{key});
  EXPECT_FALSE(pool_.take(4, dropped_));
  EXPECT_THAT(dropped_, IsEmpty());
  take(2);
  EXPECT_THAT(dropped_, ElementsAre(Key{1}, Key{2}));
}

TEST_F(PagePoolTest, ANameIsSharedOnce) {
  const auto pages = take(2);
  ASSERT_TRUE(pool_.share(Key{1}, std::span(pages).first(2)));
  EXPECT_FALSE(pool_.share(Key{1}, std::span(pages).last(2)));
  pool_.leave(Key{1});
  EXPECT_EQ(pool_.free_pages(), 4U);
}

// --- what did not come -------------------------------------------------------------------------------------

/// Knows the second request's prompt from the first, which is the same and had the same place; some of it is
/// gone, which it tells when all is computed, or does not tell.
class ForgetfulKv : public PlainKv {
 public:
  ForgetfulKv() : PlainKv(kShape, 1, kPositions) {}

  std::uint32_t known = 0;
  std::vector<KvRange> gone;
  bool tells = true;

  Result<std::optional<std::uint32_t>> enter(std::uint32_t, std::span<const std::uint32_t>,
                                             std::uint32_t) override {
    if (++entered_ == 1) return std::optional<std::uint32_t>(0);
    loading_ = true;
    for (const KvRange& range : gone)
      for (std::uint32_t layer = 0; layer < kShape.layers; ++layer)
        for (std::uint32_t i = 0; i < range.count; ++i)
          keys(layer, 0, range.first + i)[3] = values(layer, 0, range.first + i)[3] = 0.25F;
    return std::optional(known);
  }
  std::vector<KvRange> confirm(std::span<const Row> rows) override {
    computed += rows.size();
    return std::exchange(loading_, false) && tells ? gone : std::vector<KvRange>();
  }
  Status keep(std::uint32_t, std::span<const std::uint32_t> tokens) override {
    if (entered_ == 2) kept.push_back(tokens.size());
    return {};
  }

  std::uint64_t computed = 0;
  std::vector<std::size_t> kept;  ///< of the second

 private:
  int entered_ = 0;
  bool loading_ = false;
};

class MissingTest : public ServedFrom {
 protected:
  MissingTest() {
    requests_ = draw_requests(1);
    requests_[0].prompt.resize(20, 7);
    requests_[0].new_tokens = 4;
    requests_.push_back(requests_[0]);
    requests_[1].id = 1;
  }
  std::string serve_twice(std::uint32_t tokens_per_step) {
    const auto expected = serve_plainly(requests_);
    Kernels kernels;
    const auto answers = serve(kv_, kernels, {.sequences = 1, .tokens_per_step = tokens_per_step}, requests_);
    return compare(answers, expected, kHow);
  }
  std::vector<Request> requests_;
  ForgetfulKv kv_;
};

TEST_F(MissingTest, WhatIsKnownIsNotComputed) {
  kv_.known = 16;
  EXPECT_EQ(serve_twice(32), "");
  EXPECT_EQ(kv_.computed, 20U + 3 + 4 + 3);
  EXPECT_THAT(kv_.kept, ElementsAre(20, 21, 22, 23));
}

TEST_F(MissingTest, ExactlyWhatDidNotComeIsComputedAgain) {
  kv_.known = 16;
  kv_.gone = {{0, 4, 4}, {0, 12, 2}};
  EXPECT_EQ(serve_twice(32), "");
  EXPECT_EQ(stats_.missing_tokens, 6U);
  EXPECT_EQ(kv_.computed, 20U + 3 + 4 + (6 + 4) + 3);
  EXPECT_THAT(kv_.kept, ElementsAre(20, 21, 22, 23));
}

TEST_F(MissingTest, InPiecesToo) {
  kv_.known = 16;
  kv_.gone = {{0, 4, 4}, {0, 12, 2}};
  EXPECT_EQ(serve_twice(3), "");
  EXPECT_THAT(kv_.kept, ElementsAre(7, 16, 19, 20, 21, 22, 23)) << "up to the first hole, and no further";
}

TEST_F(MissingTest, AllOfItMayBeGone) {
  kv_.known = 19;
  kv_.gone = {{0, 0, 19}};
  EXPECT_EQ(serve_twice(32), "");
}

TEST_F(MissingTest, WhatNobodyTellsIsFound) {
  kv_.known = 16;
  kv_.gone = {{0, 9, 1}};
  kv_.tells = false;
  EXPECT_THAT(serve_twice(32), HasSubstr("in plain memory it is"));
}

}  // namespace
}  // namespace harvest::kv_server
