// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

namespace harvest::core {

/// How readers tell the policies what they read, and the statistics how often: one counter and one ring
/// for each outcome, striped over threads. Recording is one atomic add and one store, never blocks and
/// never allocates. A ring that is not drained in time loses its oldest samples; the counters are exact.
class AccessLog {
 public:
  static constexpr std::size_t kOutcomes = kTiers + 1;  ///< by Tier; `none` is a miss
  static constexpr std::size_t kRing = 4096;

  AccessLog() : stripes_(kStripes) {}

  /// How an object was read: copied into the reader's memory, or leased to be read where it lies.
  enum class How : std::uint8_t { fetched, leased };

  void record(Tier tier, std::uint32_t object_index, How how) {
    const std::uint32_t entry = how == How::leased ? object_index | kLeasedBit : object_index;
    Lane& lane = stripes_[stripe_of_this_thread()].lanes[static_cast<std::size_t>(tier)];
    const std::uint64_t position = lane.count.fetch_add(1, std::memory_order_relaxed);
    if (tier != Tier::none) lane.ring[position % kRing].store(entry, std::memory_order_relaxed);
  }
  void record_miss() { record(Tier::none, 0, How::fetched); }

  [[nodiscard]] std::uint64_t count(Tier tier) const {
    std::uint64_t sum = 0;
    for (const Stripe& stripe : stripes_)
      sum += stripe.lanes[static_cast<std::size_t>(tier)].count.load(std::memory_order_relaxed);
    return sum;
  }

  struct Sample {
    Tier served = Tier::none;
    std::uint32_t object_index = 0;
    How how = How::fetched;
  };

  /// Appends what was recorded since the last call; for one caller at a time. Answers how many samples
  /// were lost.
  std::uint64_t drain(std::vector<Sample>& samples) {
    std::uint64_t lost = 0;
    for (Stripe& stripe : stripes_) {
      for (std::size_t t = 0; t < kTiers; ++t) {
        Lane& lane = stripe.lanes[t];
        const std::uint64_t end = lane.count.load(std::memory_order_relaxed);
        if (end - lane.drained > kRing) {
          lost += end - lane.drained - kRing;
          lane.drained = end - kRing;
        }
        for (; lane.drained < end; ++lane.drained) {
          const std::uint32_t entry = lane.ring[lane.drained % kRing].load(std::memory_order_relaxed);
          if (entry != 0)
            samples.push_back({static_cast<Tier>(t), entry & ~kLeasedBit,
                               (entry & kLeasedBit) != 0 ? How::leased : How::fetched});
        }
      }
    }
    return lost;
  }

 private:
  static constexpr std::size_t kStripes = 16;
  static constexpr std::uint32_t kLeasedBit = 1U << 31;  ///< above every index (max_objects <= 2^28)

  struct alignas(64) Lane {
    std::atomic<std::uint64_t> count{0};
    std::uint64_t drained = 0;  ///< the drainer's
    std::array<std::atomic<std::uint32_t>, kRing> ring{};
  };
  struct Stripe {
    std::array<Lane, kOutcomes> lanes;
  };

  static std::size_t stripe_of_this_thread() {
    static std::atomic<std::size_t> threads{0};
    thread_local const std::size_t mine = threads.fetch_add(1, std::memory_order_relaxed) % kStripes;
    return mine;
  }

  std::vector<Stripe> stripes_;
};

}  // namespace harvest::core
