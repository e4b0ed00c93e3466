// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/model.hpp>
#include <harvest/moe/predictor.hpp>
#include <harvest/peer_cache.hpp>
#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Expert weights that do not fit on the GPU. All of them lie in the caller's host memory; hot ones are in
/// local slots, the next on peers. A layer step names its experts at once and gets them in the order in which
/// they become ready:
///
///     auto experts = moe::ExpertCache::create(*peer_cache, {.model = model, .local_budget_bytes = bytes});
///     for (...) (*experts)->add_expert(layer, expert, weights_of(layer, expert));
///
///     auto step = (*experts)->begin_layer(layer, routed, stream);  // after the router
///     while (const moe::ReadyExpert* expert = step->next())        // `stream` waits for its bytes
///       launch_expert(expert->expert, expert->address, stream);
///     (*experts)->end_layer(std::move(*step));    // slots may be refilled behind the stream
///     ...
///     if (!(*experts)->confirm()) recompute();    // once a token, before it is shown
namespace harvest::moe {

/// What an eviction policy may know of an expert in a slot. Time is counted in decode's layer steps; a pass
/// over the model is `layers` of them.
struct SlotFacts {
  std::uint32_t layers = 0;            ///< of the model
  std::uint64_t step = 0;              ///< at which its layer came last; it comes again `layers` later
  std::uint64_t last_use_step = 0;     ///< of this expert
  std::uint32_t passes_since_use = 0;  ///< how often its layer came since, without it
  double frequency = 0;                ///< share of its layer's recent steps that needed it, 0 to 1
};

/// The worth of an expert in a slot: of all, the least goes first. It is asked each time that the expert's
/// layer has passed and holds until the layer comes again, so it must not tell time from anything but the
/// facts. It is called under the cache's lock: it calls nothing of the cache, throws nothing, and answers a
/// number above -1e15.
using SlotValue = std::function<double(const SlotFacts&)>;

/// Names of values, the default first:
/// - `next_use`: when it is expected to be needed again, from its layer's turn and its odds;
/// - `lfru`: frequency over age; `lfu`: frequency; `lru`: last use;
/// - `least_stale`: its layer's turn, then its last use.
[[nodiscard]] std::span<const std::string_view> expert_eviction_names();
/// Errors: not_found, with the known names in the message.
[[nodiscard]] Result<SlotValue> make_slot_value(std::string_view name);

struct ExpertCacheConfig {
  ModelDescription model;
  /// Of the consumer's memory for slots, of `ModelDescription::slot_bytes` each; at least two.
  std::uint64_t local_budget_bytes = 0;
  /// On peers an expert lies in pieces of at most this, which several copies bring at once. 0: an eighth of
  /// an expert, from 4 to 16 MiB; `config()` tells.
  std::uint64_t piece_bytes = 0;
  /// How many of an expert's tensors, from the first, `LayerStep::next_head` waits for: those of its first
  /// kernel. They travel apart from the others, at the price of an event more for each stream of copies.
  /// 0: all of them.
  std::uint32_t head_tensors = 0;
  /// Upper half of all keys; two caches on one PeerCache differ here.
  std::uint64_t key_space = 0x4578'7065'7274'0000;

  std::string eviction{};             ///< one of `expert_eviction_names()`; empty: the first
  SlotValue slot_value{};             ///< the caller's own, instead
  std::string predictor{};            ///< one of `predictor_names()`; empty: the first
  double prefetch_probability = 0.5;  ///< guesses below are not followed
  std::uint32_t prefetch_layers = 1;  ///< how far ahead guesses are asked for
  /// How long a wire may be busy with guesses that no step waits for, and so for how long a wrong one may
  /// hold up the next step. 0: for so long that wrong guesses were seldom still on their way when a step
  /// began lately.
  TimeNs prefetch_window_ns = 0;

  /// What the rebalancer may move to peers; 0: nothing moves by itself.
  std::uint64_t rebalance_bytes_per_s = 8ULL << 30;
};

/// One expert of a layer step.
struct ReadyExpert {
  std::uint32_t expert = 0;
  std::uint32_t slot = 0;              ///< its address is `slot_address(slot)`
  const std::byte* address = nullptr;  ///< tensor i lies at `model.tensor_offset(i)` from here
  Tier from = Tier::none;              ///< `local`: it was here; else the slowest tier that a part was in
};

class ExpertCache;

/// The experts of one layer, from `begin_layer` to `end_layer`. Move-only, for one thread; ends when it is
/// destroyed.
class LayerStep {
 public:
  LayerStep() = default;
  LayerStep(LayerStep&& other) noexcept;
  LayerStep& operator=(LayerStep&& other) noexcept;
  ~LayerStep();

