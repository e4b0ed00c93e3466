// SPDX-License-Identifier: Apache-2.0
#include "cli/kv/requests.hpp"

#include <algorithm>
#include <cmath>

#include "base/random.hpp"

namespace harvest::cli {
namespace {

constexpr std::uint32_t kInstructions = 4;
constexpr std::uint64_t kInstructionTokens = 1024;
constexpr double kConversationNs = 4e9;
constexpr double kThinkNs = 60e9;
constexpr double kMoreTurns = 0.75;  // chance of one more: 4 on average
constexpr double kNewTokens = 1500;
constexpr double kAnswerTokens = 250;
constexpr std::uint64_t kMostTokens = 32'768;  // a conversation ends before its context is longer

double exponential(Random& random, double mean) {
  return -mean * std::log(1 - random.next_unit());
}

std::uint64_t tokens(Random& random, double mean) {
  return 1 + static_cast<std::uint64_t>(exponential(random, mean - 1));
}

/// One conversation's requests, which begin at `at_ns`.
void converse(Random& random, std::uint64_t number, double at_ns, std::vector<TraceRequest>& out) {
  const std::uint64_t instruction = random.next_below(kInstructions);
  std::uint64_t prompt = kInstructionTokens;
  do {
    TraceRequest request;
    request.arrival_ns = static_cast<TimeNs>(at_ns);
    prompt += tokens(random, kNewTokens);
    if (prompt > kMostTokens) return;
    request.input_tokens = prompt;
    request.output_tokens = tokens(random, kAnswerTokens);
    for (std::uint64_t block = 0; block * kServedBlockTokens < prompt; ++block) {
      const bool shared = (block + 1) * kServedBlockTokens <= kInstructionTokens;
      request.block_ids.push_back(shared ? instruction << 32 | block
                                         : (number + kInstructions) << 32 | block);
    }
    prompt += request.output_tokens;
    out.push_back(std::move(request));
    at_ns += exponential(random, kThinkNs);
  } while (random.next_unit() < kMoreTurns);
}

}  // namespace

std::vector<ServedRequest> requests_of(const Trace& trace, double rate, std::uint64_t most) {
  std::vector<ServedRequest> requests;
  for (const TraceRequest& recorded : trace.requests) {
    if (requests.size() == most) break;
    ServedRequest request;
    request.arrival_ns = static_cast<TimeNs>(static_cast<double>(recorded.arrival_ns) / rate);
    request.input_tokens = std::max<std::uint64_t>(recorded.input_tokens, 1);
    request.output_tokens = std::max<std::uint64_t>(recorded.output_tokens, 1);
    const std::uint64_t full = request.input_tokens / kServedBlockTokens;
    for (std::size_t i = 0; i < std::min<std::size_t>(full, recorded.block_ids.size()); ++i)
      request.keys.emplace_back(recorded.block_ids[i]);
    requests.push_back(std::move(request));
  }
  return requests;
}

Trace synthetic_conversations(std::uint64_t requests, std::uint64_t seed) {
  Random random(seed);
  Trace trace;
  double at_ns = 0;
  for (std::uint64_t number = 0; trace.requests.size() < 2 * requests; ++number) {
    converse(random, number, at_ns, trace.requests);
    at_ns += exponential(random, kConversationNs);
  }
  // Twice as many were made, so that the first ones lack none whose conversation began before them.
  std::ranges::stable_sort(trace.requests, {}, &TraceRequest::arrival_ns);
  trace.requests.resize(requests);
  return trace;
}

std::vector<ServedRequest> crowd_of(const Crowd& crowd, std::uint64_t seed) {
  Random random(seed);
  const auto length = [&](std::uint64_t mean) {
    const auto drawn = static_cast<std::uint64_t>(exponential(random, static_cast<double>(mean)));
    return std::clamp<std::uint64_t>(drawn, std::min<std::uint64_t>(16, mean), 8 * mean);
  };
  std::vector<ServedRequest> requests(crowd.sequences);
  double at_ns = 0;
  for (ServedRequest& request : requests) {
    at_ns += exponential(random, 1e9 / crowd.per_s);
    request.arrival_ns = static_cast<TimeNs>(at_ns);
    request.input_tokens = length(crowd.prompt_tokens);
    request.output_tokens = length(crowd.output_tokens);
  }
  return requests;
}

}  // namespace harvest::cli
