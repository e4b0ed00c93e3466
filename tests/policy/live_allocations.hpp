// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace harvest::test {

/// Blocks that this program has allocated with `new` and not freed.
[[nodiscard]] std::int64_t live_allocations();

}  // namespace harvest::test
