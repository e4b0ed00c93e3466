// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backend/checked.hpp"
#include "simulator/model.hpp"
#include "simulator/plan.hpp"
#include "simulator/witness.hpp"

namespace harvest::simulator {

/// What a life got to see, so that a campaign can tell that it went everywhere.
struct Coverage {
  std::uint64_t operations = 0;
  std::uint64_t reads_compared = 0;
  std::uint64_t bytes_compared = 0;
  std::array<std::uint64_t, kTiers> hits{};
  std::uint64_t reclaims = 0;
  std::uint64_t lost = 0;
  std::uint64_t spilled = 0;
  std::uint64_t evicted = 0;
  std::uint64_t promotions = 0;
  std::uint64_t failed_copies = 0;
  std::uint64_t fallbacks = 0;
  std::uint64_t sudden_owners = 0;
  TimeNs virtual_ns = 0;
};

/// One random life of a cache: the real `PeerCache` on a simulated machine in virtual time, a model beside
/// it, and after every step the question whether I1 to I12 hold. What does not hold ends the process.
class Life {
 public:
  explicit Life(const Case& life);
  ~Life();
  Life(const Life&) = delete;
  Life& operator=(const Life&) = delete;

  /// Operation number `number` of the case. The draw does not depend on what happened before.
  void step(std::uint32_t number);
  /// The same for a given operation, with all it draws coming from `seed`.
  void step(Operation operation, std::uint64_t seed);
  /// Faults stop, and liveness must follow; then the cache ends, and nothing of it may be left.
  void end();

  [[nodiscard]] const Plan& plan() const { return plan_; }
  /// Over everything that could be observed (I11).
  [[nodiscard]] std::uint64_t hash() const { return hash_; }
  [[nodiscard]] const Coverage& coverage() const { return coverage_; }
  /// Prints each operation before it happens.
  void set_trace(bool trace) { trace_ = trace; }
  [[nodiscard]] Operation last_operation() const { return operation_; }

 private:
  struct Expected {
    std::uint64_t offset = 0;
    Generation generation = 0;
  };
  /// Bytes on their way into a buffer of the life's, to be compared when they are there.
  struct Check {
    EventId event = EventId::none;
    std::byte* buffer = nullptr;
    std::vector<Expected> expected;
    std::uint64_t failures_before = 0;
    bool on_lost_device = false;
  };
  /// A put whose stream may still read its source, and whose bytes may still be on their way.
  struct Source {
    EventId event = EventId::none;
    std::byte* memory = nullptr;
    Generation generation = 0;         ///< 0 if the put was refused
    EventId uploaded = EventId::none;  ///< of a source on the GPU: the life's own copy to there
  };
  struct Held {
    Lease lease;
    StreamId stream = StreamId::none;
    Generation generation = 0;
    EventId readable = EventId::none;  ///< from which on the bytes lie there; none: they do
  };
  struct Begun {
    ReclaimId id = ReclaimId::none;
    DeviceId device = kHost;
    bool was_empty = false;  ///< nothing was ours when it began
    std::uint64_t emptied_before = 0;
    std::uint64_t unmapped_before = 0;
    std::uint64_t bytes = 0;
    ReclaimReport last;
  };
  struct Stream {
    StreamId id = StreamId::none;
    std::byte* staging = nullptr;  ///< where fetches of this stream go
    std::byte* source = nullptr;   ///< where puts from the GPU come from
  };

  // --- life_writes.cpp
  void put();
  void put_from_gpu();
  void put_key_from_gpu(std::uint64_t key);
  void disturb_put();
  void put_key(std::uint64_t key);
  void erase();
  void erase_key(std::uint64_t key);
  void race_on_key();
  [[nodiscard]] Begun begun(DeviceId device, std::uint64_t bytes) const;
  void stored(const Result<Generation>& generation, Stored what, Generation latest_before,
              std::uint64_t failures_before, bool waited);
  [[nodiscard]] Stored draw_object(std::uint64_t key);
  void on_event(const CacheEvent& event);
  void call_back(const CacheEvent& event);
  [[nodiscard]] std::byte* host_memory(std::uint64_t bytes, const Stored& content);
  void write(std::byte* to, const Stored& content);

