// SPDX-License-Identifier: Apache-2.0
#include "base/assert.hpp"

#include <fmt/core.h>

#include <cstdio>
#include <cstdlib>

namespace harvest {

void assertion_failed(const char* file, int line, const char* condition, std::string_view why) {
  fmt::print(stderr, "harvest: {}:{}: {} does not hold: {}\n", file, line, condition, why);
  std::abort();
}

}  // namespace harvest
