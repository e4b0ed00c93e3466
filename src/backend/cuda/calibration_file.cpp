// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <harvest/cuda.hpp>
#include <system_error>
#include <utility>

#include "backend/cuda/calibration.hpp"
#include "base/json_reader.hpp"
#include "base/text_file.hpp"

namespace harvest::cuda {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr std::uint32_t kFormat = 1;
constexpr LinkClass kAllClasses[] = {LinkClass::host_to_device, LinkClass::device_to_host, LinkClass::peer,
                                     LinkClass::same_device};

CopyThresholds read_thresholds(const Json& json, const std::string& path, Status& status) {
  constexpr std::uint32_t kManyRuns = std::numeric_limits<std::uint32_t>::max();
  CopyThresholds result;
  ObjectReader reader(json, path, status);
  reader.allow(
      {"kernel_below_bytes", "kernel_min_runs", "kernel_blocks", "batch_below_bytes", "batch_min_runs"});
  reader.read("kernel_below_bytes", result.kernel_below_bytes);
  reader.read("kernel_min_runs", result.kernel_min_runs, 1U, kManyRuns);
  reader.read("kernel_blocks", result.kernel_blocks, 1U, kMaxKernelBlocks);
  reader.read("batch_below_bytes", result.batch_below_bytes);
  reader.read("batch_min_runs", result.batch_min_runs, 1U, kManyRuns);
  return result;
}

OrderedJson thresholds_json(const CopyThresholds& thresholds) {
  return {{"kernel_below_bytes", thresholds.kernel_below_bytes},
          {"kernel_min_runs", thresholds.kernel_min_runs},
          {"kernel_blocks", thresholds.kernel_blocks},
          {"batch_below_bytes", thresholds.batch_below_bytes},
          {"batch_min_runs", thresholds.batch_min_runs}};
}

CardCalibration read_card(const Json& json, const std::string& path, Status& status) {
  CardCalibration result;
  ObjectReader reader(json, path, status);
  reader.allow({"card", "driver", "links"});
  reader.read("card", result.card);
  reader.read("driver", result.driver);
  if (status && (result.card.empty() || result.driver.empty()))
    status = fail(ErrorCode::malformed, fmt::format("{} is '{}' with driver '{}', neither may be empty", path,
                                                    result.card, result.driver));
  if (const Json* links = reader.find("links")) {
    ObjectReader classes(*links, reader.at("links"), status);
    classes.allow({"host_to_device", "device_to_host", "peer", "same_device"});
    for (LinkClass link : kAllClasses)
      if (const Json* thresholds = classes.find(to_string(link)))
        result.thresholds[link] = read_thresholds(*thresholds, classes.at(to_string(link)), status);
  }
  return result;
}

Result<std::vector<CardCalibration>> parse_file(std::string_view text) {
  const Result<Json> json = parse_json(text);
  if (!json) return tl::unexpected(json.error());
  Status status;
  std::uint32_t format = 0;
  std::vector<CardCalibration> cards;
  ObjectReader reader(*json, "", status);
  reader.allow({"format", "cards"});
  reader.read("format", format, kFormat, kFormat);
  reader.each("cards", [&](const Json& value, const std::string& path) {
    CardCalibration card = read_card(value, path, status);
    const auto same = [&](const CardCalibration& other) {
      return other.card == card.card && other.driver == card.driver;
    };
    if (status && std::any_of(cards.begin(), cards.end(), same))
      status = fail(ErrorCode::malformed, fmt::format("{} is '{}' with driver '{}', which is there before it",
                                                      path, abridged(card.card), abridged(card.driver)));
    cards.push_back(std::move(card));
  });
  if (!status) return tl::unexpected(status.error());
  return cards;
}

std::string to_text(std::span<const CardCalibration> cards) {
  OrderedJson json{{"format", kFormat}, {"cards", OrderedJson::array()}};
  for (const CardCalibration& card : cards) {
    OrderedJson links;
    for (LinkClass link : kAllClasses)
      links[std::string(to_string(link))] = thresholds_json(card.thresholds[link]);
    json["cards"].push_back({{"card", card.card}, {"driver", card.driver}, {"links", std::move(links)}});
  }
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

Status cannot_write(const std::string& path, int error) {
  return fail(ErrorCode::unavailable, fmt::format("cannot write calibration file '{}': {}", path,
                                                  std::generic_category().message(error)));
}

/// The whole text, and on the disk: a rename that a power cut outlives must not name an empty file.
int write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return ::fsync(descriptor) == 0 ? 0 : errno;
}

struct Temporary {
  int descriptor = -1;
  std::string name;
};

/// A new file beside `path`, which will take its name.
Result<Temporary> make_temporary(const std::string& path) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error) return tl::unexpected(cannot_write(path, error.value()).error());
  Temporary temporary{-1, path + ".XXXXXX"};
  temporary.descriptor = ::mkstemp(temporary.name.data());
  if (temporary.descriptor < 0) return tl::unexpected(cannot_write(path, errno).error());
  return temporary;
}

