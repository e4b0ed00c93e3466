// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <string>

#include "base/assert.hpp"

namespace harvest::fuzz {

/// A reader of lines refuses with `path:line: what`, in not too many words.
inline void check_refused_line(const Error& error, const std::string& path) {
  HARVEST_ASSERT(error.code == ErrorCode::malformed, error.message);
  const std::size_t digits = path.size() + 1;
  const std::size_t colon = error.message.find_first_not_of("0123456789", digits);
  HARVEST_ASSERT(error.message.starts_with(path + ":") && colon != digits &&
                     error.message.compare(colon, 2, ": ") == 0 && error.message.size() < 512,
                 error.message);
}

}  // namespace harvest::fuzz
