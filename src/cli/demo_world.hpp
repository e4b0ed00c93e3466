// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/peer_cache.hpp>
#include <harvest/simulated_backend.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

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
  static constexpr std::uint64_t kOwnerLeavesBytes = 1ULL << 30;  ///< free on the peer in the beginning

  /// Errors: of the system's name (not_found, malformed), invalid_argument (no GPU has a usable peer).
  [[nodiscard]] static Result<std::unique_ptr<DemoWorld>> create(const std::string& system);
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
    const TimeNs begin = backend_->now_ns();
    std::vector<FetchItem> items = items_for(experts);
    if (Status given = cache_->fetch(items, stream_); !given) return tl::unexpected(given.error());
    if (Status done = meanwhile(); !done) return tl::unexpected(done.error());
    if (Status arrived = wait(); !arrived) return tl::unexpected(arrived.error());
    return compare(experts, items, backend_->now_ns() - begin);
  }

  /// The experts whose best copy is in `tier` now.
  [[nodiscard]] std::vector<std::uint64_t> experts_in(Tier tier) const;

  /// Lets `ns` of virtual time pass and what is under way end.
  [[nodiscard]] Status pass(TimeNs ns);

  /// Bytes of the pool in host memory that are not what was written there first.
  [[nodiscard]] std::uint64_t changed_pool_bytes() const;

  [[nodiscard]] SimulatedBackend& backend() { return *backend_; }
  [[nodiscard]] PeerCache& cache() { return *cache_; }
  [[nodiscard]] DeviceId peer() const { return peer_; }

 private:
  DemoWorld() = default;
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
  std::unique_ptr<SimulatedBackend> backend_;
  std::unique_ptr<PeerCache> cache_;
  DeviceId peer_ = kHost;
  StreamId stream_ = StreamId::none;
  std::byte* buffer_ = nullptr;  ///< on the consumer: where fetched experts go
};

}  // namespace harvest::cli
