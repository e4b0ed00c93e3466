// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <set>

#include "backend/checked.hpp"
#include "backend/forwarding_backend.hpp"
#include "moe/life_witness.hpp"
#include "moe/world.hpp"

/// Corners in which an expert could be delivered with other bytes, twice, or never: each was found by
/// reading the code or by a random life.
namespace harvest::moe {
namespace {

using ::testing::HasSubstr;
using Experts = std::vector<std::uint32_t>;

void fail_copy_number(World& world, std::uint64_t number) {
  FaultPlan plan;
  plan.fail_copy.at = number;
  ASSERT_TRUE(world.backend->set_faults(plan));
}

/// Says what it thinks of the order of all work.
std::function<std::unique_ptr<Backend>(SimulatedBackend&)> checked() {
  return [](SimulatedBackend& backend) {
    return make_checked_backend(backend, {.on_violation = [](const std::string& what) {
                                  ADD_FAILURE() << "the contract of the backend: " << what;
                                }});
  };
}

// --- steps that share experts ---------------------------------------------------------------------------

TEST(SharedExperts, WhatFailedForOneStepComesAnewForTheOther) {
  World world;
  const StreamId other = world.add_stream();
  fail_copy_number(world, 1);
  auto one = world.experts->begin_layer(0, Experts{3}, world.stream);
  auto two = world.experts->begin_layer(0, Experts{3}, other);
  ASSERT_TRUE(one && two);
  ASSERT_NE(one->next(), nullptr);
  EXPECT_FALSE(world.experts->confirm());
  const ReadyExpert* const ready = two->next();
  ASSERT_NE(ready, nullptr);
  world.read(0, *ready, other);
  EXPECT_TRUE(world.experts->confirm());
  EXPECT_EQ(world.check_reads(), 0U) << "and confirm said that all arrived";
}

TEST(SharedExperts, WhatComesAnewWaitsForAnOpenStepThatReadsThere) {
  World world({.between = checked()});
  const StreamId other = world.add_stream();
  fail_copy_number(world, 1);
  auto one = world.experts->begin_layer(0, Experts{3}, world.stream);
  ASSERT_TRUE(one);
  const ReadyExpert* ready = one->next();
  ASSERT_NE(ready, nullptr);
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 5'000'000));
  world.read(0, *ready, world.stream);
  EXPECT_FALSE(world.experts->confirm());
  auto two = world.experts->begin_layer(0, Experts{3}, other);
  ASSERT_TRUE(two);
  const ReadyExpert again = *ready;
  world.read(0, again, world.stream);  // nobody told the first step that its expert comes anew
  ready = two->next();
  ASSERT_NE(ready, nullptr);
  world.read(0, *ready, other);
  EXPECT_TRUE(world.experts->end_layer(std::move(*one)));
  EXPECT_TRUE(world.experts->end_layer(std::move(*two)));
  EXPECT_TRUE(world.experts->confirm());
  EXPECT_EQ(world.check_reads(), 1U) << "the first step's alone";
}

/// A step waits for a slot for an expert that another step has brought meanwhile.
TEST(SharedExperts, AnExpertNeverLiesInTwoSlots) {
  World world({.slots = 3});
  auto before = world.experts->begin_layer(1, Experts{0}, world.stream);
  auto waits = world.experts->begin_layer(0, Experts{0, 1, 3}, world.stream);
  ASSERT_TRUE(before && waits);
  EXPECT_TRUE(world.experts->end_layer(std::move(*before)));
  world.step(0, {3});
  std::set<std::uint32_t> came;
  while (const ReadyExpert* ready = waits->next()) {
    world.read(0, *ready, world.stream);
    EXPECT_TRUE(came.insert(ready->expert).second);
  }
  EXPECT_TRUE(world.experts->end_layer(std::move(*waits)));
  EXPECT_EQ(came.size(), 3U);
  EXPECT_EQ(world.check_reads(), 0U);
  std::uint64_t here = 0;
  for (std::uint32_t layer = 0; layer < world.model.layers; ++layer)
    for (const std::uint32_t expert : world.all_experts())
      here += world.experts->locate(layer, expert) == Tier::local ? 1 : 0;
  EXPECT_EQ(here, world.experts->stats().slots_used);
}