Status replace_file(const std::string& path, std::string_view text) {
  const Result<Temporary> temporary = make_temporary(path);
  if (!temporary) return tl::unexpected(temporary.error());
  int failure = write_all(temporary->descriptor, text);
  if (::close(temporary->descriptor) != 0 && failure == 0) failure = errno;
  if (failure == 0 && ::rename(temporary->name.c_str(), path.c_str()) != 0) failure = errno;
  if (failure == 0) return {};
  ::unlink(temporary->name.c_str());
  return cannot_write(path, failure);
}

/// What is in the file; nothing where there is none. What is there and cannot be read is somebody's.
Result<std::vector<CardCalibration>> read_if_there(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status there = std::filesystem::status(path, error);
  if (there.type() == std::filesystem::file_type::not_found) return std::vector<CardCalibration>{};
  return read_calibrations(path);
}

}  // namespace

Result<std::vector<CardCalibration>> read_calibrations(const std::string& path) {
  const Result<std::string> text = read_text_file(path, "calibration file");
  if (!text) return tl::unexpected(text.error());
  return parse_file(*text).map_error([&](Error error) {
    return Error{error.code, fmt::format("{}: {}", path, error.message)};
  });
}

Status check_can_write(const std::string& path) {
  if (const auto there = read_if_there(path); !there) return tl::unexpected(there.error());
  const Result<Temporary> temporary = make_temporary(path);
  if (!temporary) return tl::unexpected(temporary.error());
  ::close(temporary->descriptor);
  ::unlink(temporary->name.c_str());
  return {};
}

Status write_calibration(const std::string& path, const CardCalibration& entry) {
  if (path.empty() || entry.card.empty() || entry.driver.empty())
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("file '{}', card '{}', driver '{}': none may be empty", path, entry.card, entry.driver));
  for (LinkClass link : kAllClasses)
    if (const CopyThresholds& thresholds = entry.thresholds[link]; !thresholds.is_valid())
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{}: at least 1 run each (kernel {}, batch {}) and 1 to {} blocks ({})",
                              to_string(link), thresholds.kernel_min_runs, thresholds.batch_min_runs,
                              kMaxKernelBlocks, thresholds.kernel_blocks));
  Result<std::vector<CardCalibration>> cards = read_if_there(path);
  if (!cards) return tl::unexpected(cards.error());
  std::erase_if(*cards, [&](const CardCalibration& card) {
    return card.card == entry.card && card.driver == entry.driver;
  });
  cards->push_back(entry);
  return replace_file(path, to_text(*cards));
}

}  // namespace harvest::cuda

namespace harvest {

std::string cuda_calibration_file() {
  // A relative path in $XDG_CACHE_HOME is to be ignored: XDG Base Directory Specification 0.8.
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && cache[0] == '/')
    return std::string(cache) + "/harvest/calibration.json";
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0] != '\0')
    return std::string(home) + "/.cache/harvest/calibration.json";
  return {};
}

}  // namespace harvest
