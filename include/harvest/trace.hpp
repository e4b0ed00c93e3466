// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <string>
#include <vector>

/// Recorded request traffic of an inference service, for replay.
namespace harvest {

/// One request: when it came, how long its prompt and answer were, and which KV blocks its prompt is.
struct TraceRequest {
  TimeNs arrival_ns = 0;  ///< since the trace's begin
  std::uint64_t input_tokens = 0;
  std::uint64_t output_tokens = 0;
  /// The prompt's blocks in order, each named by the whole prefix that ends with it: two requests that
  /// share an id share everything up to there. The last block may be partly filled.
  std::vector<std::uint64_t> block_ids;
};

struct Trace {
  std::vector<TraceRequest> requests;  ///< never empty, in the order of arrival

  /// Every block of every request, in order: what `simulate_policy` takes.
  [[nodiscard]] std::vector<Key> block_accesses() const;
};

/// Tokens in one block of a Mooncake trace, and the step of its clock: requests of one step all carry
/// the time of its beginning.
inline constexpr std::uint64_t kMooncakeBlockTokens = 512;
inline constexpr TimeNs kMooncakeStepNs = 3'000'000'000;

/// What is read at most, so that a file that has no end, or unpacks to far more than it is, does no harm. A
/// trace takes at most about 4 bytes of memory for each of its text, and its longest line about 30 while it
/// is read.
struct TraceLimits {
  std::uint64_t line_bytes = 16ULL << 20;  ///< of one request: more than a million blocks
  std::uint64_t text_bytes = 1ULL << 30;   ///< of the whole file, unpacked
};

/// Reads a trace in the format that the Mooncake project publishes (FAST 2025): one JSON object a line,
///
///     {"timestamp": 3000, "input_length": 900, "output_length": 52, "hash_ids": [46, 47]}
///
/// with the time in ms, lengths in tokens and one id for each block of 512 prompt tokens. Times do not go
/// backwards. Other fields and blank lines are ignored. The file may be gzipped, whatever its name.
/// Errors: not_found (a folder, or the file cannot be opened), malformed (`file:line: what`: not JSON, a
/// field missing or of another type or negative, time going backwards, a line or a file beyond `limits`; or a
/// file without requests, a truncated or damaged gzip). Cost: about 10 ms for 1,000 requests of 24 blocks.
[[nodiscard]] Result<Trace> read_mooncake_trace(const std::string& path, const TraceLimits& limits = {});

/// Spreads requests that carry the same time evenly over the step which begins with it, in order, so that a
/// coarse clock does not turn traffic into bursts. Nothing moves past the next time in the trace.
/// Requires: arrivals do not go backwards, `step_ns` > 0.
void spread_arrivals(Trace& trace, TimeNs step_ns = kMooncakeStepNs);

}  // namespace harvest
