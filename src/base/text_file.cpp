// SPDX-License-Identifier: Apache-2.0
#include "base/text_file.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

namespace harvest {

Result<std::string> read_text_file(const std::string& path, std::string_view what) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))  // opens, and throws when it is read
    return fail(ErrorCode::not_found, fmt::format("'{}' is a folder, not a {}", path, what));
  std::ifstream file(path, std::ios::binary);
  std::string text(64U << 10, '\0');
  std::size_t length = 0;
  while (file && length <= kMostTextBytes) {
    if (length == text.size()) text.resize(2 * text.size());
    file.read(text.data() + length, static_cast<std::streamsize>(text.size() - length));
    length += static_cast<std::size_t>(file.gcount());
  }
  if (!file.is_open() || file.bad())
    return fail(ErrorCode::not_found, fmt::format("cannot read {} '{}'", what, path));
  if (length > kMostTextBytes)
    return fail(ErrorCode::malformed,
                fmt::format("{}: more than {} bytes, no {} has that many", path, kMostTextBytes, what));
  text.resize(length);
  return text;
}

}  // namespace harvest
