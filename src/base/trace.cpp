// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <harvest/trace.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "base/assert.hpp"
#include "base/line_reader.hpp"

namespace harvest {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kMaxMs = static_cast<std::uint64_t>(kNever) / kNsPerMs;

/// Collects the first thing that is wrong with one line's fields.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  std::uint64_t number(const char* name, std::uint64_t most = std::numeric_limits<std::uint64_t>::max()) {
    const Json* field = find(name);
    return field == nullptr ? 0 : as_number(*field, name, most);
  }

  std::vector<std::uint64_t> numbers(const char* name) {
    std::vector<std::uint64_t> values;
    const Json* field = find(name);
    if (field == nullptr) return values;
    if (!field->is_array()) {
      complain(fmt::format("'{}' is a JSON {}, not an array of numbers", name, field->type_name()));
      return values;
    }
    values.reserve(field->size());
    for (const Json& value : *field) {
      values.push_back(as_number(value, name, std::numeric_limits<std::uint64_t>::max()));
    }
    return values;
  }

  /// Empty if every field was well.
  [[nodiscard]] const std::string& complaint() const { return complaint_; }

 private:
  const Json* find(const char* name) {
    const auto field = object_.find(name);
    if (field != object_.end()) return &*field;
    complain(fmt::format("no field '{}'", name));
    return nullptr;
  }

  std::uint64_t as_number(const Json& value, const char* name, std::uint64_t most) {
    if (!value.is_number_unsigned()) {
      complain(fmt::format("'{}' has {}, not a whole number from 0 on", name, abridged(value)));
      return 0;
    }
    const auto number = value.get<std::uint64_t>();
    if (number > most) complain(fmt::format("'{}' is {}; at most {}", name, number, most));
    return number;
  }

  /// A long or nested value would hide the message, and a string may hold what JSON cannot print.
  static std::string abridged(const Json& value) {
    return value.is_number() ? value.dump() : fmt::format("a JSON {}", value.type_name());
  }

  void complain(std::string what) {
    if (complaint_.empty()) complaint_ = std::move(what);
  }

  const Json& object_;
  std::string complaint_;
};

/// A request, or what is wrong with the line.
tl::expected<TraceRequest, std::string> parse_request(const std::string& line) {
  Json object;
  try {
    object = Json::parse(line);
  } catch (const Json::parse_error& error) {
    // The library's sentence begins with its own code and a line that is always 1.
    return tl::unexpected(fmt::format("not JSON, at or before column {} of {}", error.byte, line.size()));
  } catch (const Json::out_of_range&) {
    return tl::unexpected(std::string("a number is beyond the range of floating point"));
  }
  if (!object.is_object()) {
    return tl::unexpected(fmt::format("a JSON {}, not an object", object.type_name()));
  }
  Fields fields(object);
  TraceRequest request;
  request.arrival_ns = static_cast<TimeNs>(fields.number("timestamp", kMaxMs) * kNsPerMs);
  request.input_tokens = fields.number("input_length");
  request.output_tokens = fields.number("output_length");
  request.block_ids = fields.numbers("hash_ids");
  if (!fields.complaint().empty()) return tl::unexpected(fields.complaint());
  return request;
}

}  // namespace

Result<Trace> read_mooncake_trace(const std::string& path, const TraceLimits& limits) {
  LineReader reader("trace", {limits.line_bytes, limits.text_bytes});
  if (auto opened = reader.open(path); !opened) return tl::unexpected(opened.error());
  Trace trace;
  std::string line;
  while (true) {
    const auto more = reader.next(line);
    if (!more) return tl::unexpected(more.error());
    if (!*more) break;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    auto request = parse_request(line);
    if (!request) return reader.malformed(request.error());
    if (!trace.requests.empty() && request->arrival_ns < trace.requests.back().arrival_ns) {
      return reader.malformed(fmt::format("'timestamp' goes back from {} to {} ms",
                                          trace.requests.back().arrival_ns / static_cast<TimeNs>(kNsPerMs),
                                          request->arrival_ns / static_cast<TimeNs>(kNsPerMs)));
    }
    trace.requests.push_back(std::move(*request));
  }
  if (trace.requests.empty()) return reader.malformed("the file ends without a request");
  return trace;
}

std::vector<Key> Trace::block_accesses() const {
  std::vector<Key> accesses;
  for (const TraceRequest& request : requests) {
    accesses.insert(accesses.end(), request.block_ids.begin(), request.block_ids.end());
  }
  return accesses;
}

void spread_arrivals(Trace& trace, TimeNs step_ns) {
  HARVEST_ASSERT(step_ns > 0, fmt::format("step_ns is {}, at least 1", step_ns));
  auto& requests = trace.requests;
  for (std::size_t first = 0; first < requests.size();) {
    const TimeNs begin_ns = requests[first].arrival_ns;
    std::size_t end = first;
    while (end < requests.size() && requests[end].arrival_ns == begin_ns) ++end;
    TimeNs length_ns = std::min(step_ns, kNever - begin_ns);
    HARVEST_ASSERT(end == requests.size() || requests[end].arrival_ns > begin_ns,
                   "arrivals may not go backwards");
    if (end < requests.size()) length_ns = std::min(length_ns, requests[end].arrival_ns - begin_ns);
    const auto count = static_cast<TimeNs>(end - first);
    for (TimeNs i = 0; i < count; ++i) {
      requests[first + static_cast<std::size_t>(i)].arrival_ns =
          begin_ns + length_ns / count * i + length_ns % count * i / count;
    }
    first = end;
  }
}

}  // namespace harvest
