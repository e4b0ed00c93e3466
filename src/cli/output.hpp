// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.hpp"

/// What people and scripts read. Results go to stdout; progress and complaints go to stderr.
namespace harvest::cli {

using Json = nlohmann::ordered_json;

/// "512 B", "64.0 MiB", "1.5 TiB".
[[nodiscard]] std::string format_bytes(std::uint64_t bytes);
/// "850 ns", "3.55 us", "1.2 ms", "3.4 s".
[[nodiscard]] std::string format_ns(double ns);
/// "376.0 GB/s": powers of 1000, as links are sold.
[[nodiscard]] std::string format_bandwidth(double bytes_per_s);
/// "288,500"
[[nodiscard]] std::string format_count(std::uint64_t count);
/// "GPU 3", or "host".
[[nodiscard]] std::string device_name(DeviceId device);

/// Columns as wide as their widest cell: the first to the left, the others to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  /// Requires: as many cells as the header has.
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  /// Lines that end with a newline and begin with two spaces; the header is underlined.
  [[nodiscard]] std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

/// One line on the terminal that says how far a long operation is. Silent where stderr is no terminal.
class Progress {
 public:
  Progress(std::string what, std::uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// Cheap to call often.
  void at(std::uint64_t done);

 private:
  std::string what_;
  std::uint64_t total_;
  bool terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point next_{};
};

void print_json(const Json& json);

/// One line on stderr; answers `exit`.
Exit complain(Exit exit, std::string_view command, std::string_view message);

}  // namespace harvest::cli
