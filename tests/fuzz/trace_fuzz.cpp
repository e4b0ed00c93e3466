// SPDX-License-Identifier: Apache-2.0
// Any bytes as a trace file. What is accepted is in order, is the same when it is written out and read again,
// gzipped or not, and survives the spreading of its arrivals; what is refused is refused with its place.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zlib.h>
#include <harvest/trace.hpp>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/assert.hpp"
#include "fuzz/memory_file.hpp"
#include "fuzz/refused_line.hpp"

namespace harvest::fuzz {
namespace {

bool same(const Trace& a, const Trace& b) {
  return std::equal(a.requests.begin(), a.requests.end(), b.requests.begin(), b.requests.end(),
                    [](const TraceRequest& x, const TraceRequest& y) {
                      return x.arrival_ns == y.arrival_ns && x.input_tokens == y.input_tokens &&
                             x.output_tokens == y.output_tokens && x.block_ids == y.block_ids;
                    });
}

std::string to_text(const Trace& trace) {
  std::string text;
  for (const TraceRequest& request : trace.requests)
    text += fmt::format(R"({{"timestamp": {}, "input_length": {}, "output_length": {}, "hash_ids": [{}]}})"
                        "\n",
                        request.arrival_ns / 1'000'000, request.input_tokens, request.output_tokens,
                        fmt::join(request.block_ids, ", "));
  return text;
}

void write_gzipped(const MemoryFile& file, std::string_view text) {
  const gzFile packed = gzopen(file.path().c_str(), "wb1");
  const int written = gzwrite(packed, text.data(), static_cast<unsigned>(text.size()));
  HARVEST_ASSERT(gzclose(packed) == Z_OK && written == static_cast<int>(text.size()), "gzip failed");
}

void check_arrivals(const Trace& trace, TimeNs limit_ns) {
  TimeNs last_ns = 0;
  for (const TraceRequest& request : trace.requests) {
    HARVEST_ASSERT(request.arrival_ns >= last_ns && request.arrival_ns <= limit_ns,
                   "arrivals are not in order");
    last_ns = request.arrival_ns;
  }
}

void check_accepted(const Trace& trace) {
  HARVEST_ASSERT(!trace.requests.empty(), "a trace has no request");
  check_arrivals(trace, kNever);
  std::size_t blocks = 0;
  for (const TraceRequest& request : trace.requests) blocks += request.block_ids.size();
  HARVEST_ASSERT(trace.block_accesses().size() == blocks, "block accesses are missing");

  static const MemoryFile file;
  const std::string text = to_text(trace);
  file.fill(text);
  const Result<Trace> again = read_mooncake_trace(file.path());
  HARVEST_ASSERT(again && same(*again, trace), "what was written out reads otherwise");
  write_gzipped(file, text);
  const Result<Trace> unpacked = read_mooncake_trace(file.path());
  HARVEST_ASSERT(unpacked && same(*unpacked, trace), "what was gzipped reads otherwise");

  for (const TimeNs step_ns : {TimeNs{1}, kMooncakeStepNs, kNever}) {
    Trace spread = trace;
    spread_arrivals(spread, step_ns);
    check_arrivals(spread, kNever);
    HARVEST_ASSERT(spread.requests.front().arrival_ns == trace.requests.front().arrival_ns,
                   "the first arrival moved");
  }
}

/// Limits refuse, and change nothing else.
void check_limits(const Result<Trace>& trace, const std::string& path) {
  const Result<Trace> limited = read_mooncake_trace(path, {.line_bytes = 128, .text_bytes = 512});
  if (limited)
    HARVEST_ASSERT(trace && same(*limited, *trace), "a limit changed a trace");
  else if (trace || limited.error().message != trace.error().message)
    HARVEST_ASSERT(limited.error().message.ends_with(" bytes"), limited.error().message);
}

}  // namespace
}  // namespace harvest::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace harvest;
  static const fuzz::MemoryFile file;
  file.fill({reinterpret_cast<const char*>(data), size});
  const Result<Trace> trace = read_mooncake_trace(file.path());
  fuzz::check_limits(trace, file.path());
  if (trace)
    fuzz::check_accepted(*trace);
  else
    fuzz::check_refused_line(trace.error(), file.path());
  return 0;
}
