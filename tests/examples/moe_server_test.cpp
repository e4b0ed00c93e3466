// SPDX-License-Identifier: Apache-2.0
// The server beside its arithmetic: batching, steps that are done again, kernels in virtual time, and that a
// wrong bit is found. Whole runs on the simulated machine are `example.moe_server`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "moe_server/world.hpp"
#include "transformer/cpu_compute.hpp"
#include "transformer/experts.hpp"
#include "transformer/kernels.hpp"
#include "transformer/server.hpp"

namespace harvest::moe_server {
namespace {

using ::testing::HasSubstr;

const ProgressReport kSilent = [](std::uint64_t) {};
constexpr const char* kHow = "with all experts resident";

Options small_options() {
  Options options;
  options.shape = {.layers = 3,
                   .experts = 6,
                   .hidden = 32,
                   .intermediate = 64,
                   .heads = 4,
                   .kv_heads = 2,
                   .vocabulary = 40};
  options.requests = 7;
  options.longest_prompt = 11;
  options.most_new_tokens = 9;
  options.limits = {.sequences = 3, .tokens_per_step = 8};
  return options;
}

/// Experts of which the test says what is wrong with them.
class TroubledExperts : public Experts {
 public:
  explicit TroubledExperts(const Model& model)
      : model_(model), poison_(model.expert_bytes(), std::byte{0x7F}) {}

  bool reversed = false;
  std::uint64_t wrong_weights_each = 0;  ///< each so-many-th expert is poison, which `confirm` tells
  std::uint64_t broken_off_each = 0;     ///< each so-many-th layer step ends in the middle

  Status run(std::uint32_t layer, std::span<const std::uint32_t> experts, moe::Phase phase,
             const Use& use) override {
    std::vector<std::uint32_t> order(experts.begin(), experts.end());
    EXPECT_EQ(std::set(order.begin(), order.end()).size(), order.size()) << "an expert is asked for twice";
    if (phase == moe::Phase::prefill) ++prefill_steps;
    if (reversed) std::ranges::reverse(order);
    for (const std::uint32_t expert : order) {
      const bool wrong = is_due(used_, wrong_weights_each);
      poisoned_ = poisoned_ || wrong;
      if (Status used = use(expert, wrong ? poison_.data() : model_.expert(layer, expert)); !used)
        return used;
      if (is_due(begun_, broken_off_each)) return fail(ErrorCode::unavailable, "broken off");
    }
    return {};
  }
  Status confirm() override {
    if (!std::exchange(poisoned_, false)) return {};
    return fail(ErrorCode::copy_failed, "poison");
  }

  std::uint64_t prefill_steps = 0;

 private:
  static bool is_due(std::uint64_t& count, std::uint64_t each) { return each != 0 && ++count % each == 0; }

  const Model& model_;
  std::vector<std::byte> poison_;
  std::uint64_t used_ = 0, begun_ = 0;
  bool poisoned_ = false;
};

class ServerTest : public ::testing::Test {
 protected:
  /// Serves all requests together, and answers what differs from each alone.
  std::string serve_together() {
    Server server(model_, compute_, experts_, kv_, options_.limits, {options_.temperature, kSamplingSeed});
    for (const Request& request : requests_) server.submit(request);
    while (!server.idle())
      if (const Status done = server.step(); !done) return done.error().message;
    stats_ = server.stats();
    std::vector<Answer> answers = server.answers();
    std::ranges::sort(answers, {}, &Answer::id);
    return compare(answers, serve_one_by_one(), kHow);
  }
  std::vector<Answer> serve_one_by_one() {
    ResidentExperts resident(model_);
    Server server(model_, compute_, resident, kv_, {.sequences = 1, .tokens_per_step = 1},
                  {options_.temperature, kSamplingSeed});
    for (const Request& request : requests_) server.submit(request);
    while (!server.idle()) EXPECT_TRUE(server.step());
    return server.answers();
  }

