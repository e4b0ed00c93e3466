// SPDX-License-Identifier: Apache-2.0
#include "base/text_file.hpp"

#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace harvest {

Result<std::string> read_text_file(const std::string& path, std::string_view what) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))  // opens, and cannot be read
    return fail(ErrorCode::not_found, fmt::format("'{}' is a folder, not a {}", path, what));
  std::ifstream file(path, std::ios::binary);
  std::string text;
  std::array<char, 1U << 16U> chunk;
  while (file && text.size() <= kMostTextFileBytes) {
    file.read(chunk.data(), chunk.size());
    text.append(chunk.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!file.is_open() || file.bad())
    return fail(ErrorCode::not_found, fmt::format("cannot read {} '{}'", what, path));
  if (text.size() > kMostTextFileBytes)
    return fail(ErrorCode::malformed,
                fmt::format("{}: longer than {} bytes, the limit of a {}", path, kMostTextFileBytes, what));
  return text;
}

}  // namespace harvest
