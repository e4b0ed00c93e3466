// SPDX-License-Identifier: Apache-2.0
#include "simulator/violation.hpp"

#include <cstdio>
#include <cstdlib>

namespace harvest::simulator {

void violated(std::string_view invariant, std::string_view message) {
  fmt::print(stderr, "{}: {}\n", invariant, message);
  std::fflush(stderr);
  std::abort();
}

}  // namespace harvest::simulator
