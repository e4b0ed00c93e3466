// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/moe/expert_cache.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/annotated_mutex.hpp"
#include "moe/lanes.hpp"
#include "moe/slots.hpp"
#include "moe/stalls.hpp"

/// What is behind `ExpertCache`. Its parts, by file:
///   expert_cache.cpp  how it begins and ends; statistics
///   weights.cpp       how an expert becomes objects of the PeerCache
///   layer_step.cpp    begin, next, end, confirm: demand
///   arrival.cpp       how experts come: which wire, which lane, in which order
///   stalls.cpp        how long streams stand still for them
///   prefetch.cpp      guesses
///   rebalance.cpp     what moves between peers and host
namespace harvest::moe {

/// Pieces begin at multiples of this in a slot.
inline constexpr std::uint64_t kPieceAlignment = 256;
[[nodiscard]] constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

/// A part of an expert that travels as one object of the PeerCache.
struct Piece {
  Key key;
  const std::byte* source = nullptr;  ///< in the caller's memory
  std::uint64_t offset = 0;           ///< in the slot
  std::uint64_t bytes = 0;
};

struct Expert {
  std::uint32_t layer = 0;
  std::uint32_t number = 0;
  std::uint32_t slot = kNone;
  std::uint32_t first_piece = 0;
  std::uint32_t pieces = 0;         ///< 0: was not added
  std::uint64_t last_use_step = 0;  ///< of decode
  std::uint32_t last_use_pass = 0;  ///< of its layer
  float frequency = 0;              ///< as of then
  std::uint64_t mark = 0;           ///< the last step that named it
  bool on_peers = false;            ///< all of it, as last looked
  bool being_added = false;
};

class ExpertCache::Impl {
 public:
  /// What of an expert is waited for: its first tensors, or all.
  enum class Part : std::uint8_t { head, all };

  static Result<std::unique_ptr<Impl>> create(PeerCache& cache, ExpertCacheConfig config);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Status pin_weights(std::byte* address, std::uint64_t bytes) HARVEST_EXCLUDES(mutex_);
  Status add(std::uint32_t layer, std::uint32_t expert, std::span<const std::byte* const> tensors)
      HARVEST_EXCLUDES(mutex_);
  Status add(std::uint32_t layer, std::uint32_t expert, const std::byte* weights) HARVEST_EXCLUDES(mutex_);

  Result<std::uint32_t> begin(std::uint32_t layer, std::span<const std::uint32_t> experts, StreamId stream,
                              Phase phase) HARVEST_EXCLUDES(mutex_);
  const ReadyExpert* next(std::uint32_t step, Part part) HARVEST_EXCLUDES(mutex_);
  void rest(std::uint32_t step) HARVEST_EXCLUDES(mutex_);
  Result<std::span<const ReadyExpert>> all(std::uint32_t step) HARVEST_EXCLUDES(mutex_);
  Status end(std::uint32_t step) HARVEST_EXCLUDES(mutex_);
  Status confirm() HARVEST_EXCLUDES(mutex_);
  std::size_t size_of(std::uint32_t step) HARVEST_EXCLUDES(mutex_);
  std::size_t resident_of(std::uint32_t step) HARVEST_EXCLUDES(mutex_);

  Result<PrefetchId> prefetch(std::uint32_t layer, std::span<const std::uint32_t> experts, double probability,
                              TimeNs deadline_ns) HARVEST_EXCLUDES(mutex_);
  Status cancel(PrefetchId id) HARVEST_EXCLUDES(mutex_);
  void set_predictor(std::unique_ptr<Predictor> predictor) HARVEST_EXCLUDES(mutex_);
  void poll() HARVEST_EXCLUDES(mutex_);

  [[nodiscard]] std::uint32_t slots() const { return slot_count_; }
  [[nodiscard]] const std::byte* slot_address(std::uint32_t slot) const {
    return memory_ + slot * slot_bytes_;
  }
  [[nodiscard]] Tier locate(std::uint32_t layer, std::uint32_t expert) HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] const ExpertCacheConfig& config() const { return config_; }
  [[nodiscard]] ExpertCacheStats stats() HARVEST_EXCLUDES(mutex_);

 private:
  static constexpr std::size_t kMostSteps = 64;

