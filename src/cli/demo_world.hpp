// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/bench/machine.hpp"

namespace harvest::cli {

/// What one batch of reads did.
struct ReadFigures {
  std::array<std::uint64_t, kTiers> served{};  ///< experts, by tier
  std::uint64_t bytes = 0;                     ///< read, and each of them compared
  std::uint64_t wrong_bytes = 0;               ///< those that were not the expert's, or did not come
  TimeNs duration_ns = 0;
};

/// The scene of the demo: a machine, a cache that serves its first GPU from one neighbour, and a pool of
/// experts in host memory, larger than what the GPU keeps. Real bytes. Its members are in the order in
/// which they must die.
class DemoWorld {
 public:
  static constexpr std::uint64_t kExperts = 64;
  static constexpr std::uint64_t kExpertBytes = 4ULL << 20;
  static constexpr std::uint64_t kLocalBytes = 8 * kExpertBytes;
  static constexpr std::uint64_t kPeerBytes = 32 * kExpertBytes;
  static constexpr std::uint64_t kLentBytes = 1ULL << 30;  ///< of the peer that the story goes on in

  /// Without a choice: this machine's GPUs, one in loopback if it has no peer, or a simulated pair where
  /// there is none. Errors: of the system's name (not_found, malformed), of the GPUs, invalid_argument (no
  /// usable peer), out_of_memory (less free on the peer than is lent).
  [[nodiscard]] static Result<std::unique_ptr<DemoWorld>> create(const bench::MachineChoice& choice);
  ~DemoWorld();
  DemoWorld(const DemoWorld&) = delete;
  DemoWorld& operator=(const DemoWorld&) = delete;

  /// Puts all experts, with their bytes in host memory as the backing.
  [[nodiscard]] Status store_experts();

  /// Reads experts as a layer would: what is local is leased where it lies, the others are fetched in one
  /// batch. All bytes are copied to the host and compared.
  [[nodiscard]] Result<ReadFigures> read(std::span<const std::uint64_t> experts);

  /// The same for experts that are not local; `meanwhile` runs when the copies are submitted and not done.
  template <typename Meanwhile>
  [[nodiscard]] Result<ReadFigures> read_while(std::span<const std::uint64_t> experts, Meanwhile meanwhile) {
    const TimeNs begin = backend().now_ns();
    std::vector<FetchItem> items = items_for(experts);
    if (Status given = cache_->fetch(items, stream_); !given) return tl::unexpected(given.error());
    if (Status done = meanwhile(); !done) return tl::unexpected(done.error());
    if (Status arrived = wait(); !arrived) return tl::unexpected(arrived.error());
    return compare(experts, items, backend().now_ns() - begin);
  }

  /// The experts whose best copy is in `tier` now.
  [[nodiscard]] std::vector<std::uint64_t> experts_in(Tier tier) const;

  /// Lets `ns` pass, in virtual time on a simulated machine, and what is under way end.
  [[nodiscard]] Status pass(TimeNs ns);

  /// Bytes of the pool in host memory that are not what was written there first.
  [[nodiscard]] std::uint64_t changed_pool_bytes() const;

  /// The owner of the peer takes all that is lent, what is the cache's and what is not taken yet. Requires:
  /// the cache has given back what it had.
  [[nodiscard]] Status owner_takes();
  [[nodiscard]] std::uint64_t owner_wants_bytes() const { return kLentBytes - kMarginBytes; }
  /// The owner's job ends; answers what that frees.
  [[nodiscard]] Result<std::uint64_t> owner_leaves();

  [[nodiscard]] const bench::MeasuredMachine& machine() const { return machine_; }
  [[nodiscard]] Backend& backend() { return machine_.backend(); }
  [[nodiscard]] PeerCache& cache() { return *cache_; }
  /// What the cache holds of the peer.
  [[nodiscard]] std::uint64_t held_bytes() const;
  [[nodiscard]] DeviceId peer() const { return peer_; }

 private:
  static constexpr std::uint64_t kMarginBytes = 256ULL << 20;  ///< of what is lent stays free in any case

  explicit DemoWorld(bench::MeasuredMachine machine) : machine_(std::move(machine)) {}
  [[nodiscard]] Status prepare();
  [[nodiscard]] std::vector<FetchItem> items_for(std::span<const std::uint64_t> experts) const;
  [[nodiscard]] Status wait();
  [[nodiscard]] Result<ReadFigures> compare(std::span<const std::uint64_t> experts,
                                            std::span<const FetchItem> items, TimeNs duration_ns);
  [[nodiscard]] Result<std::uint64_t> wrong_bytes(std::uint64_t expert, const std::byte* on_consumer);
  [[nodiscard]] const std::byte* in_pool(std::uint64_t expert) const {
    return pool_.data() + expert * kExpertBytes;
  }

  std::vector<std::byte> pool_;      ///< the experts' weights
  std::vector<std::byte> received_;  ///< one expert, copied back to be compared
  bench::MeasuredMachine machine_;
  std::unique_ptr<PeerCache> cache_;
  DeviceId peer_ = kHost;
  StreamId stream_ = StreamId::none;
  std::byte* buffer_ = nullptr;  ///< on the consumer: where fetched experts go
  bool pool_registered_ = false;
  std::byte* owners_segment_ = nullptr;  ///< on a real peer: what its owner has taken in this story
};

}  // namespace harvest::cli