  /// How many there are, each once.
  [[nodiscard]] std::size_t size() const;
  /// How many are here without waiting. They come first.
  [[nodiscard]] std::size_t resident() const;

  /// The next expert, in the order in which they become ready; null behind the last, or if it cannot be had
  /// (then `end_layer` says why). Work given to the step's stream from now on runs after its bytes are there.
  /// All work that reads the expert before must have been given to the stream: where a step has more experts
  /// than there are slots, that one's slot is refilled behind it. The answer is good until the next call.
  const ReadyExpert* next();

  /// As `next`, for experts that are computed by more than one kernel: work given to the stream from now on
  /// runs when the first `head_tensors` tensors are there, and what is given behind `rest` when all are. So
  /// the first kernel of the expert that comes last runs while the others' tensors are on their way.
  const ReadyExpert* next_head();
  /// Orders the stream behind the other tensors of the expert that `next_head` answered last; to be called
  /// before work that reads them is given, and before the next expert is asked for.
  void rest();

  /// All of them, for a kernel that takes a table; instead of `next`. Orders the stream behind the last
  /// arrival. Errors: out_of_memory (more experts than slots; `next` can still be called), invalid_argument
  /// (`next` was called), and those of `end_layer`.
  Result<std::span<const ReadyExpert>> all();

 private:
  friend class ExpertCache;
  LayerStep(ExpertCache* cache, std::uint32_t step) : cache_(cache), step_(step) {}
  ExpertCache* cache_ = nullptr;
  std::uint32_t step_ = 0;
};

/// Names a prefetch that was asked for.
enum class PrefetchId : std::uint64_t { none = 0 };

struct LayerStats {
  std::array<std::uint64_t, kTiers> experts{};  ///< delivered, by where they were; `local`: no byte moved
};

/// Counters since the cache was made.
struct ExpertCacheStats {
  std::uint64_t steps = 0;
  std::vector<std::array<LayerStats, kPhases>> layers;   ///< by layer and phase
  std::array<std::uint64_t, kTiers> demand_bytes{};      ///< moved because a step waited, by where they were
  std::array<std::uint64_t, kTiers> prefetched_bytes{};  ///< moved because of a guess
  std::uint64_t guesses = 0;                             ///< experts whose prefetch was begun
  std::uint64_t guesses_used = 0;  ///< of those, needed before they were evicted: precision is used / guesses
  std::uint64_t absent_needed = 0;  ///< experts that were not here when their guess could be made: recall is
                                    ///< guesses_used / (guesses_used + absent_needed)
  std::uint64_t wasted_bytes = 0;   ///< prefetched, and evicted unused
  std::uint64_t rebalanced_bytes = 0;  ///< asked onto peers by the rebalancer
  std::uint64_t failed_arrivals = 0;   ///< experts whose bytes failed in flight; `confirm` told
  /// Of the time in which experts that a step had asked for were on their way: in that the step's stream
  /// stood still for them, and in that it computed (or had no work). The GPU's clock is not read and nothing
  /// waits: an event tells that something has ended, not when. So both are what is certain as of the calls
  /// that looked, and what a stream did between two of them while it came to a wait or went on is neither's,
  /// but `unseen`: `exposed` is too low by at most that. Every call looks; `poll` is the cheapest, and who
  /// calls it each 20 us while they wait for the router anyway knows these times to 20 us a wait. Steps on
  /// several streams add up.
  TimeNs exposed_stall_ns = 0;
  TimeNs hidden_stall_ns = 0;
  TimeNs unseen_stall_ns = 0;
  std::uint64_t slots = 0;
  std::uint64_t slots_used = 0;
  std::uint64_t experts_on_peers = 0;  ///< as last looked

  [[nodiscard]] std::uint64_t experts(Phase phase, Tier tier) const;  ///< over all layers
};

/// All functions may be called from any thread; they take one lock, and `begin_layer` for experts that are
/// here costs less than a microsecond, and the predictor's time, and allocates nothing. No function waits for
/// the GPU unless it says so. `PeerCacheConfig::on_event` may call them: of the PeerCache's functions those
/// that call back, or that may map memory, are called without that lock.
///
/// The addresses of slots never change while the cache lives, so a captured graph may keep a table of them;
/// what lies in a slot belongs to a step only between its `begin_layer` and `end_layer`.
class ExpertCache {
 public:
  /// Takes the slots' memory from `cache`'s consumer. `cache` and the weights outlive the answer. A `cache`
  /// with a local budget keeps second copies of experts beside the slots: give it none.
  /// Errors: invalid_argument (names the field, value and limit), not_found (a name), out_of_memory,
  /// unavailable.
  [[nodiscard]] static Result<std::unique_ptr<ExpertCache>> create(PeerCache& cache,
                                                                   ExpertCacheConfig config);