  static constexpr std::uint64_t kSamplingSeed = 5;
  Options options_ = small_options();
  Model model_{options_.shape, 1};
  std::vector<Request> requests_ = draw_requests(options_);
  Kernels kernels_;
  PlainKv kv_{options_.shape, 3, 20};
  CpuCompute compute_{model_, kernels_, kv_};
  TroubledExperts experts_{model_};
  ServerStats stats_;
};

TEST_F(ServerTest, RequestsThatShareStepsGetTheAnswersThatTheyGetAlone) {
  EXPECT_EQ(serve_together(), "");
  EXPECT_GT(stats_.mixed_steps, 0U);
  EXPECT_GT(experts_.prefill_steps, 0U);
  EXPECT_EQ(stats_.redone, 0U);
  std::uint64_t prompt_tokens = 0, new_tokens = 0;
  for (const Request& request : requests_) {
    prompt_tokens += request.prompt.size();
    new_tokens += request.new_tokens;
  }
  EXPECT_EQ(stats_.prompt_tokens, prompt_tokens);
  EXPECT_EQ(stats_.new_tokens, new_tokens);
  EXPECT_LT(stats_.steps, new_tokens);
}

TEST_F(ServerTest, SamplingDependsOnTheRequestAlone) {
  options_.temperature = 1;
  EXPECT_EQ(serve_together(), "");
  const auto warm = serve_one_by_one();
  options_.temperature = 0;
  const auto cold = serve_one_by_one();
  EXPECT_TRUE(std::ranges::any_of(
      warm, [&](const Answer& answer) { return answer.tokens != cold[answer.id].tokens; }));
}

TEST_F(ServerTest, ExpertsMayBeReadyInAnyOrder) {
  experts_.reversed = true;
  EXPECT_EQ(serve_together(), "");
}

TEST_F(ServerTest, WhatIsNotConfirmedIsDoneAgain) {
  experts_.wrong_weights_each = 43;
  EXPECT_EQ(serve_together(), "");
  EXPECT_GT(stats_.unconfirmed, 0U);
  EXPECT_EQ(stats_.unconfirmed, stats_.redone);
}

TEST_F(ServerTest, WhatBreaksOffIsDoneAgain) {
  experts_.broken_off_each = 57;
  EXPECT_EQ(serve_together(), "");
  EXPECT_GT(stats_.redone, 0U);
  EXPECT_EQ(stats_.unconfirmed, 0U);
}

TEST_F(ServerTest, WhatNeverWorksIsAnError) {
  experts_.broken_off_each = 1;
  EXPECT_EQ(serve_together(), "a step failed 200 times, the last time: broken off");
}

TEST_F(ServerTest, AWrongWeightThatNobodyTellsIsFound) {
  class Liar : public ResidentExperts {
   public:
    explicit Liar(const Model& model)
        : ResidentExperts(model), weights_(model.expert(1, 0), model.expert(1, 0) + model.expert_bytes()) {
      weights_[3] ^= std::byte{1};  // the sign, or the exponent, of one weight of 6,144
    }
    Status run(std::uint32_t layer, std::span<const std::uint32_t> experts, moe::Phase phase,
               const Use& use) override {
      return ResidentExperts::run(layer, experts, phase, [&](std::uint32_t expert, const std::byte* weights) {
        return use(expert, layer == 1 && expert == 0 ? weights_.data() : weights);
      });
    }

   private:
    std::vector<std::byte> weights_;
  };
  Liar liar(model_);
  Server server(model_, compute_, liar, kv_, {.sequences = 1, .tokens_per_step = 8}, {0, kSamplingSeed});
  for (const Request& request : requests_) server.submit(request);
  while (!server.idle()) ASSERT_TRUE(server.step());
  EXPECT_THAT(compare(server.answers(), serve_one_by_one(), kHow),
              HasSubstr("with all experts resident it is"));
}

TEST(CompareTest, FindsTheSmallestDifference) {
  const std::vector<Answer> right{{.id = 0, .tokens = {1, 0}, .logits = {0, 1, 2, -1}},
                                  {.id = 1, .tokens = {1}, .logits = {5, 6}}};
  EXPECT_EQ(compare(right, right, kHow), "");
  auto changed = right;
  changed[1].logits[1] = std::nextafter(6.0F, 7.0F);
  EXPECT_THAT(compare(changed, right, kHow), HasSubstr("request 1, new token 0: the score of 1 is"));
  changed = right;
  changed[0].logits[0] = -0.0F;
  EXPECT_THAT(compare(changed, right, kHow), HasSubstr("request 0, new token 0: the score of 0 is -0"));
  changed = right;
  changed[0].tokens[1] = 1;
  EXPECT_EQ(compare(changed, right, kHow), "request 0: new token 1 is 1, with all experts resident it is 0");
  changed = right;
  changed[0].tokens.pop_back();
  EXPECT_EQ(compare(changed, right, kHow), "request 0 has 1 new tokens, expected are 2");
  changed = right;
  changed.pop_back();
  EXPECT_EQ(compare(changed, right, kHow), "1 requests were answered, 2 were expected");
}

class KernelsTest : public ::testing::Test {
 protected:
  KernelsTest()
      : backend_(make_simulated_backend(*machine_from_preset("2xh100-nvl")).value()),
        stream_(backend_->create_stream(0).value()),
        kernels_(*backend_, stream_, 1'000, 3) {}

  std::unique_ptr<SimulatedBackend> backend_;
  StreamId stream_;
  Kernels kernels_;
};

TEST_F(KernelsTest, RunInOrderEachInItsOwnTime) {
  std::vector<TimeNs> times_ns;
  for (int i = 0; i < 20; ++i)
    ASSERT_TRUE(kernels_.launch({}, [&] { times_ns.push_back(backend_->now_ns()); }));
  EXPECT_TRUE(times_ns.empty());
  ASSERT_TRUE(kernels_.wait());
  ASSERT_EQ(times_ns.size(), 20U);
  std::set<TimeNs> into_kernel_ns;
  for (std::size_t i = 0; i < times_ns.size(); ++i) {
    const TimeNs into_ns = times_ns[i] - static_cast<TimeNs>(i) * 1'001;
    EXPECT_GE(into_ns, 0);
    EXPECT_LE(into_ns, 1'000);
    into_kernel_ns.insert(into_ns);
  }
  EXPECT_TRUE(into_kernel_ns.contains(0));
  EXPECT_TRUE(into_kernel_ns.contains(1'000));
  EXPECT_GT(into_kernel_ns.size(), 4U);
}

TEST_F(KernelsTest, LargeWorkTakesLonger) {
  TimeNs end_ns = 0;
  ASSERT_TRUE(kernels_.launch({.bytes = 3'000'000'000, .operations = 0}, [] {}));
  ASSERT_TRUE(kernels_.launch({.bytes = 0, .operations = 100'000'000'000}, [] {}));
  ASSERT_TRUE(kernels_.launch({}, [&] { end_ns = backend_->now_ns(); }));
  ASSERT_TRUE(kernels_.wait());
  EXPECT_GE(end_ns, 3'000'000);  // 1 ms of memory's time, 2 ms of arithmetic's
  EXPECT_LE(end_ns, 3'010'000);
}

TEST_F(KernelsTest, ATimeThatHasPassedIsNotComeToLater) {
  bool ran = false;
  ASSERT_TRUE(kernels_.launch({}, [&] { ran = true; }));
  backend_->sleep_until(backend_->now_ns() + 5'000);
  const Status late = kernels_.wait();
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::timed_out);
  EXPECT_EQ(late.error().message, "virtual time moved by 5000 ns behind a kernel's back, and passed it");
  EXPECT_FALSE(ran);
  EXPECT_TRUE(kernels_.wait()) << "what was dropped comes again";
}

TEST_F(KernelsTest, AFailedCopyBeforeThemIsTold) {
  std::byte* segment = backend_->map_segment(0, 2 << 20, {}).value();
  FaultPlan plan;
  plan.fail_copy.at = 1;
  ASSERT_TRUE(backend_->set_faults(plan));
  std::vector<std::byte> bytes(100);
  const Copy copy{segment, bytes.data(), bytes.size()};
  ASSERT_TRUE(backend_->copy(stream_, {kHost, 0}, {&copy, 1}));
  ASSERT_TRUE(kernels_.launch({}, [] { FAIL() << "it ran on what did not arrive"; }));
  const Status failed = kernels_.wait();
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::copy_failed);
  ASSERT_TRUE(backend_->unmap_segment(segment));
}

TEST(OptionsTest, SayWhatCannotBe) {
  Options options;
  EXPECT_TRUE(options.validate());
  options.limits.tokens_per_step = 7;
  EXPECT_EQ(options.validate().error().message, "tokens_per_step is 7, it must be from 8 to 100000");
  options = {};
  options.shape.layers = 1024;
  options.shape.experts = 1024;
  EXPECT_EQ(options.validate().error().message, "the experts' GiB is 1536, it must be from 0 to 64");
  options = {};
  options.fault_rate = std::nan("");
  EXPECT_EQ(options.validate().error().message, "fault_rate is nan, it must be from 0 to 0.5");
}

TEST(WorldTest, SaysWhyThereCanBeNone) {
  Options options = small_options();
  const Model model(options.shape, options.seed);
  const auto complaint = [&](auto change) {
    Options changed = options;
    change(changed);
    const auto world = World::create(changed, model);
    return world ? "nothing" : world.error().message;
  };
  EXPECT_EQ(complaint([](Options&) {}), "nothing");
  EXPECT_THAT(complaint([](Options& changed) { changed.system = "nope"; }), HasSubstr("'nope'"));
  EXPECT_THAT(complaint([](Options& changed) { changed.predictor = "nope"; }), HasSubstr("'nope'"));
  EXPECT_THAT(complaint([](Options& changed) { changed.eviction = "nope"; }), HasSubstr("'nope'"));
  EXPECT_THAT(complaint([](Options& changed) { changed.local_bytes = 5; }),
              HasSubstr("local_budget_bytes is 5"));
  EXPECT_THAT(complaint([](Options& changed) { changed.piece_bytes = 1; }), HasSubstr("piece_bytes is 1"));
}

TEST(WorldTest, ExpertsComeFromAllTiersAndSomeAreGuessed) {
  Options options = small_options();
  options.requests = 20;
  options.local_bytes = 6 * Model(options.shape, 1).expert_bytes() + 4'096;
  options.kernel_us = 50;
  options.prefetch_probability = 0.05;
  const Model model(options.shape, options.seed);
  const auto outcome = World::create(options, model).value()->serve(draw_requests(options), kSilent);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->experts.slots, 6U);
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host})
    EXPECT_GT(outcome->experts.experts(moe::Phase::decode, tier), 0U) << to_string(tier);
  EXPECT_GT(outcome->experts.experts(moe::Phase::prefill, Tier::peer), 0U);
  EXPECT_GT(outcome->experts.guesses_used, 0U);
  EXPECT_EQ(outcome->server.redone, 0U);
}

/// Scores and tokens are what they are without it.
TEST(WorldTest, ARouterThatIsAskedOneLayerEarlyNamesWhatIsNeeded) {
  Options options = small_options();
  options.requests = 20;
  options.local_bytes = 6 * Model(options.shape, 1).expert_bytes() + 4'096;
  options.kernel_us = 50;
  options.predictor = "none";
  const Model model(options.shape, options.seed);
  const auto requests = draw_requests(options);
  const auto serve = [&](bool lookahead) {
    options.lookahead = lookahead;
    return World::create(options, model).value()->serve(requests, kSilent);
  };
  const auto without = serve(false), with = serve(true);
  ASSERT_TRUE(without);
  ASSERT_TRUE(with) << with.error().message;
  EXPECT_EQ(compare(with->answers, serve_alone(options, model, requests, kSilent), kHow), "");
  EXPECT_EQ(without->experts.guesses, 0U);
  EXPECT_GT(without->experts.absent_needed, 0U);
  EXPECT_GT(2 * with->experts.guesses_used, with->experts.guesses) << "precision";
  EXPECT_LT(with->experts.absent_needed, without->experts.absent_needed);
}

TEST(WorldTest, ServesUnderOwnersAndFaultsWhatItServesWithout) {
  Options options = small_options();
  options.bursty_owners = true;
  options.owner_period_us = 100;
  options.fault_rate = 0.01;
  const Model model(options.shape, options.seed);
  const auto requests = draw_requests(options);
  const auto first = World::create(options, model).value()->serve(requests, kSilent);
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_EQ(compare(first->answers, serve_alone(options, model, requests, kSilent), kHow), "");
  EXPECT_EQ(first->owners.refused, 0U);
  const auto second = World::create(options, model).value()->serve(requests, kSilent);
  ASSERT_TRUE(second);
  EXPECT_EQ(first->duration_ns, second->duration_ns) << "a seed is not repeatable";
}

}  // namespace
}  // namespace harvest::moe_server
