// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct gzFile_s;

namespace harvest {

/// What is read at most, so that a file that has no end, or unpacks to far more than it is, does no harm.
struct LineLimits {
  std::uint64_t line_bytes = 0;
  std::uint64_t text_bytes = 0;  ///< of the whole file, unpacked
};

/// Lines of a file, plain or gzipped.
class LineReader {
 public:
  /// `what` the file is ("trace") stands in the messages.
  LineReader(std::string_view what, const LineLimits& limits) : what_(what), limits_(limits) {}

  /// Errors: not_found (a folder, or it cannot be opened).
  [[nodiscard]] Status open(const std::string& path);

  /// Makes `line` the next line, without its end. False at the end of the file. Errors: malformed (beyond the
  /// limits, a damaged or truncated gzip).
  [[nodiscard]] Result<bool> next(std::string& line);

  /// "file:line: what", for the line read last.
  [[nodiscard]] tl::unexpected<Error> malformed(std::string_view what) const;

 private:
  struct Close {
    void operator()(gzFile_s* file) const;
  };

  [[nodiscard]] Result<bool> fill();

  std::string what_;
  LineLimits limits_;
  std::unique_ptr<gzFile_s, Close> file_;
  std::string path_;
  std::array<char, 1U << 16U> chunk_{};
  std::string_view rest_;
  std::size_t number_ = 0;
  std::uint64_t text_bytes_ = 0;
};

}  // namespace harvest
