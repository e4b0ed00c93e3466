// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace harvest {

/// Prints where and why to standard error and aborts.
[[noreturn]] void assertion_failed(const char* file, int line, const char* condition, std::string_view why);

}  // namespace harvest

/// Stops at a programmer's error, in release builds too. For what an operator, a device or an input can
/// cause there are error values.
#define HARVEST_ASSERT(condition, why)                                  \
  do {                                                                  \
    if (!(condition)) [[unlikely]]                                      \
      ::harvest::assertion_failed(__FILE__, __LINE__, #condition, why); \
  } while (false)
