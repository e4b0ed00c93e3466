// SPDX-License-Identifier: Apache-2.0
#include <harvest/moe/expert_cache.hpp>
#include <harvest/runner.hpp>

#include <array>
#include <atomic>
#include <memory>
#include <set>
#include <thread>

#include "core/random.hpp"
#include "threads/threads_world.hpp"

/// Threads that compute layers on streams of their own, beside one that polls and guesses, and owners that
/// reclaim. The streams are threads that really copy, so the thread sanitizer sees an order that is missing.
namespace harvest::moe {
namespace {

using testing::KiB;
using testing::kSlowdown;
using testing::MiB;
using testing::Random;

constexpr std::uint32_t kLayers = 4;
constexpr std::uint32_t kExperts = 8;
constexpr std::uint32_t kSlots = 14;
constexpr std::uint64_t kExpertBytes = 80 * KiB;
constexpr int kWorkers = 4;
constexpr int kPasses = 120 / kSlowdown;

ModelDescription small_model() {
  ModelDescription model;
  model.name = "threads";
  model.layers = kLayers;
  model.experts = kExperts;
  model.top_k = 2;
  model.tensors = {{"up", 48 * KiB}, {"down", 32 * KiB}};
  return model;
}

class ExpertThreadsTest : public ::testing::Test {
 protected:
  ExpertThreadsTest() : weights_(kLayers * kExperts * kExpertBytes / sizeof(std::uint64_t)) {
    SimulationOptions simulation;
    simulation.time = SimulatedTime::real_time;
    backend_ = std::move(*make_simulated_backend(*machine_from_preset("dgx-h100"), simulation));
    PeerCacheConfig peers = testing::threads_config();
    peers.pressure.regrow_delay_ns = 1'000'000;
    peers.on_event = [this](const CacheEvent& event) {
      // Whoever polls the PeerCache calls the cache of experts.
      if (event.kind == CacheEvent::Kind::revoked && experts_ != nullptr)
        revoked_ += experts_->locate(0, 0) == Tier::none ? 0 : 1;
    };
    cache_ = std::move(*PeerCache::create(*backend_, peers));
    ExpertCacheConfig config;
    config.model = small_model();
    config.local_budget_bytes = kSlots * kExpertBytes;
    config.piece_bytes = 64 * KiB;
    config.predictor = "next_layer";
    config.prefetch_probability = 0.2;
    experts_ = std::move(*ExpertCache::create(*cache_, config));
    for (std::size_t i = 0; i < weights_.size(); ++i) weights_[i] = i * 0x9E3779B97F4A7C15ULL;
    for (std::uint32_t layer = 0; layer < kLayers; ++layer)
      for (std::uint32_t expert = 0; expert < kExperts; ++expert)
        EXPECT_TRUE(experts_->add_expert(layer, expert, weights_of(layer, expert)));
  }

  ~ExpertThreadsTest() override {
    experts_.reset();
    EXPECT_EQ(cache_->stats().objects, 0U);
    cache_.reset();
    for (const DeviceInfo& device : backend_->devices())
      EXPECT_EQ(backend_->mapped_bytes(device.id), 0U) << "device " << device.id << " still holds our memory";
  }

  [[nodiscard]] const std::byte* weights_of(std::uint32_t layer, std::uint32_t expert) const {
    return reinterpret_cast<const std::byte*>(weights_.data()) +  // NOLINT: bytes of an object
           (layer * kExperts + expert) * kExpertBytes;
  }

  /// One that computes: a stream, and room for what the experts of a step hold.
  struct Worker {
    explicit Worker(SimulatedBackend& machine) : backend(machine), host(kExperts * kExpertBytes) {
      stream = *backend.create_stream(0);
      device = *backend.map_segment(0, 2 * MiB, {});
    }
    ~Worker() {
      EXPECT_TRUE(backend.destroy_stream(stream));
      EXPECT_TRUE(backend.unmap_segment(device));
    }
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;
    SimulatedBackend& backend;
    std::vector<std::byte> host;
    StreamId stream = StreamId::none;
    std::byte* device = nullptr;
  };

  /// Reads the expert where it lies, on the worker's stream; it arrives with what `compare` waits for.
  void read(Worker& worker, std::size_t place, const ReadyExpert& ready) {
    const Copy out{worker.device + place * kExpertBytes, ready.address, kExpertBytes};
    EXPECT_TRUE(backend_->copy(worker.stream, {0, 0}, {&out, 1}));
  }

  void compare(Worker& worker, std::uint32_t layer, const std::vector<std::uint32_t>& came) {
    const Copy down{worker.host.data(), worker.device, came.size() * kExpertBytes};
    EXPECT_TRUE(backend_->copy(worker.stream, {0, kHost}, {&down, 1}));
    const EventId event = *backend_->record_event(worker.stream);
    EXPECT_EQ(backend_->wait_event(event, kNever), EventState::complete);
    backend_->release_event(event);
    for (std::size_t i = 0; i < came.size(); ++i)
      ASSERT_EQ(std::memcmp(worker.host.data() + i * kExpertBytes, weights_of(layer, came[i]), kExpertBytes),
                0)
          << "I2: expert " << came[i] << " of layer " << layer;
  }

