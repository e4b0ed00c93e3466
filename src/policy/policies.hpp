// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/policy.hpp>

#include <cstdint>
#include <memory>

/// One maker for each policy. People choose by name: see registry.cpp.
namespace harvest::policy {

[[nodiscard]] std::unique_ptr<EvictionPolicy> make_adaptive_2q(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_arc(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_fifo(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_gdsf(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_lfru(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_lfu(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_lru(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_lru_2(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_s3_fifo(std::uint64_t capacity_bytes);

[[nodiscard]] std::unique_ptr<AdmissionPolicy> make_always(std::uint64_t capacity_bytes);
[[nodiscard]] std::unique_ptr<AdmissionPolicy> make_second_hit(std::uint64_t capacity_bytes);

[[nodiscard]] std::unique_ptr<PlacementPolicy> make_best_fit(const PlacementWeights& weights);
[[nodiscard]] std::unique_ptr<PlacementPolicy> make_fairness(const PlacementWeights& weights);
[[nodiscard]] std::unique_ptr<PlacementPolicy> make_locality(const PlacementWeights& weights);
[[nodiscard]] std::unique_ptr<PlacementPolicy> make_stability(const PlacementWeights& weights);
[[nodiscard]] std::unique_ptr<PlacementPolicy> make_weighted(const PlacementWeights& weights);

}  // namespace harvest::policy