  // --- life_reads.cpp
  void fetch(bool waits);
  void fetch_keys(const Stream& stream, std::vector<std::uint64_t> keys, bool waits);
  void check_item(const FetchItem& item, bool waits, std::uint64_t failures_before);
  void acquire();
  void use_lease();
  void release_lease();
  void release_all();
  void drop(Held& held);
  void read_meanwhile();
  void prefetch();
  void look();
  void expect_missing(std::uint64_t key);
  void compare(const std::byte* bytes, Generation generation, std::string_view how, bool surely);
  [[nodiscard]] bool is_garbled(Generation generation);
  void compare_held(Held& held, std::string_view how);
  void read_everything();
  void collect(const Stream& stream, DeviceId from,
               const std::vector<std::pair<const std::byte*, Generation>>& items,
               std::uint64_t failures_before);
  [[nodiscard]] std::byte* free_collector();

  // --- life_owners.cpp
  void reclaim();
  void reclaim_all(DeviceId device);
  void begin_reclaim();
  void orderly_reclaim();
  void tenant();
  void pass_time(TimeNs ns);
  void kernel();
  void settle();
  void change_stream();
  void wrong_call();
  void change_faults();
  void break_link();
  void read_over_broken_link(DeviceId peer);
  [[nodiscard]] bool owner_waits(DeviceId device) const;
  void lose_device(DeviceId device);
  void lose_all_peers();
  void jump_clock();
  void calm();
  void rest();

  // --- life_checks.cpp
  void check();
  void check_arrivals();
  void check_sources();
  void note_arrivals_on_peers();
  void check_reclaims();
  void check_statistics(bool at_rest);
  void check_wiped_at_rest();
  void check_owners_at_rest();
  void synchronize();
  /// Whether bytes that live on peers alone have nowhere to go.
  [[nodiscard]] bool may_be_stuck() const;
  [[nodiscard]] std::uint64_t leased_segment_bytes(DeviceId device) const;

  void plan_nth_failure();
  void perform(Operation operation);
  void observe(std::uint64_t value);
  template <typename... Values>
  void observe(std::uint64_t first, Values... others) {
    observe(first);
    (observe(static_cast<std::uint64_t>(others)), ...);
  }
  [[nodiscard]] std::uint64_t failures() const { return simulated_->counters().copy_batches_failed; }
  [[nodiscard]] bool is_lost(DeviceId device) const { return lost_.contains(device); }
  [[nodiscard]] bool host_path_is_good() const;
  [[nodiscard]] std::uint64_t random_key() { return random_.between(1, plan_.keys); }
  [[nodiscard]] std::optional<DeviceId> random_peer();
  [[nodiscard]] Stream& random_stream() { return streams_[random_.below(streams_.size())]; }
  [[nodiscard]] Stream make_stream();

  Case case_;
  Plan plan_;
  Random random_{0};
  std::unique_ptr<SimulatedBackend> simulated_;
  std::unique_ptr<CheckedBackend> checked_;  ///< in the lives that have it
  std::unique_ptr<Witness> backend_;
  std::unique_ptr<PeerCache> cache_;
  std::vector<DeviceId> peers_;
  std::vector<Stream> streams_;
  std::vector<std::byte*> collectors_;  ///< on the consumer; those in use are in `checks_`

  Model model_;
  std::uint32_t next_version_ = 1;
  std::vector<CacheEvent> unknown_;  ///< told inside of a put, of a generation that it has not answered yet
  bool putting_ = false;
  bool reading_ = false;
  int callbacks_ = 0;  ///< deep
  Random callback_random_{0};
  std::deque<Check> checks_;
  std::deque<Source> sources_;
  std::vector<Held> leases_;
  std::vector<Begun> reclaims_;
  std::optional<Begun> waiting_;                ///< the reclaim that waits, while it does
  std::map<DeviceId, std::uint64_t> returned_;  ///< credited to reclaims that were begun, all in all

  FaultPlan planned_;  ///< in force
  std::set<std::pair<DeviceId, DeviceId>> down_;
  std::set<DeviceId> lost_;
  std::size_t streams_at_start_ = 0;

  Operation operation_ = Operation::calm;
  std::uint64_t hash_ = 0;
  bool trace_ = false;
  Coverage coverage_;
};

/// Lives a case to its end, twice if `repeat`, and compares what was observed (I11). `tell` is called before
/// each operation.
struct LifeResult {
  std::uint64_t hash = 0;
  Coverage coverage;
};
[[nodiscard]] LifeResult live(const Case& life, bool repeat, bool trace,
                              const std::function<void(std::uint32_t number, Operation operation)>& tell);

}  // namespace harvest::simulator