// --- calls that do not go together ------------------------------------------------------------------------

TEST(ExpertCalls, ATableIsNotToBeHadBehindTheFirstExpert) {
  World world({.slots = 3});
  auto step = world.experts->begin_layer(0, Experts{0, 1, 2, 3, 4}, world.stream);
  ASSERT_TRUE(step);
  for (int i = 0; i < 3; ++i) ASSERT_NE(step->next(), nullptr);  // the first one's slot is another's by now
  const auto table = step->all();
  ASSERT_FALSE(table);
  EXPECT_EQ(table.error().code, ErrorCode::invalid_argument);
  EXPECT_THAT(table.error().message, HasSubstr("3 of 5"));
  EXPECT_NE(step->next(), nullptr) << "the step goes on";
}

TEST(ExpertCalls, ATableIsTheSameTheSecondTime) {
  World world;
  auto step = world.experts->begin_layer(0, Experts{4, 2}, world.stream);
  ASSERT_TRUE(step);
  const auto one = step->all();
  const auto two = step->all();
  ASSERT_TRUE(one && two);
  EXPECT_EQ(one->data(), two->data());
  EXPECT_EQ(one->size(), two->size());
  EXPECT_EQ(world.experts->stats().experts(Phase::decode, Tier::host), 2U) << "each is counted once";
}

TEST(ExpertCalls, TwoCachesOfOneKeySpaceAreRefused) {
  World world;
  auto second = *ExpertCache::create(*world.cache, world.experts->config());
  const Status added = second->add_expert(0, 0, world.weights_of(1, 1));
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().code, ErrorCode::invalid_argument);
  EXPECT_THAT(added.error().message, HasSubstr("key_space"));
  world.step(0, {0});
  EXPECT_EQ(world.check_reads(), 0U) << "the first cache's keys are its own";
}