  struct Entry {
    std::uint32_t expert = 0;
    std::uint32_t slot = kNone;            ///< none: waits for one of this step's
    bool here = false;                     ///< when the step began
    bool brought = false;                  ///< for this step
    bool released = false;                 ///< the slot is not the step's any more
    std::uint64_t host_from = UINT64_MAX;  ///< what lies from here on in the slot comes over the host's wire
  };
  struct Step {
    bool open = false;
    std::uint32_t layer = 0;
    Phase phase = Phase::decode;
    StreamId stream = StreamId::none;
    std::vector<Entry> entries;
    std::size_t here = 0;
    std::size_t waiting = 0;  ///< the first entry without a slot
    std::size_t next = 0;
    std::uint32_t watch = kNone;  ///< of `stalls_`; none: nothing was to be waited for
    Status status{};
    ReadyExpert answer;
    std::vector<ReadyExpert> table;
  };
  struct Request {
    PrefetchId id = PrefetchId::none;  ///< none: the predictor's
    std::uint32_t expert = 0;
    double probability = 0;
    TimeNs deadline_ns = kNever;
  };
  /// Pieces of one expert for one lane, from one device: of its head, or of the rest.
  struct Group {
    std::size_t lane = 0;
    DeviceId source = kHost;
    bool head = false;
    std::vector<Copy> copies;
    std::vector<Lease> leases;
  };
  /// Lanes for the pieces of an expert, in turn; or, if `cut` is not 0, that many for the first and the rest
  /// for the second.
  struct Spread {
    std::size_t first = 0;
    std::size_t lanes = 1;
    std::uint32_t cut = 0;
    [[nodiscard]] std::size_t lane_of(std::uint32_t piece) const {
      return Lanes::peer_lane(first, cut == 0 ? piece % lanes : piece < cut ? 0 : 1);
    }
  };
  /// How an expert is brought.
  struct Way {
    std::optional<Wire> wire{};            ///< none: each piece over the one that is done with it first
    std::uint64_t host_from = UINT64_MAX;  ///< what lies from here on in the slot: over the host's
    bool head_first = false;               ///< no other tensor takes bandwidth from the first ones
  };
  /// Of the work that a step gave to its stream.
  struct End {
    bool reads = false;         ///< there is such work, and it may run now
    std::uint32_t use = kNone;  ///< none: the driver had no event for it
  };
  struct Heat {
    std::uint32_t expert = 0;
    bool here = false;
    double frequency = 0;
  };
  /// An expert to ask onto peers.
  struct Move {
    std::uint32_t expert = 0;
    std::vector<Key> keys;
  };
  enum class Why : std::uint8_t { demand, guess };

  Impl(PeerCache& cache, ExpertCacheConfig config, SlotValue slot_value);
  Status begin_life();
  void know_wire(Wire wire, const LinkInfo& link);

  [[nodiscard]] std::uint32_t index_of(std::uint32_t layer, std::uint32_t expert) const {
    return layer * config_.model.experts + expert;
  }
  [[nodiscard]] Status check_expert(std::uint32_t layer, std::uint32_t expert) const;

