// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace harvest {

/// Far beyond what people write: who names a device or a recording by mistake is told so.
inline constexpr std::uint64_t kMostTextFileBytes = 16ULL << 20;

/// The text of a file that people write; `what` it is ("machine file") stands in the messages.
/// Errors: not_found (a folder, or it cannot be read), malformed (more than `kMostTextFileBytes`).
[[nodiscard]] Result<std::string> read_text_file(const std::string& path, std::string_view what);

}  // namespace harvest
