// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zlib.h>
#include <harvest/moe/routing.hpp>

#include <cerrno>
#include <iterator>
#include <memory>
#include <system_error>

#include "base/json_reader.hpp"
#include "base/line_reader.hpp"

namespace harvest::moe {
namespace {

constexpr Phase kBothPhases[] = {Phase::prefill, Phase::decode};

/// A line's fields; `experts` holds what `line.experts` shows.
Status parse(std::string_view text, RoutingLine& line, std::vector<std::uint32_t>& experts) {
  const auto json = parse_json(text);
  if (!json) return tl::unexpected(json.error());
  Status status;
  ObjectReader reader(*json, "", status);
  reader.read("step", line.step);
  reader.read_name("phase", line.phase, kBothPhases);
  reader.read("sequence", line.sequence);
  reader.read("layer", line.layer);
  line.tokens = 1;
  if (json->contains("tokens")) reader.read("tokens", line.tokens);
  experts.clear();
  reader.read("experts", experts);
  line.experts = experts;
  return status;
}

/// A file that is written plain or gzipped.
class Output {
 public:
  Status open(const std::string& path) {
    path_ = path;
    errno = 0;
    file_.reset(gzopen(path.c_str(), path.ends_with(".gz") ? "wb6" : "wbT"));
    return file_ == nullptr ? failed() : Status{};
  }
  Status write(std::string_view text) {
    errno = 0;
    // gzwrite answers 0 for nothing as for an error.
    if (!text.empty() && gzwrite(file_.get(), text.data(), static_cast<unsigned>(text.size())) == 0)
      return failed();
    return {};
  }
  Status close() {
    errno = 0;
    return gzclose_w(file_.release()) == Z_OK ? Status{} : failed();
  }

 private:
  struct Close {
    void operator()(gzFile_s* file) const { gzclose_w(file); }
  };

  [[nodiscard]] tl::unexpected<Error> failed() const {
    const std::error_code why(errno == 0 ? ENOMEM : errno, std::generic_category());
    return fail(ErrorCode::not_found, fmt::format("'{}' cannot be written: {}", path_, why.message()));
  }

  std::string path_;
  std::unique_ptr<gzFile_s, Close> file_;
};

void append_layer(std::string& text, std::size_t number, const RoutingStep& step, std::uint32_t layer) {
  for (std::size_t i = 0; i < step.sequences().size(); ++i) {
    const auto [id, tokens] = step.sequences()[i];
    auto out = fmt::format_to(std::back_inserter(text),
                              R"({{"step": {}, "phase": "{}", "sequence": {}, "layer": {}, )", number,
                              to_string(step.phase()), id, layer);
    if (tokens != 1) out = fmt::format_to(out, R"("tokens": {}, )", tokens);
    fmt::format_to(out,
                   R"("experts": [{}]}})"
                   "\n",
                   fmt::join(step.experts(layer, i), ", "));
  }
}

}  // namespace

Result<RoutingTrace> read_routing(const std::string& path, const RoutingShape& shape,
                                  const RoutingLimits& limits) {
  if (Status valid = shape.validate(); !valid) return tl::unexpected(valid.error());
  LineReader reader("routing file", {limits.line_bytes, limits.text_bytes});
  if (auto opened = reader.open(path); !opened) return tl::unexpected(opened.error());
  RoutingTrace trace(shape);
  std::string text;
  RoutingLine line;
  std::vector<std::uint32_t> experts;
  while (true) {
    const auto more = reader.next(text);
    if (!more) return tl::unexpected(more.error());
    if (!*more) break;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (const Status parsed = parse(text, line, experts); !parsed)
      return reader.malformed(parsed.error().message);
    if (const Status added = trace.add(line); !added) return reader.malformed(added.error().message);
  }
  if (const Status whole = trace.whole(); !whole) return reader.malformed(whole.error().message);
  if (trace.empty()) return reader.malformed("the file ends without a step");
  return trace;
}

Status write_routing(const std::string& path, const RoutingTrace& trace) {
  Output file;
  if (Status opened = file.open(path); !opened) return opened;
  std::string text;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const RoutingStep step = trace.step(i);
    for (std::uint32_t layer = 0; layer < step.layers(); ++layer) {
      text.clear();
      append_layer(text, i, step, layer);
      if (Status written = file.write(text); !written) return written;
    }
  }
  return file.close();
}

}  // namespace harvest::moe
