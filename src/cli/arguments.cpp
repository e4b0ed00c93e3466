// SPDX-License-Identifier: Apache-2.0
#include "cli/arguments.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <array>
#include <charconv>
#include <cmath>

#include "cli/output.hpp"

namespace harvest::cli {
namespace {

struct Unit {
  std::string_view name;
  std::uint64_t bytes;
};
constexpr std::array kUnits{
    Unit{"", 1},
    Unit{"B", 1},
    Unit{"KiB", 1ULL << 10},
    Unit{"MiB", 1ULL << 20},
    Unit{"GiB", 1ULL << 30},
    Unit{"TiB", 1ULL << 40},
    Unit{"KB", 1'000},
    Unit{"kB", 1'000},
    Unit{"MB", 1'000'000},
    Unit{"GB", 1'000'000'000},
    Unit{"TB", 1'000'000'000'000},
};
constexpr std::uint64_t kMostBytes = 1ULL << 50;
constexpr std::size_t kMostCounts = 10'000;  ///< in one list

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t";
  const auto begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

/// Appends the numbers of "FROM..TO+STEP" or "FROM..TOxFACTOR", of which `dots` is the place of the dots.
Status append_range(std::string_view text, std::size_t dots, std::uint64_t least, std::uint64_t most,
                    std::vector<std::uint64_t>& counts) {
  const std::string_view rest = text.substr(dots + 2);
  const std::size_t sign = rest.find_first_of("+x");
  if (sign == std::string_view::npos)
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("'{}' does not say how it goes on: write FROM..TO+STEP or FROM..TOxFACTOR", text));
  const bool by_factor = rest[sign] == 'x';
  const auto from = parse_count(text.substr(0, dots), least, most);
  if (!from) return tl::unexpected(from.error());
  const auto to = parse_count(rest.substr(0, sign), *from, most);
  if (!to) return tl::unexpected(to.error());
  const auto step = parse_count(rest.substr(sign + 1), by_factor ? 2 : 1, most);
  if (!step) return tl::unexpected(step.error());
  if (by_factor && *from == 0)
    return fail(ErrorCode::invalid_argument, fmt::format("'{}' never leaves 0", text));
  for (std::uint64_t count = *from; counts.size() <= kMostCounts;) {
    counts.push_back(count);
    const bool passes = by_factor ? count > *to / *step : *to - count < *step;
    if (passes) break;
    count = by_factor ? count * *step : count + *step;
  }
  return {};
}

/// What `parse` says of what was typed after `name`; CLI11 hears of errors by its own exception.
template <typename T, typename Parse>
CLI::Option* add_parsed(CLI::App& app, const std::string& name, T& target, const std::string& description,
                        Parse parse) {
  return app.add_option_function<std::string>(
      name,
      [name, &target, parse](const std::string& text) {
        auto value = parse(text);
        if (!value) throw CLI::ValidationError(name, value.error().message);
        target = std::move(*value);
      },
      description);
}

}  // namespace

Result<std::uint64_t> parse_bytes(std::string_view text) {
  const auto wrong = [&] {
    return fail(ErrorCode::invalid_argument,
                fmt::format("'{}' is not a size: write bytes (1024), or a number with KiB, MiB, GiB or TiB "
                            "(16GiB), or with KB, MB, GB or TB (60GB)",
                            text));
  };
  const std::string_view all = trim(text);
  const auto digits = all.substr(0, all.find_first_not_of("0123456789."));
  const auto unit_name = trim(all.substr(digits.size()));
  double number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (digits.empty() || error != std::errc{} || end != digits.data() + digits.size()) return wrong();
  for (const Unit& unit : kUnits) {
    if (unit.name != unit_name) continue;
    const double bytes = number * static_cast<double>(unit.bytes);
    if (bytes > 0 && bytes < 1) return wrong();
    if (bytes > static_cast<double>(kMostBytes))
      return fail(ErrorCode::invalid_argument,
                  fmt::format("'{}' is more than the limit of {}", text, format_bytes(kMostBytes)));
    return static_cast<std::uint64_t>(std::llround(bytes));
  }
  return wrong();
}

Result<std::uint64_t> parse_count(std::string_view text, std::uint64_t least, std::uint64_t most) {
  const std::string_view digits = trim(text);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error == std::errc{} && end == digits.data() + digits.size() && value >= least && value <= most)
    return value;
  const std::string limit =
      most == UINT64_MAX ? fmt::format("of at least {}", least) : fmt::format("from {} to {}", least, most);
  return fail(ErrorCode::invalid_argument, fmt::format("'{}' is not a whole number {}", text, limit));
}

Result<std::vector<std::uint64_t>> parse_counts(std::string_view text, std::uint64_t least,
                                                std::uint64_t most) {
  std::vector<std::uint64_t> counts;
  for (const std::string& part : split_list(text)) {
    if (const std::size_t dots = part.find(".."); dots != std::string::npos) {
      if (Status status = append_range(part, dots, least, most, counts); !status)
        return tl::unexpected(status.error());
    } else {
      const auto count = parse_count(part, least, most);
      if (!count) return tl::unexpected(count.error());
      counts.push_back(*count);
    }
    if (counts.size() > kMostCounts)
      return fail(ErrorCode::invalid_argument, fmt::format("the list has more than {} numbers", kMostCounts));
  }
  if (counts.empty()) return fail(ErrorCode::invalid_argument, "the list is empty");
  return counts;
}

std::vector<std::string> split_list(std::string_view text) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  for (auto comma = text.find(','); comma != std::string_view::npos; comma = text.find(',')) {
    parts.emplace_back(trim(text.substr(0, comma)));
    text.remove_prefix(comma + 1);
  }
  parts.emplace_back(trim(text));
  return parts;
}

CLI::Option* add_name(CLI::App& app, const std::string& name, std::string& target,
                      const std::string& description) {
  const auto parse = [](const std::string& text) -> Result<std::string> {
    if (text.empty()) return fail(ErrorCode::invalid_argument, "'' is not a name");
    return text;
  };
  return add_parsed(app, name, target, description, parse)->type_name("NAME")->default_str(target);
}

void add_json(CLI::App& app, bool& target) {
  app.add_flag("--json", target, "Print JSON")->disable_flag_override();
}

CLI::Option* add_bytes(CLI::App& app, const std::string& name, std::uint64_t& target,
                       const std::string& description) {
  return add_parsed(app, name, target, description, parse_bytes)
      ->type_name("BYTES")
      ->default_str(format_bytes(target));
}

CLI::Option* add_count(CLI::App& app, const std::string& name, std::uint64_t& target, CountRange range,
                       const std::string& description) {
  return add_parsed(app, name, target, description,
                    [range](std::string_view text) { return parse_count(text, range.least, range.most); })
      ->type_name("N")
      ->default_str(fmt::format("{}", target));
}

CLI::Option* add_counts(CLI::App& app, const std::string& name, std::vector<std::uint64_t>& target,
                        CountRange range, const std::string& description) {
  return add_parsed(app, name, target, description,
                    [range](std::string_view text) { return parse_counts(text, range.least, range.most); })
      ->type_name("N,N,...")
      ->default_str(fmt::format("{}", fmt::join(target, ",")));
}

CLI::Option* add_names(CLI::App& app, const std::string& name, std::vector<std::string>& target,
                       const std::string& description) {
  return app
      .add_option_function<std::string>(
          name,
          [name, &target](const std::string& text) {
            target = split_list(text);
            if (target.empty()) throw CLI::ValidationError(name, "the list is empty");
          },
          description)
      ->type_name("NAME,NAME,...");
}

Result<Machine> read_system_with_peer(const std::string& name) {
  auto machine = load_machine(name);
  if (!machine) return fail(machine.error().code, "--system: " + machine.error().message);
  if (machine->devices.size() < 3)
    return fail(ErrorCode::invalid_argument,
                fmt::format("--system: {} has {} GPU, a consumer and a peer make at least 2", machine->name,
                            machine->devices.size() - 1));
  return machine;
}

void add_trace(CLI::App& app, TraceOptions& target) {
  app.add_option("--trace", target.path, "The trace, gzipped or not")->type_name("FILE")->required();
  app.add_option("--format", target.format, "How it is written: mooncake is the only format known")
      ->type_name("NAME")
      ->capture_default_str();
}

Result<Trace> read_trace(const TraceOptions& options) {
  if (options.format != "mooncake")
    return fail(ErrorCode::invalid_argument,
                fmt::format("--format: no trace format is named '{}'; known is mooncake", options.format));
  auto trace = read_mooncake_trace(options.path);
  if (!trace) return fail(trace.error().code, fmt::format("--trace: {}", trace.error().message));
  return trace;
}

}  // namespace harvest::cli
