// SPDX-License-Identifier: Apache-2.0
#include "cli/owner_trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <optional>
#include <system_error>

#include "base/text_file.hpp"

namespace harvest::cli {
namespace {

constexpr std::string_view kHeader = "time_s,device,used_bytes";
constexpr TimeNs kSecondNs = 1'000'000'000;
constexpr std::uint64_t kLatestS = 9'000'000'000;  // clocks that count from 1970 are at 1.8e9
constexpr std::size_t kColumns = 3;
constexpr std::uint64_t kMostBytes = 256ULL << 20;  // about ten million rows
constexpr std::size_t kMostShown = 40;

/// A long value would hide the message, and what cannot be printed would spoil it.
std::string quoted(std::string_view value) {
  std::string shown(value.substr(0, kMostShown));
  std::replace_if(
      shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return fmt::format("'{}{}'", shown, value.size() > kMostShown ? "..." : "");
}

/// The whole of `text` as a number, or nothing.
template <typename Number>
std::optional<Number> number_of(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// Seconds as they are written, to the nanosecond: no rounding on the way. Nothing if they are none.
std::optional<TimeNs> time_of(std::string_view text) {
  const auto point = text.find('.');
  const auto seconds = number_of<std::uint64_t>(text.substr(0, point));
  if (!seconds || *seconds >= kLatestS) return std::nullopt;
  TimeNs ns = static_cast<TimeNs>(*seconds) * kSecondNs;
  if (point == std::string_view::npos) return ns;
  const std::string_view fraction = text.substr(point + 1);
  if (fraction.empty()) return std::nullopt;
  TimeNs unit = kSecondNs;
  for (const char digit : fraction) {
    if (digit < '0' || digit > '9') return std::nullopt;
    unit /= 10;
    ns += (digit - '0') * unit;
  }
  return ns;
}

std::string written(TimeNs ns) {
  return fmt::format("{}.{:09}", ns / kSecondNs, ns % kSecondNs);
}

/// One line after another, and what is wrong with it.
class Parser {
 public:
  Parser(std::string_view name, std::span<const OwnedDevice> known) : name_(name), known_(known) {}

  [[nodiscard]] Status take(std::string_view line) {
    ++number_;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (number_ > 1) return take_row(line);
    if (line == kHeader) return {};
    return wrong(fmt::format("the first line is {}, not {}", quoted(line), kHeader));
  }

  [[nodiscard]] Result<OwnerTrace> end() {
    if (number_ == 0) return fail(ErrorCode::malformed, fmt::format("{}: the file is empty", name_));
    if (trace_.steps.empty())
      return fail(ErrorCode::malformed, fmt::format("{}: no row follows the header", name_));
    if (trace_.duration_ns() == 0)
      return fail(ErrorCode::malformed,
                  fmt::format("{}: all rows are of one time; a recording has a beginning and an end", name_));
    return std::move(trace_);
  }

 private:
  [[nodiscard]] tl::unexpected<Error> wrong(const std::string& what) const {
    return fail(ErrorCode::malformed, fmt::format("{}:{}: {}", name_, number_, what));
  }

  [[nodiscard]] Status take_row(std::string_view line) {
    std::array<std::string_view, kColumns> cells;
    const auto commas = static_cast<std::size_t>(std::count(line.begin(), line.end(), ','));
    if (commas + 1 != kColumns)
      return wrong(fmt::format("{} columns in {}, not {} ({})", line.empty() ? 0 : commas + 1, quoted(line),
                               kColumns, kHeader));
    for (std::string_view& cell : cells) {
      cell = line.substr(0, line.find(','));
      line.remove_prefix(std::min(line.size(), cell.size() + 1));
    }
    const auto at_ns = take_time(cells[0]);
    if (!at_ns) return tl::unexpected(at_ns.error());
    const auto device = take_device(cells[1]);
    if (!device) return tl::unexpected(device.error());
    const auto used = number_of<std::uint64_t>(cells[2]);
    if (!used || *used > device->total_bytes)
      return wrong(fmt::format("used_bytes is {}, not a whole number from 0 to {}, which device {} has",
                               quoted(cells[2]), device->total_bytes, device->device));
    if (trace_.steps.empty()) first_ns_ = *at_ns;
    trace_.steps.push_back({*at_ns - first_ns_, device->device, *used});
    return {};
  }

  [[nodiscard]] Result<TimeNs> take_time(std::string_view cell) const {
    const auto at_ns = time_of(cell);
    if (!at_ns)
      return wrong(
          fmt::format("time_s is {}, not seconds from 0 to {}, as in 57.25", quoted(cell), kLatestS));
    if (!trace_.steps.empty() && *at_ns - first_ns_ < trace_.duration_ns())
      return wrong(fmt::format("time_s is {}, before the {} of the row above", quoted(cell),
                               written(first_ns_ + trace_.duration_ns())));
    return *at_ns;
  }

  [[nodiscard]] Result<OwnedDevice> take_device(std::string_view cell) const {
    const auto id = number_of<DeviceId>(cell);
    const auto found = std::find_if(known_.begin(), known_.end(),
                                    [&](const OwnedDevice& device) { return id && device.device == *id; });
    if (found != known_.end()) return *found;
    std::string ids;
    for (const OwnedDevice& device : known_)
      ids += fmt::format("{}{}", ids.empty() ? "" : ", ", device.device);
    return wrong(fmt::format("device is {}; those that have owners are {}", quoted(cell), ids));
  }

  std::string_view name_;
  std::span<const OwnedDevice> known_;
  std::size_t number_ = 0;
  TimeNs first_ns_ = 0;
  OwnerTrace trace_;
};

}  // namespace

std::vector<DeviceId> OwnerTrace::devices() const {
  std::vector<DeviceId> devices;
  for (const OwnerStep& step : steps) devices.push_back(step.device);
  std::sort(devices.begin(), devices.end());
  devices.erase(std::unique(devices.begin(), devices.end()), devices.end());
  return devices;
}

Result<OwnerTrace> parse_owner_trace(std::string_view text, std::string_view name,
                                     std::span<const OwnedDevice> known) {
  Parser parser(name, known);
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    if (Status taken = parser.take(text.substr(0, end)); !taken) return tl::unexpected(taken.error());
    text.remove_prefix(std::min(text.size(), end + 1));
  }
  return parser.end();
}

Result<OwnerTrace> read_owner_trace(const std::string& path, std::span<const OwnedDevice> known) {
  const auto text = read_text_file(path, "recording of owners", kMostBytes);
  if (!text) return tl::unexpected(text.error());
  return parse_owner_trace(*text, path, known);
}

std::string to_csv(const OwnerTrace& trace) {
  std::string text = fmt::format("{}\n", kHeader);
  for (const OwnerStep& step : trace.steps)
    text += fmt::format("{},{},{}\n", written(step.at_ns), step.device, step.used_bytes);
  return text;
}

Status write_owner_trace(const std::string& path, const OwnerTrace& trace) {
  errno = 0;
  std::ofstream file(path, std::ios::binary);
  file << to_csv(trace);
  file.close();
  if (file) return {};
  return fail(ErrorCode::not_found,
              fmt::format("'{}' cannot be written: {}", path, std::generic_category().message(errno)));
}

}  // namespace harvest::cli
