// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <memory>
#include <vector>

/// Backends with one planted fault each. A suite of laws that passes one of them is no suite.
namespace harvest::test {

struct BrokenBackend {
  const char* fault;
  const char* law;                                   ///< the one that must notice
  std::unique_ptr<Backend> (*make)(Backend& inner);  ///< `inner` works, and outlives it
};

[[nodiscard]] std::vector<BrokenBackend> broken_backends();

}  // namespace harvest::test