  // --- weights.cpp
  [[nodiscard]] std::vector<Piece> cut(std::uint32_t layer, std::uint32_t number,
                                       std::span<const std::byte* const> tensors) const;
  [[nodiscard]] Status put(std::span<const Piece> pieces) HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] std::span<const Piece> pieces_of(const Expert& expert) const HARVEST_REQUIRES(mutex_) {
    return std::span(pieces_).subspan(expert.first_piece, expert.pieces);
  }

  // --- layer_step.cpp
  Status name_experts(Step& step, std::span<const std::uint32_t> experts) HARVEST_REQUIRES(mutex_);
  void note_use(const Step& step) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] double frequency_of(const Expert& expert) const HARVEST_REQUIRES(mutex_);
  [[nodiscard]] double value_of(const Expert& expert) const HARVEST_REQUIRES(mutex_);
  void give_slots(Step& step, bool spare_decode) HARVEST_REQUIRES(mutex_);
  void refill(Step& step) HARVEST_REQUIRES(mutex_);
  void bring_more(Step& step, bool spare_decode) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] End end_of_work(const Step& step) HARVEST_REQUIRES(mutex_);
  void release(Step& step, Entry& entry, const End& end) HARVEST_REQUIRES(mutex_);
  void note_last_use(Slot& slot, StreamId stream, std::uint32_t event) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] bool is_over(const Use& use) const HARVEST_REQUIRES(mutex_);
  void order_behind_arrival(StreamId stream, Slot& slot, Part part = Part::all) HARVEST_REQUIRES(mutex_);
  bool deliver(Step& step, Entry& entry, Part part, ReadyExpert& answer) HARVEST_REQUIRES(mutex_);
  void count(const Step& step, const ReadyExpert& delivered) HARVEST_REQUIRES(mutex_);
  void watch_arrivals(Step& step, std::span<const Entry> coming) HARVEST_REQUIRES(mutex_);
  void judge_layer(const Step& step) HARVEST_REQUIRES(mutex_);
  void close(Step& step) HARVEST_REQUIRES(mutex_);

  // --- arrival.cpp
  void settle() HARVEST_REQUIRES(mutex_);
  [[nodiscard]] bool is_here(const Slot& slot) const HARVEST_REQUIRES(mutex_);
  [[nodiscard]] bool is_on_peers(const Piece& piece) const;
  void vacate(std::uint32_t slot) HARVEST_REQUIRES(mutex_);
  void occupy(std::uint32_t slot, std::uint32_t expert, double value) HARVEST_REQUIRES(mutex_);
  Status bring_all(Step& step) HARVEST_REQUIRES(mutex_);
  Status bring(std::uint32_t slot, std::uint32_t pieces, Why why, const Way& way) HARVEST_REQUIRES(mutex_);
  void split(std::span<Entry> coming) HARVEST_REQUIRES(mutex_);
  static void add_copy(Group& group, const Copy& copy);
  [[nodiscard]] Spread spread_over_lanes(std::uint32_t pieces) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] Status prepare(std::uint32_t slot, std::size_t lane) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] Status find_end(Use& use) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] std::vector<StreamId> open_readers(std::uint32_t slot) const HARVEST_REQUIRES(mutex_);
  void load(std::uint32_t slot, const Piece& piece, std::size_t lane_of_peers, std::optional<Wire> only)
      HARVEST_REQUIRES(mutex_);
  void load_parts(std::uint32_t slot, const Piece& piece, std::size_t lane_of_peers, const Way& way)
      HARVEST_REQUIRES(mutex_);
  Status submit(std::uint32_t slot, Group& group, Why why) HARVEST_REQUIRES(mutex_);
  Group& group_for(std::size_t lane, DeviceId source, bool head) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] TimeNs wire_ns(Wire wire, std::uint64_t bytes) const;

  // --- prefetch.cpp
  void ask_predictor(std::uint32_t layer, std::span<const Entry> experts) HARVEST_REQUIRES(mutex_);
  void pump() HARVEST_REQUIRES(mutex_);
  void ask_for(const Request& request) HARVEST_REQUIRES(mutex_);
  bool follow(const Request& request) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] double value_of_guess(const Expert& expert, double probability) const
      HARVEST_REQUIRES(mutex_);
  void adapt_windows(std::uint32_t layer) HARVEST_REQUIRES(mutex_);
  [[nodiscard]] std::optional<Wire> wire_for_guess(const Piece& piece) const HARVEST_REQUIRES(mutex_);

  // --- rebalance.cpp
  bool look_at_peers() HARVEST_REQUIRES(mutex_);
  [[nodiscard]] std::vector<Heat> heats() const HARVEST_REQUIRES(mutex_);
  static void sort_by_heat(std::vector<Heat>& heats);
  [[nodiscard]] bool may_move() HARVEST_REQUIRES(mutex_);
  void note_on_peers(Expert& expert, bool is) HARVEST_REQUIRES(mutex_);
  /// As last looked.
  [[nodiscard]] bool peers_have_all() const HARVEST_REQUIRES(mutex_) {
    return experts_on_peers_ == experts_.size();
  }
  [[nodiscard]] std::uint64_t room_on_peers() const HARVEST_EXCLUDES(mutex_);
  [[nodiscard]] std::vector<Move> choose_moves(std::uint64_t room_bytes) HARVEST_REQUIRES(mutex_);

  PeerCache& cache_;
  Backend& backend_;
  const ExpertCacheConfig config_;
  std::uint64_t slot_bytes_ = 0;
  std::uint64_t head_bytes_ = UINT64_MAX;  ///< where in a slot the tensors behind the head begin
  std::uint32_t slot_count_ = 0;
  std::byte* memory_ = nullptr;
  std::array<double, kWires> ns_per_byte_{};
  std::array<TimeNs, kWires> piece_ns_{};  ///< what each piece costs beside its bytes
  bool wires_apart_ = false;               ///< peers and host can carry at the same time
  SlotValue slot_value_;
  std::vector<float> decay_;  ///< of a frequency, by passes

  Mutex mutex_;
  std::vector<Expert> experts_ HARVEST_GUARDED_BY(mutex_);
  std::vector<Piece> pieces_ HARVEST_GUARDED_BY(mutex_);
  std::vector<std::byte*> pinned_ HARVEST_GUARDED_BY(mutex_);
  UseEvents uses_ HARVEST_GUARDED_BY(mutex_);
  SlotTable slots_ HARVEST_GUARDED_BY(mutex_);
  Lanes lanes_ HARVEST_GUARDED_BY(mutex_);
  Stalls stalls_ HARVEST_GUARDED_BY(mutex_);
  std::vector<Step> steps_ HARVEST_GUARDED_BY(mutex_);
  std::uint64_t marks_ HARVEST_GUARDED_BY(mutex_) = 0;

  // Decode's time, in layer steps and in passes of each layer.
  std::uint64_t step_clock_ HARVEST_GUARDED_BY(mutex_) = 0;
  std::vector<std::uint64_t> layer_step_ HARVEST_GUARDED_BY(mutex_);
  std::vector<std::uint32_t> layer_pass_ HARVEST_GUARDED_BY(mutex_);

  // Arrivals.
  std::array<TimeNs, kWires> busy_until_ns_ HARVEST_GUARDED_BY(mutex_){};    ///< as estimated
  std::array<TimeNs, kWires> demand_until_ns_ HARVEST_GUARDED_BY(mutex_){};  ///< of that, with demand
  TimeNs reserved_host_ns_ HARVEST_GUARDED_BY(mutex_) = 0;  ///< for pieces that can come from nowhere else
  std::vector<TimeNs> avoid_until_ns_ HARVEST_GUARDED_BY(mutex_);  ///< by peer: its copies failed
  std::vector<Group> groups_ HARVEST_GUARDED_BY(mutex_);
  std::size_t groups_used_ HARVEST_GUARDED_BY(mutex_) = 0;
  std::vector<std::pair<TimeNs, Entry>> order_ HARVEST_GUARDED_BY(mutex_);
  std::vector<TimeNs> ready_ns_ HARVEST_GUARDED_BY(mutex_);  ///< by slot: when its expert is expected
  FlightNumbers delivered_ HARVEST_GUARDED_BY(mutex_){};     ///< flights that steps were ordered behind
  std::uint32_t failed_expert_ HARVEST_GUARDED_BY(mutex_) = kNone;  ///< since the last confirm

  // Guesses.
  /// By whether the step before had to wait: only then the wires rest for less than a whole layer's time.
  std::array<std::array<double, kWires>, 2> windows_ns_ HARVEST_GUARDED_BY(mutex_){{{3e5, 3e5}, {3e5, 3e5}}};
  bool waited_ HARVEST_GUARDED_BY(mutex_) = false;  ///< the last step, for experts that were not here
  std::array<bool, kWires> guessed_ HARVEST_GUARDED_BY(mutex_){};  ///< since the last step began
  std::unique_ptr<Predictor> predictor_ HARVEST_GUARDED_BY(mutex_);
  std::vector<Request> requests_ HARVEST_GUARDED_BY(mutex_);      ///< the most likely first
  TimeNs first_deadline_ns_ HARVEST_GUARDED_BY(mutex_) = kNever;  ///< none of theirs is earlier
  std::vector<Guess> guesses_ HARVEST_GUARDED_BY(mutex_);
  std::vector<std::uint32_t> observed_ HARVEST_GUARDED_BY(mutex_);
  std::uint64_t next_request_ HARVEST_GUARDED_BY(mutex_) = 1;

  // The rebalancer.
  bool polling_ HARVEST_GUARDED_BY(mutex_) = false;                ///< one thread at a time
  std::vector<std::uint32_t> by_heat_ HARVEST_GUARDED_BY(mutex_);  ///< those in slots last
  std::size_t looked_ HARVEST_GUARDED_BY(mutex_) = 0;              ///< where in `experts_`
  std::size_t experts_on_peers_ HARVEST_GUARDED_BY(mutex_) = 0;    ///< whose `on_peers` is set
  double allowance_bytes_ HARVEST_GUARDED_BY(mutex_) = 0;
  TimeNs allowance_at_ns_ HARVEST_GUARDED_BY(mutex_) = 0;
  TimeNs next_balance_ns_ HARVEST_GUARDED_BY(mutex_) = 0;

  ExpertCacheStats stats_ HARVEST_GUARDED_BY(mutex_);
};

}  // namespace harvest::moe
