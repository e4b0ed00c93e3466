// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>

#include "policy/eviction_laws.hpp"

namespace harvest::test {

/// A policy with one planted fault, and the law that must catch it.
struct BrokenPolicy {
  std::string_view fault;
  std::string_view law;
  std::unique_ptr<EvictionPolicy> (*make)(std::uint64_t capacity_bytes);
};

[[nodiscard]] std::span<const BrokenPolicy> broken_policies();

/// The same policy without a fault: what the faults are planted in.
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_sound_policy(std::uint64_t capacity_bytes);

}  // namespace harvest::test
