// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace harvest {

/// Far beyond what people write by hand, and small enough that a file without an end does no harm.
inline constexpr std::uint64_t kMostTextFileBytes = 16ULL << 20;

/// All of a small file; `what` it should be, "machine file", is for the messages.
/// Errors: not_found (no such file, or a folder, or it cannot be read), malformed (longer than the limit).
[[nodiscard]] Result<std::string> read_text_file(const std::string& path, std::string_view what);

}  // namespace harvest
