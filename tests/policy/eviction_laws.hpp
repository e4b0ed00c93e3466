// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/policy.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>

namespace harvest::test {

using MakeEviction = std::function<std::unique_ptr<EvictionPolicy>(std::uint64_t capacity_bytes)>;

/// What every eviction policy keeps, whatever it ranks by.
struct EvictionLaw {
  std::string_view name;
  /// Drives policies that `make` makes; answers how the law was broken, or nothing.
  std::optional<std::string> (*broken_by)(const MakeEviction& make);

  friend void PrintTo(const EvictionLaw& law, std::ostream* out) { *out << law.name; }
};

[[nodiscard]] std::span<const EvictionLaw> eviction_laws();

}  // namespace harvest::test