/// The callback of the PeerCache runs inside of a call of ours, and calls us.
TEST(ExpertCalls, ACallbackMayCallTheCacheOfExperts) {
  const std::vector<std::byte> bytes(2ULL << 20);  // read until the caches have ended
  ExpertCache* experts = nullptr;
  std::uint64_t told = 0;
  World world({.layers = 1, .experts = 2, .with_peers = [&](PeerCacheConfig& config) {
                 config.peer_budget_bytes = 2ULL << 20;
                 config.on_event = [&](const CacheEvent& event) {
                   if (experts == nullptr || event.kind != CacheEvent::Kind::lost) return;
                   ++told;
                   EXPECT_NE(experts->locate(0, 0), Tier::local);
                   EXPECT_FALSE(experts->add_expert(0, 1, static_cast<const std::byte*>(nullptr)));
                 };
               }});
  ExpertCacheConfig config = world.experts->config();
  config.key_space = 77;
  auto second = *ExpertCache::create(*world.cache, config);
  experts = second.get();
  // A lossy object makes way for another one, in a call that tells nobody: the next one does.
  ASSERT_TRUE(world.cache->settle(world.backend->now_ns() + 1'000'000'000));
  ASSERT_TRUE(world.cache->reclaim(1, UINT64_MAX, world.backend->now_ns() + 1'000'000'000));
  world.pass(2'000'000'000);
  PutOptions lossy;
  lossy.backing = Backing::lossy;
  PutOptions on_host;
  on_host.backing = Backing::external_host;
  ASSERT_TRUE(world.cache->put(Key(5), bytes.data(), bytes.size(), lossy));
  ASSERT_TRUE(world.cache->put(Key(6), bytes.data(), bytes.size(), on_host));
  const Key wanted(6);
  static_cast<void>(world.cache->prefetch({&wanted, 1}, Tier::peer));
  ASSERT_EQ(told, 0U);
  EXPECT_TRUE(second->add_expert(0, 0, world.weights_of(0, 0)));
  EXPECT_EQ(told, 1U);
  experts = nullptr;
}

/// Says that a stream is being captured.
class Capturing : public test::ForwardingBackend {
 public:
  explicit Capturing(Backend& inner) : ForwardingBackend(inner) {}
  bool is_capturing(StreamId stream) const override { return stream == captured; }
  Result<EventId> record_event(StreamId stream) override {
    if (stream == captured) return fail(ErrorCode::not_supported, "captured");
    return inner_.record_event(stream);
  }
  StreamId captured = StreamId::none;
};

/// Its replays would read what lies in the slots then.
TEST(ExpertCalls, ACapturedStreamGetsNoStep) {
  Capturing* backend = nullptr;
  World world({.between = [&](SimulatedBackend& inner) {
    auto made = std::make_unique<Capturing>(inner);
    backend = made.get();
    return made;
  }});
  world.step(0, {3});
  auto open = world.experts->begin_layer(0, Experts{3}, world.stream);
  ASSERT_TRUE(open);
  backend->captured = world.stream;
  const auto refused = world.experts->begin_layer(0, Experts{3}, world.stream);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::not_supported);
  EXPECT_THAT(refused.error().message, HasSubstr("captured"));
  // A capture that begins in the middle of a step runs nothing, and is no reason to wait.
  EXPECT_NE(open->next(), nullptr);
  EXPECT_TRUE(world.experts->end_layer(std::move(*open)));
  backend->captured = StreamId::none;
  world.step(0, {3, 4});
  EXPECT_EQ(world.check_reads(), 0U);
}

// --- giving back
// --------------------------------------------------------------------------------------------

/// Copies to slots are under way and nobody calls the cache of experts again: they end, and so does the
/// reclaim.
TEST(ExpertReclaim, IsNotLateBecauseNobodyPolls) {
  World world({.slots = 2});
  world.pass(1'000'000'000);
  auto step = world.experts->begin_layer(3, Experts{6, 7}, world.stream);
  ASSERT_TRUE(step);
  const ReadyExpert* const ready = step->next();
  ASSERT_NE(ready, nullptr);
  ASSERT_EQ(ready->from, Tier::peer);
  world.read(3, *ready, world.stream);
  const auto report = world.cache->reclaim(1, UINT64_MAX, world.backend->now_ns() + 100'000'000);
  ASSERT_TRUE(report);
  EXPECT_TRUE(report->finished);
  EXPECT_EQ(report->late_bytes, 0U);
  EXPECT_EQ(world.backend->mapped_bytes(1), 0U);
  EXPECT_EQ(world.check_reads(), 0U);
}

/// And the memory does not go before they end.
TEST(ExpertReclaim, WaitsForCopiesUnderWay) {
  World world({.slots = 2, .between = checked()});
  world.pass(1'000'000'000);
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 20'000'000));
  world.step(3, {4, 5});  // whose slots are read for long
  auto step = world.experts->begin_layer(3, Experts{6, 7}, world.stream);
  ASSERT_TRUE(step);
  std::uint64_t from_peer = 0;
  while (const ReadyExpert* ready = step->next()) {
    from_peer += ready->from == Tier::peer ? 1 : 0;
    world.read(3, *ready, world.stream);
  }
  ASSERT_GT(from_peer, 0U);
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  const auto late = world.cache->reclaim(1, UINT64_MAX, world.backend->now_ns() + 1'000'000);
  ASSERT_TRUE(late);
  EXPECT_GT(late->late_bytes, 0U);
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_TRUE(world.experts->confirm());
  ASSERT_TRUE(world.cache->settle(world.backend->now_ns() + 1'000'000'000));
  EXPECT_EQ(world.backend->mapped_bytes(1), 0U);
}

// --- drivers that are short of something
// ----------------------------------------------------------------------

/// Refuses events on some streams.
class ShortOfEvents : public test::ForwardingBackend {
 public:
  explicit ShortOfEvents(Backend& inner) : ForwardingBackend(inner) {}
  Result<EventId> record_event(StreamId stream) override {
    if (refuses && refuses(stream)) return fail(ErrorCode::out_of_memory, "no event");
    return inner_.record_event(stream);
  }
  std::function<bool(StreamId)> refuses;
};

struct ShortOfEventsWorld {
  ShortOfEventsWorld()
      : world({.slots = 2, .between = [this](SimulatedBackend& inner) {
                 auto made = std::make_unique<ShortOfEvents>(inner);
                 backend = made.get();
                 return made;
               }}) {}
  ShortOfEvents* backend = nullptr;
  World world;
};

/// The end of a step has no event: the next content of its slots waits for its readers all the same.
TEST(ShortOfEvents, ReadersWithoutAnEventAreNotOverwritten) {
  ShortOfEventsWorld shortage;
  World& world = shortage.world;
  for (const std::uint32_t expert : {0U, 2U, 4U}) {
    auto step = world.experts->begin_layer(0, Experts{expert, expert + 1}, world.stream);
    ASSERT_TRUE(step);
    ASSERT_TRUE(world.backend->submit_kernel(world.stream, 8'000'000'000));
    while (const ReadyExpert* ready = step->next()) world.read(0, *ready, world.stream);
    shortage.backend->refuses = [&](StreamId stream) { return stream == world.stream; };
    EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
    shortage.backend->refuses = {};
  }
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_TRUE(world.experts->confirm());
}

/// Nor by way of another stream that read the slot later.
TEST(ShortOfEvents, TheReadersOfAnotherStreamStandForNoOthers) {
  ShortOfEventsWorld shortage;
  World& world = shortage.world;
  const StreamId other = world.add_stream();
  for (const StreamId stream : {world.stream, other}) {
    auto step = world.experts->begin_layer(0, Experts{0, 1}, stream);
    ASSERT_TRUE(step);
    ASSERT_TRUE(world.backend->submit_kernel(stream, stream == world.stream ? 8'000'000'000 : 1));
    while (const ReadyExpert* ready = step->next()) world.read(0, *ready, stream);
    shortage.backend->refuses = [&](StreamId of) { return of == world.stream; };
    EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
    shortage.backend->refuses = {};
  }
  world.step(0, {2, 3});
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_TRUE(world.experts->confirm());
}

/// And if there is still none, the slot is not refilled.
TEST(ShortOfEvents, ASlotWhoseReadersNobodyKnowsIsNotRefilled) {
  ShortOfEventsWorld shortage;
  World& world = shortage.world;
  auto step = world.experts->begin_layer(0, Experts{0, 1}, world.stream);
  ASSERT_TRUE(step);
  ASSERT_TRUE(world.backend->submit_kernel(world.stream, 8'000'000'000));
  while (const ReadyExpert* ready = step->next()) world.read(0, *ready, world.stream);
  shortage.backend->refuses = [&](StreamId stream) { return stream == world.stream; };
  EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  const auto refused = world.experts->begin_layer(0, Experts{2}, world.stream);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::unavailable);
  shortage.backend->refuses = {};
  world.step(0, {2});
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_TRUE(world.experts->confirm());
}

/// A copy whose end nobody can tell is not taken for one that arrived.
TEST(ShortOfEvents, ACopyWithoutAnEventDoesNotCount) {
  ShortOfEventsWorld shortage;
  World& world = shortage.world;
  shortage.backend->refuses = [&](StreamId stream) { return stream != world.stream; };
  const auto refused = world.experts->begin_layer(0, Experts{2}, world.stream);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::unavailable);
  EXPECT_THAT(refused.error().message, HasSubstr("no event"));
  shortage.backend->refuses = {};
  world.step(0, {2});
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_TRUE(world.experts->confirm());
}

/// Copies that take seconds, and no event behind them: the step is refused while they are under way.
void lose_sight_of_copies(ShortOfEventsWorld& shortage) {
  World& world = shortage.world;
  world.pass(1'000'000'000);  // copies to peers
  FaultPlan plan;
  plan.slow_copy.rate = 1;
  plan.slow_copy_factor = 1e7;
  ASSERT_TRUE(world.backend->set_faults(plan));
  shortage.backend->refuses = [&](StreamId stream) { return stream != world.stream; };
  EXPECT_FALSE(world.experts->begin_layer(0, Experts{2}, world.stream));
  shortage.backend->refuses = {};
  ASSERT_TRUE(world.backend->set_faults({}));
}

/// What comes next into the slot waits for them, on whatever lane it comes.
TEST(ShortOfEvents, CopiesOutOfSightAreNotWrittenOver) {
  ShortOfEventsWorld shortage;
  World& world = shortage.world;
  lose_sight_of_copies(shortage);
  for (const std::uint32_t expert : {4U, 6U}) world.step(0, {expert, expert + 1});
  EXPECT_EQ(world.check_reads(), 0U);
  EXPECT_TRUE(world.experts->confirm());
}

/// And the peer's memory does not go before they have read it. (The simulation would stop the process.)
TEST(ShortOfEvents, CopiesOutOfSightHoldWhatTheyRead) {
  ShortOfEventsWorld shortage;
  World& world = shortage.world;
  lose_sight_of_copies(shortage);
  const auto late = world.cache->reclaim(1, UINT64_MAX, world.backend->now_ns() + 1'000'000);
  ASSERT_TRUE(late);
  EXPECT_GT(late->late_bytes, 0U);
  world.pass(60'000'000'000);
  EXPECT_EQ(world.cache->stats().reclaims_late, 1U);
  EXPECT_GE(world.cache->stats().reclaim_returned_bytes, late->returned_bytes + late->late_bytes);
}

/// However many steps come and go, the events that are kept are bounded.
TEST(ExpertSteps, LeaveNoEventsBehind) {
  LifeWitness* witness = nullptr;
  World world({.slots = 6, .between = [&](SimulatedBackend& inner) {
                 auto made = std::make_unique<LifeWitness>(inner);
                 witness = made.get();
                 return made;
               }});
  const StreamId other = world.add_stream();
  world.pass(1'000'000'000);  // copies to peers, each with an event
  std::size_t most = 0;
  for (std::uint32_t i = 0; i < 400; ++i) {
    auto step =
        world.experts->begin_layer(i % 4, Experts{i % 8, i % 7, i % 5}, i % 3 == 0 ? other : world.stream);
    ASSERT_TRUE(step);
    while (step->next() != nullptr) {
    }
    EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
    if (i % 16 != 0) continue;
    world.pass(2'000'000);
    most = std::max(most, witness->live_events());
  }
  EXPECT_LE(most, 60U);
}

// --- what the host waits for
// ------------------------------------------------------------------------------------

TEST(ExpertWaits, EndingStepsOnManyStreamsWaitsForNone) {
  World world({.slots = 2});
  world.step(0, {0, 1});
  world.check_reads();
  const TimeNs before = world.backend->now_ns();
  std::vector<StreamId> streams;
  for (int i = 0; i < 5; ++i) {
    streams.push_back(world.add_stream());
    auto step = world.experts->begin_layer(0, Experts{0, 1}, streams.back());
    ASSERT_TRUE(step);
    ASSERT_TRUE(world.backend->submit_kernel(streams.back(), 5'000'000 * (5 - i)));
    while (const ReadyExpert* ready = step->next()) world.read(0, *ready, streams.back());
    EXPECT_TRUE(world.experts->end_layer(std::move(*step)));
  }
  EXPECT_LT(world.backend->now_ns() - before, 5'000'000) << "somebody waited for a kernel";
  // The next content waits for all five.
  world.step(0, {2, 3});
  EXPECT_EQ(world.check_reads(), 0U);
}

TEST(ExpertWaits, ALostConsumerIsAnErrorAndNoHang) {
  World world;
  world.step(0, {0, 1});
  world.check_reads();
  ASSERT_TRUE(world.backend->lose_device(0));
  const auto refused = world.experts->begin_layer(1, Experts{0}, world.stream);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::unavailable);
  world.experts->poll();
  static_cast<void>(world.experts->confirm());
}

TEST(ExpertWaits, ACacheWithoutExpertsEndsAtOnce) {
  World world;
  const Lease held = world.cache->acquire(Key(world.experts->config().key_space, 0), world.stream);
  ASSERT_TRUE(held);
  ASSERT_TRUE(world.cache->put(Key(5), world.weights, 1000));
  const Lease other = world.cache->acquire(Key(5), world.stream);
  ASSERT_TRUE(other);
  ASSERT_TRUE(world.cache->erase(Key(5)));  // goes when its lease does
  ExpertCacheConfig config = world.experts->config();
  config.key_space = 77;
  auto empty = *ExpertCache::create(*world.cache, config);
  const TimeNs before = world.backend->now_ns();
  empty.reset();
  EXPECT_LT(world.backend->now_ns() - before, 1'000'000'000) << "it waited for what is not its own";
}

}  // namespace
}  // namespace harvest::moe
