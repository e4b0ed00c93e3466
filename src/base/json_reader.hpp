// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <harvest/status.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

/// Reading of JSON that people write: what is wrong comes back with its place, its value and what it must be.
namespace harvest {

/// Not the kind that keeps the order of fields: its look-up is linear, and what is read may have many.
using Json = nlohmann::json;

/// Whole if it is short, else its beginning: a message is a sentence.
inline std::string abridged(std::string_view text, std::size_t most_bytes = 60) {
  if (text.size() <= most_bytes) return std::string(text);
  std::size_t end = most_bytes - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;  // within a character
  return fmt::format("{}...", text.substr(0, end));
}

/// The library's own exceptions end here and become a value.
inline Result<Json> parse_json(std::string_view text) {
  try {
    return Json::parse(text, nullptr, /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const Json::exception& error) {  // a parse_error, or out_of_range for a number like 1e999
    // Its sentence begins with its own code, and may show what was read last, however long that is.
    std::string_view what = error.what();
    what.remove_prefix(std::min(what.find("] ") + 2, what.size()));
    return fail(ErrorCode::malformed,
                fmt::format("not JSON: {}", abridged(what.substr(0, what.find("; last read: ")), 200)));
  }
}

/// Reads the fields of one object. The first thing that is wrong stays in `status`; later reads do
/// nothing, so a caller reads all fields in a row and looks once.
class ObjectReader {
 public:
  ObjectReader(const Json& json, std::string path, Status& status)
      : json_(json), path_(std::move(path)), status_(status) {
    if (status_ && !json.is_object()) complain(path_, json, "an object");
  }

  /// Says which fields there may be at all, so that a misspelt one does not go unseen.
  void allow(std::initializer_list<std::string_view> fields) {
    if (!status_) return;
    for (const auto& [key, value] : json_.items())
      if (std::find(fields.begin(), fields.end(), key) == fields.end()) {
        status_ = fail(ErrorCode::malformed, fmt::format("unknown field {}; known are {}", at(abridged(key)),
                                                         fmt::join(fields, ", ")));
        return;
      }
  }

  void read(std::string_view name, std::string& out) {
    if (const Json* value = find(name); value && check(name, *value, value->is_string(), "a string"))
      out = value->get<std::string>();
  }
  void read(std::string_view name, bool& out) {
    if (const Json* value = find(name); value && check(name, *value, value->is_boolean(), "true or false"))
      out = value->get<bool>();
  }
  void read(std::string_view name, double& out) {
    if (const Json* value = find(name); value && check(name, *value, value->is_number(), "a number"))
      out = value->get<double>();
  }
  template <typename Integer>
  requires std::is_integral_v<Integer>
  void read(std::string_view name, Integer& out) {
    using Limits = std::numeric_limits<Integer>;
    read(name, out, Limits::min(), Limits::max());
  }
  template <typename Integer>
  requires std::is_integral_v<Integer>
  void read(std::string_view name, Integer& out, Integer low, Integer high) {
    const auto path = [&] { return at(name); };
    if (const Json* value = find(name)) read_integer(path, *value, out, low, high);
  }
  /// One of `values`, by the name that `to_string` gives it.
  template <typename Enum, std::size_t kCount>
  void read_name(std::string_view name, Enum& out, const Enum (&values)[kCount]) {
    std::string text;
    read(name, text);
    if (!status_) return;
    std::vector<std::string_view> known;
    for (Enum value : values) {
      known.push_back(to_string(value));
      if (known.back() != text) continue;
      out = value;
      return;
    }
    status_ = fail(ErrorCode::malformed,
                   fmt::format("{} is '{}'; known are {}", at(name), abridged(text), fmt::join(known, ", ")));
  }
  void read(std::string_view name, std::vector<std::uint32_t>& out) {
    const Json* value = find(name);
    if (!value || !check(name, *value, value->is_array(), "an array")) return;
    using Limits = std::numeric_limits<std::uint32_t>;
    for (std::size_t i = 0; i < value->size() && status_; ++i) {
      std::uint32_t number = 0;
      const auto path = [&] { return fmt::format("{}[{}]", at(name), i); };
      read_integer(path, (*value)[i], number, Limits::min(), Limits::max());
      out.push_back(number);
    }
  }

  template <typename Body>
  void each(std::string_view name, Body body) {
    const Json* value = find(name);
    if (!value || !check(name, *value, value->is_array(), "an array")) return;
    for (std::size_t i = 0; i < value->size() && status_; ++i)
      body((*value)[i], fmt::format("{}[{}]", at(name), i));
  }

  const Json* find(std::string_view name) {
    if (!status_) return nullptr;
    const auto found = json_.find(std::string(name));
    if (found != json_.end()) return &*found;
    status_ = fail(ErrorCode::malformed, fmt::format("field {} is missing", at(name)));
    return nullptr;
  }

  [[nodiscard]] std::string at(std::string_view name) const {
    return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
  }

 private:
  void complain(const std::string& path, const Json& value, std::string_view wanted) {
    status_ = fail(
        ErrorCode::malformed,
        fmt::format("{} is {}, it must be {}", path.empty() ? "the document" : path, shown(value), wanted));
  }
  /// The library writes JSON recursively: what is nested deeply would not fit on the stack.
  static std::string shown(const Json& value) {
    const auto is_structured = [](const Json& part) { return part.is_structured(); };
    if (value.is_structured() && std::any_of(value.begin(), value.end(), is_structured))
      return fmt::format("a JSON {}", value.type_name());
    return abridged(value.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  bool check(std::string_view name, const Json& value, bool good, std::string_view wanted) {
    if (!good) complain(at(name), value, wanted);
    return good;
  }
  /// `path` is a function that answers it: long lists are read, and seldom complained of.
  template <typename Path, typename Integer>
  void read_integer(Path path, const Json& value, Integer& out, Integer low, Integer high) {
    bool good = value.is_number_integer();
    if (good && value.is_number_unsigned())
      good = std::in_range<Integer>(value.get<std::uint64_t>());
    else if (good)
      good = std::in_range<Integer>(value.get<std::int64_t>());
    if (good) good = value.get<Integer>() >= low && value.get<Integer>() <= high;
    if (good)
      out = value.get<Integer>();
    else
      complain(path(), value, fmt::format("an integer from {} to {}", low, high));
  }

  const Json& json_;
  std::string path_;
  Status& status_;
};

}  // namespace harvest
