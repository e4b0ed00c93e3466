// SPDX-License-Identifier: Apache-2.0
// Any bytes as a recording of routing. What is accepted is what a model could do, and is the same when it is
// written out and read again; what is refused is refused with its place.
#include <harvest/moe/routing.hpp>

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/assert.hpp"
#include "fuzz/memory_file.hpp"
#include "fuzz/refused_line.hpp"

namespace harvest::fuzz {
namespace {

constexpr moe::RoutingShape kShape{.layers = 2, .experts = 6, .top_k = 2};

void check_list(std::span<const std::uint32_t> experts, std::uint32_t tokens) {
  const std::set<std::uint32_t> distinct(experts.begin(), experts.end());
  HARVEST_ASSERT(distinct.size() == experts.size() && *distinct.rbegin() < kShape.experts,
                 "an expert that there is not, or twice");
  HARVEST_ASSERT(experts.size() >= kShape.top_k && experts.size() <= std::uint64_t{tokens} * kShape.top_k,
                 "a token is sent to another number of experts");
}

void check_step(const moe::RoutingStep& step) {
  HARVEST_ASSERT(step.layers() == kShape.layers && !step.sequences().empty(), "a step is not whole");
  std::set<std::uint32_t> ids;
  for (const moe::BatchSequence& sequence : step.sequences())
    HARVEST_ASSERT(ids.insert(sequence.id).second && sequence.tokens > 0, "a sequence is there twice");
  for (std::uint32_t layer = 0; layer < step.layers(); ++layer) {
    std::size_t experts = 0;
    for (std::size_t i = 0; i < step.sequences().size(); ++i) {
      check_list(step.experts(layer, i), step.sequences()[i].tokens);
      experts += step.experts(layer, i).size();
    }
    HARVEST_ASSERT(step.experts(layer).size() == experts, "a layer has other experts than its sequences");
    std::vector<std::uint32_t> distinct;
    step.distinct_experts(layer, distinct);
    const auto all = step.experts(layer);
    HARVEST_ASSERT(std::set(all.begin(), all.end()) == std::set(distinct.begin(), distinct.end()),
                   "the distinct experts are others");
  }
}

void check_written(const moe::RoutingTrace& trace, const std::string& path) {
  HARVEST_ASSERT(moe::write_routing(path, trace), "not written");
  const auto again = moe::read_routing(path, kShape);
  HARVEST_ASSERT(again && *again == trace, "what was written out reads otherwise");
}

void check_accepted(const moe::RoutingTrace& trace) {
  HARVEST_ASSERT(!trace.empty() && trace.whole(), "a recording has no step, or a part of one");
  moe::RoutingTrace copy(kShape);
  for (std::size_t i = 0; i < trace.size(); ++i) {
    check_step(trace.step(i));
    HARVEST_ASSERT(copy.add(trace.step(i)), "a step is not taken again");
  }
  HARVEST_ASSERT(copy == trace, "a copy is another");
  static const MemoryFile plain;
  check_written(trace, plain.path());
}

/// Limits refuse, and change nothing else.
void check_limits(const Result<moe::RoutingTrace>& trace, const std::string& path) {
  const auto limited = moe::read_routing(path, kShape, {.line_bytes = 100, .text_bytes = 512});
  if (limited)
    HARVEST_ASSERT(trace && *limited == *trace, "a limit changed a recording");
  else if (trace || limited.error().message != trace.error().message)
    HARVEST_ASSERT(limited.error().message.ends_with(" bytes"), limited.error().message);
}

}  // namespace
}  // namespace harvest::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace harvest;
  static const fuzz::MemoryFile file;
  file.fill({reinterpret_cast<const char*>(data), size});
  const auto trace = moe::read_routing(file.path(), fuzz::kShape);
  fuzz::check_limits(trace, file.path());
  if (trace)
    fuzz::check_accepted(*trace);
  else
    fuzz::check_refused_line(trace.error(), file.path());
  return 0;
}
