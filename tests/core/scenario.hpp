// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backend/checked.hpp"
#include "core/random.hpp"

/// A random life of a cache beside a model of what it must hold. Everything follows from the seed.
namespace harvest::testing {

struct ScenarioOptions {
  std::uint64_t seed = 1;
  bool faults = false;   ///< refused and failed copies, failed maps, links that go down
  bool checked = false;  ///< through the decorator that enforces the backend's contract
};

class Scenario {
 public:
  explicit Scenario(ScenarioOptions options);
  ~Scenario();

  void run(int steps);
  /// Everything heals; then all that must be there is read once more, and the cache ends.
  void finish();
  [[nodiscard]] std::uint64_t trace_hash() const { return simulated_->trace_hash(); }
  /// What was served from each tier, so that a test can tell that the scenario got everywhere.
  [[nodiscard]] const CacheStats& last_stats() const { return last_stats_; }

 private:
  /// One put, as the model remembers it.
  struct Stored {
    std::uint64_t key = 0;
    std::uint64_t version = 0;
    std::uint64_t bytes = 0;
    Backing backing = Backing::managed_host;
    bool evictable = false;
    bool risky = false;  ///< the copy of its put may have failed in flight, so that even it may be lost
    bool told_gone = false;
    std::byte* external = nullptr;
  };
  struct Expected {
    std::uint64_t offset = 0;
    Generation generation = 0;
  };
  /// Bytes on their way to the host, to be compared when they are there.
  struct Check {
    EventId event = EventId::none;
    std::vector<std::byte> buffer;
    std::vector<Expected> expected;
  };
  /// A source of a put that the stream may still read.
  struct Source {
    EventId event = EventId::none;
    std::vector<std::byte> bytes;
  };
  struct Held {
    Lease lease;
    StreamId stream = StreamId::none;
    Generation generation = 0;
  };
  struct Begun {
    ReclaimId id = ReclaimId::none;
    ReclaimReport last;
  };

  void step();
  void put();
  void put_from_gpu();
  void erase();
  void fetch(bool wait);
  void acquire();
  void use_lease();
  void release();
  void prefetch();
  void reclaim();
  void tenant();
  void pass_time(TimeNs ns);
  void kernel();
  void change_faults();
  void change_link();
  void settle();
  [[nodiscard]] bool may_be_stuck() const;

  void stored(const Result<Generation>& generation, Stored what, bool old_may_go);
  void observe();
  void hear_events();
  void check_arrivals(bool all);
  void check_growth();
  void check_reclaims();
  void check_statistics();
  void check_item(const FetchItem& item);
  void expect_missing(std::uint64_t key);
  void read_everything();
  static constexpr std::uint64_t kMostObjectBytes = 4ULL << 20;
  void compare(const std::byte* bytes, Generation generation, const char* how);
  [[nodiscard]] bool download(StreamId stream, DeviceId from, const std::byte* source, std::byte* destination,
                              std::uint64_t bytes);
  void synchronize();

  [[nodiscard]] bool in_trouble() const { return faulty_ || !down_.empty(); }
  [[nodiscard]] std::uint64_t random_bytes();
  [[nodiscard]] std::uint64_t random_key() { return random_.between(1, 48); }
  [[nodiscard]] DeviceId random_peer() { return peers_[random_.below(peers_.size())]; }
  [[nodiscard]] const Stored* current(std::uint64_t key) const;

  ScenarioOptions options_;
  Random random_;
  std::vector<DeviceId> peers_;
  std::unique_ptr<SimulatedBackend> simulated_;
  std::unique_ptr<CheckedBackend> checked_;
  Backend* backend_ = nullptr;
  std::unique_ptr<PeerCache> cache_;
  std::vector<StreamId> streams_;
  std::map<StreamId, std::byte*> staging_;
  std::map<StreamId, std::byte*> gpu_source_;
  std::uint64_t reserve_bytes_ = 0;

  std::map<std::uint64_t, Generation> alive_;  ///< by key
  std::map<Generation, Stored> stored_;
  std::uint64_t next_version_ = 1;
  std::vector<CacheEvent> events_;
  std::deque<Check> checks_;
  std::deque<Source> sources_;
  std::vector<Held> leases_;
  std::vector<Begun> reclaims_;
  std::map<DeviceId, std::uint64_t> mapped_before_;
  std::set<std::pair<DeviceId, DeviceId>> down_;
  bool faulty_ = false;           ///< some fault is planned
  bool fails_in_flight_ = false;  ///< copies may fail after they were accepted
  int step_ = 0;
  CacheStats last_stats_;
};

}  // namespace harvest::testing
