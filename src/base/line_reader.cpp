// SPDX-License-Identifier: Apache-2.0
#include "base/line_reader.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

namespace harvest {

void LineReader::Close::operator()(gzFile_s* file) const {
  gzclose_r(file);
}

Status LineReader::open(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))  // opens, and fails when it is read
    return fail(ErrorCode::not_found, fmt::format("'{}' is a folder, not a {}", path, what_));
  errno = 0;
  file_.reset(gzopen(path.c_str(), "rb"));
  if (file_ == nullptr) {
    const std::error_code why(errno == 0 ? ENOMEM : errno, std::generic_category());
    return fail(ErrorCode::not_found, fmt::format("cannot open {} '{}': {}", what_, path, why.message()));
  }
  path_ = path;
  gzbuffer(file_.get(), static_cast<unsigned>(chunk_.size()));
  return {};
}

Result<bool> LineReader::next(std::string& line) {
  line.clear();
  ++number_;
  while (true) {
    const auto end = rest_.find('\n');
    line += rest_.substr(0, end);
    if (line.size() > limits_.line_bytes)
      return malformed(fmt::format("the line is longer than the limit of {} bytes", limits_.line_bytes));
    if (end != std::string_view::npos) {
      rest_.remove_prefix(end + 1);
      return true;
    }
    const auto more = fill();
    if (!more) return tl::unexpected(more.error());
    if (!*more) return !line.empty();
  }
}

tl::unexpected<Error> LineReader::malformed(std::string_view what) const {
  return fail(ErrorCode::malformed, fmt::format("{}:{}: {}", path_, number_, what));
}

Result<bool> LineReader::fill() {
  errno = 0;
  const int count = gzread(file_.get(), chunk_.data(), static_cast<unsigned>(chunk_.size()));
  const int system_error = errno;
  rest_ = {chunk_.data(), static_cast<std::size_t>(std::max(count, 0))};
  text_bytes_ += rest_.size();
  if (text_bytes_ > limits_.text_bytes)
    return malformed(fmt::format("the file has more text than the limit of {} bytes", limits_.text_bytes));
  if (count > 0) return true;
  int code = Z_OK;
  const std::string_view what = gzerror(file_.get(), &code);
  if (code == Z_OK || code == Z_STREAM_END) return false;
  if (code == Z_BUF_ERROR) return malformed("the gzip data is truncated here");
  if (code == Z_ERRNO) return malformed(std::generic_category().message(system_error));
  return malformed(fmt::format("the gzip data is damaged: {}", what));
}

}  // namespace harvest