  /// Waits for its GPU work, and, by `PeerCache::settle` for up to a minute, until nothing of the PeerCache's
  /// reads the weights. Requires: no step is open.
  ~ExpertCache();
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  // --- weights -----------------------------------------------------------------------------------

  /// Pins a range of the caller's memory for as long as the cache lives, a mapped file for example: copies
  /// from memory that is not pinned work, slower. Errors: those of `Backend::register_host`.
  Status pin_weights(std::byte* address, std::uint64_t bytes);

  /// Makes an expert known by the addresses of its tensors in host memory, in the description's order. They
  /// are read in place, for as long as the cache lives. Errors: invalid_argument (no such layer or expert, it
  /// is known already, a null tensor, another number of tensors, a `key_space` in which the PeerCache has it
  /// already), out_of_memory (of the PeerCache's objects).
  Status add_expert(std::uint32_t layer, std::uint32_t expert, std::span<const std::byte* const> tensors);
  /// The same where the tensors lie one behind the other as in a slot (`ModelDescription::tensor_offset`).
  Status add_expert(std::uint32_t layer, std::uint32_t expert, const std::byte* weights);

  // --- steps -------------------------------------------------------------------------------------

  /// Decides at once for all experts of a layer step: which are here, which come, what goes for them; and
  /// begins the copies. `experts` may repeat; each is delivered once. Nothing a step needs is evicted for it
  /// or for a prefetch. Prefill's experts are the first to go afterwards, and teach nothing: a layer that
  /// computes both begins a step for each, with the experts that both need in decode's. The stream is one of
  /// the consumer's that is not being captured, and may be destroyed when the step has ended. Events are
  /// recorded on it: an event of the caller's tells of failed work since the last of those. Errors:
  /// invalid_argument (layer, expert, stream), not_found (an expert that was not added), busy (too many steps
  /// are open, or all slots are in open steps), not_supported (the stream is being captured), and those of
  /// `PeerCache::fetch`.
  [[nodiscard]] Result<LayerStep> begin_layer(std::uint32_t layer, std::span<const std::uint32_t> experts,
                                              StreamId stream, Phase phase = Phase::decode);

  /// Work on the step's stream up to here may read the slots, later work may not. Errors: of copies that
  /// could not be begun: then `next` did not deliver all.
  Status end_layer(LayerStep step);

  /// Waits until all that steps were given so far has arrived, and says whether it did: for all steps on all
  /// streams, so where several threads compute, one calls it and tells the others. Errors: copy_failed, which
  /// names an expert: what was computed since the last call is worth nothing, and steps that are open are
  /// ended and begun again; the experts concerned come anew.
  Status confirm();

  // --- ahead of time -----------------------------------------------------------------------------

  /// Asks for experts before they are needed: most likely first, behind all demand, until `deadline_ns` on
  /// the backend's clock. Takes only slots whose content is worth less. Errors: invalid_argument, not_found.
  Result<PrefetchId> prefetch(std::uint32_t layer, std::span<const std::uint32_t> experts, double probability,
                              TimeNs deadline_ns = kNever);
  /// What has not begun does not begin. Errors: not_found (done, cancelled, or never asked for).
  Status cancel(PrefetchId id);
  /// The caller's own, instead of a named one.
  void set_predictor(std::unique_ptr<Predictor> predictor);

  /// Begins prefetches that are due where steps pause, looks whether steps' streams stand still, and, at most
  /// each 2 ms, moves experts between peers and host. `begin_layer` and `end_layer` do the former two; call
  /// this at least once a token, beside `PeerCache::poll`, or while the host waits for the GPU. Bounded.
  void poll();

  // --- looking in --------------------------------------------------------------------------------

  [[nodiscard]] std::uint32_t slots() const;
  [[nodiscard]] const std::byte* slot_address(std::uint32_t slot) const;
  /// Where a step would find the expert now. No promise.
  [[nodiscard]] Tier locate(std::uint32_t layer, std::uint32_t expert) const;
  [[nodiscard]] const ExpertCacheConfig& config() const;
  [[nodiscard]] ExpertCacheStats stats() const;

 private:
  friend class LayerStep;
  class Impl;
  explicit ExpertCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace harvest::moe
