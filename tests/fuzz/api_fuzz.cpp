// SPDX-License-Identifier: Apache-2.0
// Any bytes as a sequence of calls of a cache, on a simulated machine in virtual time, compared with the
// simulator's model: I1 to I12 hold after each. The first four bytes are the seed that draws machine, cache
// and faults; then three make a step: which operation, and the seed of all it draws. What is left over at the
// end is no step.
#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "simulator/life.hpp"

namespace harvest::simulator {
namespace {

constexpr std::size_t kStepBytes = 3;

std::uint32_t number(std::span<const std::uint8_t> bytes) {
  std::uint32_t number = 0;
  for (const std::uint8_t byte : bytes) number = number << 8 | byte;
  return number;
}

void live_by(std::span<const std::uint8_t> bytes) {
  Case drawn;
  drawn.seed = number(bytes.first(4));
  Life life(drawn);
  for (bytes = bytes.subspan(4); bytes.size() >= kStepBytes; bytes = bytes.subspan(kStepBytes))
    life.step(static_cast<Operation>(bytes[0] % kOperations), number(bytes.subspan(1, 2)));
  life.end();
}

}  // namespace
}  // namespace harvest::simulator

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const bool silent = [] {  // the faults would fill the log
    spdlog::register_logger(
        std::make_shared<spdlog::logger>("harvest", std::make_shared<spdlog::sinks::null_sink_mt>()));
    return true;
  }();
  if (silent && size >= 4) harvest::simulator::live_by({data, size});
  return 0;
}
