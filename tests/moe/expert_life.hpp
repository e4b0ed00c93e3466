// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <harvest/moe/expert_cache.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/random.hpp"
#include "moe/life_plan.hpp"
#include "moe/life_witness.hpp"

namespace harvest::moe {

/// Something that must hold does not.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Arguments>
void require(bool holds, fmt::format_string<Arguments...> message, Arguments&&... arguments) {
  if (!holds) [[unlikely]]
    throw Violation(fmt::format(message, std::forward<Arguments>(arguments)...));
}

/// What a life got to see, so that a campaign can tell that it went everywhere.
struct LifeCoverage {
  std::uint64_t operations = 0;
  std::uint64_t steps = 0;
  std::uint64_t refused_steps = 0;
  std::uint64_t waves = 0;  ///< steps of more experts than they got slots at first
  std::array<std::uint64_t, kTiers> delivered{};
  std::uint64_t reads = 0;
  std::uint64_t wrong_reads = 0;  ///< whose failure `confirm` told
  std::uint64_t failures_told = 0;
  std::uint64_t guesses = 0;
  std::uint64_t guesses_used = 0;
  std::uint64_t rebalanced_bytes = 0;
  std::uint64_t reclaims = 0;
  TimeNs virtual_ns = 0;
};

struct LifeResult {
  std::string wrong;  ///< what does not hold, and in which operation; empty: all held
  std::uint64_t hash = 0;
  LifeCoverage coverage;
};

/// One random life of an `ExpertCache` on a `PeerCache` in virtual time: layer steps on several streams,
/// guesses, owners that reclaim, and everything that goes wrong. What a step delivers is read on its stream,
/// as a kernel would.
class ExpertLife {
 public:
  ExpertLife(std::uint64_t seed, std::uint32_t operations);
  ~ExpertLife();
  ExpertLife(const ExpertLife&) = delete;
  ExpertLife& operator=(const ExpertLife&) = delete;

  /// Lives it.
  [[nodiscard]] LifeResult live();

 private:
  struct OpenStep {
    LayerStep step;
    std::uint32_t layer = 0;
    Phase phase = Phase::decode;
    StreamId stream = StreamId::none;
    std::set<std::uint32_t> wanted;
    std::set<std::uint32_t> came;
    std::vector<ReadyExpert> held;  ///< whose slots are the step's for sure
    std::vector<std::size_t> held_since;
    bool by_table = false;
    bool over = false;  ///< `next` said so
  };
  /// Bytes on their way into a buffer of the life's.
  struct Read {
    std::uint32_t layer = 0;
    std::uint32_t expert = 0;
    std::size_t period = 0;  ///< the call of `confirm` that answers for it
    std::byte* buffer = nullptr;
    EventId event = EventId::none;
  };
  struct Period {
    bool confirmed = false;
    bool failed = false;      ///< `confirm` said so
    bool wrong_read = false;  ///< seen before `confirm` was asked
  };

  void build_machine();
  void build_caches();
  void perform(LifeOperation operation);

  // --- expert_life_steps.cpp
  void begin_step();
  void advance_step();
  void end_step();
  void whole_step();
  [[nodiscard]] std::vector<std::uint32_t> draw_experts(std::uint32_t layer, Phase phase);
  OpenStep* open_step(std::uint32_t layer, std::vector<std::uint32_t> experts, Phase phase, StreamId stream);
  bool take_next(OpenStep& open);
  void take_table(OpenStep& open);
  void take_delivery(OpenStep& open, const ReadyExpert& ready);
  void close_step(std::size_t number);
  void close_all();
  void read_again();
  void read(std::uint32_t layer, const ReadyExpert& ready, std::size_t period, StreamId stream);
  void check_reads(bool wait);
  void judge(const Read& read);
  void confirm();
  [[nodiscard]] bool may_refuse() const;

  // --- expert_life_world.cpp
  void prefetch();
  void cancel();
  void reclaim();
  void tenant();
  void pass_time();
  void kernel(StreamId stream);
  void change_stream();
  void change_faults();
  void break_link();
  void lose_peer();
  void look();
  void wrong_call();
  void calm();
  void check_statistics();
  void check_all();
  void end();

  void observe(std::uint64_t value);
  [[nodiscard]] StreamId random_stream() { return streams_[random_.below(streams_.size())]; }
  [[nodiscard]] std::byte* weights_of(std::uint32_t layer, std::uint32_t expert) const;
  [[nodiscard]] std::uint64_t failed_copies() const { return simulated_->counters().copy_batches_failed; }

  const std::uint64_t seed_;
  const std::uint32_t operations_;
  const LifePlan plan_;
  testing::Random random_;
  std::unique_ptr<SimulatedBackend> simulated_;
  std::unique_ptr<LifeWitness> witness_;
  std::unique_ptr<Backend> checked_;  ///< in some lives
  Backend* backend_ = nullptr;        ///< that the caches and the life use
  std::string breach_;                ///< of the backend's contract
  std::byte* weights_ = nullptr;
  std::uint64_t expert_stride_ = 0;
  std::byte* buffers_ = nullptr;
  std::vector<std::byte*> free_buffers_;
  std::vector<StreamId> streams_;
  std::vector<std::uint32_t> next_layer_;  ///< by stream
  std::deque<Read> reads_;
  std::vector<Period> periods_;

  std::unique_ptr<PeerCache> peer_cache_;
  std::unique_ptr<ExpertCache> experts_;
  const std::byte* first_slot_ = nullptr;
  std::uint64_t slot_stride_ = 0;
  std::size_t streams_before_ = 0;
  std::size_t segments_before_ = 0;
  std::vector<OpenStep> open_;
  std::vector<PrefetchId> prefetches_;

  FaultPlan faults_;
  std::set<DeviceId> lost_;
  std::uint64_t failures_before_period_ = 0;

  std::vector<std::array<LayerStats, kPhases>> counted_;
  std::uint64_t begun_ = 0;
  std::uint64_t hash_ = 0;
  LifeCoverage coverage_;
};

/// Lives a seed twice and compares all that could be observed (I11).
[[nodiscard]] LifeResult live_twice(std::uint64_t seed, std::uint32_t operations);

}  // namespace harvest::moe