  void step(Worker& worker, Random& random, std::uint32_t layer) {
    std::set<std::uint32_t> wanted;
    const std::uint64_t most = random.chance(0.1) ? kExperts : 3;
    for (std::uint64_t i = random.between(1, most); i > 0; --i)
      wanted.insert(static_cast<std::uint32_t>(random.below(kExperts)));
    const std::vector<std::uint32_t> experts(wanted.begin(), wanted.end());
    auto begun = experts_->begin_layer(layer, experts, worker.stream,
                                       most == kExperts ? Phase::prefill : Phase::decode);
    if (!begun) {
      EXPECT_EQ(begun.error().code, ErrorCode::busy) << begun.error().message;
      return;
    }
    std::vector<std::uint32_t> came;
    while (const ReadyExpert* const ready = begun->next()) {
      EXPECT_EQ(ready->address, experts_->slot_address(ready->slot));
      read(worker, came.size(), *ready);
      came.push_back(ready->expert);
    }
    const Status ended = experts_->end_layer(std::move(*begun));
    if (ended) {
      EXPECT_EQ(std::set(came.begin(), came.end()), wanted);
    } else {
      EXPECT_EQ(ended.error().code, ErrorCode::busy) << ended.error().message;
    }
    delivered_ += came.size();
    compare(worker, layer, came);
  }

  void compute(std::uint64_t seed) {
    Worker worker(*backend_);
    Random random(seed, 11);
    for (int pass = 0; pass < kPasses && !HasFailure(); ++pass) {
      for (std::uint32_t layer = 0; layer < kLayers; ++layer) step(worker, random, layer);
      // Nothing fails here, so that it may be asked by each for all.
      const Status confirmed = experts_->confirm();
      EXPECT_TRUE(confirmed) << (confirmed ? "" : confirmed.error().message);
    }
  }

  void look_ahead(const std::atomic<bool>& stop) {
    Random random(1, 12);
    while (!stop) {
      experts_->poll();
      const std::array<std::uint32_t, 2> guesses{static_cast<std::uint32_t>(random.below(kExperts)),
                                                 static_cast<std::uint32_t>(random.below(kExperts))};
      const auto id = experts_->prefetch(static_cast<std::uint32_t>(random.below(kLayers)), guesses, 0.6,
                                         backend_->now_ns() + 2'000'000);
      EXPECT_TRUE(id);
      if (random.chance(0.3)) static_cast<void>(experts_->cancel(*id));
      EXPECT_LE(experts_->stats().slots_used, kSlots);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }

  void own(const std::atomic<bool>& stop) {
    for (std::uint64_t i = 0; !stop; ++i) {
      const auto peer = static_cast<DeviceId>(1 + i % 2);
      EXPECT_TRUE(cache_->reclaim(peer, 2 * MiB, backend_->now_ns() + 5'000'000));
      std::this_thread::sleep_for(std::chrono::milliseconds(4));
    }
  }

  std::vector<std::uint64_t> weights_;
  std::unique_ptr<SimulatedBackend> backend_;
  std::unique_ptr<PeerCache> cache_;
  std::unique_ptr<ExpertCache> experts_;
  std::atomic<std::uint64_t> delivered_{0};
  std::atomic<std::uint64_t> revoked_{0};
};

TEST_F(ExpertThreadsTest, EveryExpertIsWholeWhileOwnersReclaim) {
  std::atomic<bool> stop{false};
  {
    const Runner runner(*cache_, 200'000);
    std::thread poller([&] { look_ahead(stop); });
    std::thread owner([&] { own(stop); });
    std::vector<std::thread> workers;
    for (std::uint64_t seed = 1; seed <= kWorkers; ++seed)
      workers.emplace_back([this, seed] { compute(seed); });
    for (std::thread& worker : workers) worker.join();
    stop = true;
    poller.join();
    owner.join();
  }
  const ExpertCacheStats stats = experts_->stats();
  std::uint64_t counted = 0;
  for (const Tier tier : {Tier::local, Tier::peer, Tier::host})
    counted += stats.experts(Phase::decode, tier) + stats.experts(Phase::prefill, tier);
  EXPECT_EQ(counted, delivered_.load());
  EXPECT_GT(delivered_.load(), static_cast<std::uint64_t>(kWorkers * kPasses * kLayers) / 2);
  EXPECT_GT(revoked_.load(), 0U) << "no owner was seen";
  EXPECT_EQ(stats.failed_arrivals, 0U);
  EXPECT_LE(stats.guesses_used, stats.guesses);
  // Who wants the memory now gets it.
  for (const DeviceId peer : cache_->config().peers) {
    const auto report = cache_->reclaim(peer, UINT64_MAX, backend_->now_ns() + 60'000'000'000);
    ASSERT_TRUE(report);
    EXPECT_TRUE(report->finished);
    EXPECT_EQ(backend_->mapped_bytes(peer), 0U) << "I5";
  }
}

/// All know the same few experts, and take, share and let go of the same slots.
TEST_F(ExpertThreadsTest, StepsThatShareTheirExpertsEachGetThemWhole) {
  std::vector<std::thread> workers;
  for (std::uint64_t seed = 1; seed <= kWorkers; ++seed)
    workers.emplace_back([this, seed] {
      Worker worker(*backend_);
      Random random(seed, 13);
      for (int i = 0; i < kPasses * 4 && !HasFailure(); ++i) step(worker, random, 0);
    });
  for (std::thread& worker : workers) worker.join();
  EXPECT_TRUE(experts_->confirm());
}

}  // namespace
}  // namespace harvest::moe
