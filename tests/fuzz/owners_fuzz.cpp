// SPDX-License-Identifier: Apache-2.0
// Any bytes as a recording of what owners use. What is accepted is in order, names devices that there are and
// no more than they have, and is the same when it is written out and read again; what is refused is refused
// with its line.
#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/assert.hpp"
#include "cli/owner_trace.hpp"

namespace harvest::cli {
namespace {

constexpr std::array kKnown{OwnedDevice{1, 80ULL << 30}, OwnedDevice{2, 1000}, OwnedDevice{7, ~0ULL}};

const OwnedDevice* find_known(DeviceId id) {
  for (const OwnedDevice& device : kKnown)
    if (device.device == id) return &device;
  return nullptr;
}

void check_accepted(const OwnerTrace& trace) {
  HARVEST_ASSERT(!trace.steps.empty() && trace.steps.front().at_ns == 0 && trace.duration_ns() > 0,
                 "a recording has no beginning or no end");
  TimeNs last_ns = 0;
  for (const OwnerStep& step : trace.steps) {
    const OwnedDevice* const device = find_known(step.device);
    HARVEST_ASSERT(device != nullptr && step.used_bytes <= device->total_bytes,
                   "an owner has what there is not");
    HARVEST_ASSERT(step.at_ns >= last_ns, "steps are not in order");
    last_ns = step.at_ns;
  }
  HARVEST_ASSERT(!trace.devices().empty() && trace.devices().size() <= kKnown.size(),
                 "there are more owners than devices");
  const auto again = parse_owner_trace(to_csv(trace), "again", kKnown);
  HARVEST_ASSERT(again && again->steps == trace.steps, "what was written out reads otherwise");
}

void check_refused(const Error& error) {
  HARVEST_ASSERT(
      error.code == ErrorCode::malformed && error.message.starts_with("file:") && error.message.size() < 512,
      error.message);
  for (const char c : error.message) HARVEST_ASSERT(c >= ' ' && c <= '~', "a message cannot be printed");
}

}  // namespace
}  // namespace harvest::cli

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace harvest::cli;
  const auto trace = parse_owner_trace({reinterpret_cast<const char*>(data), size}, "file", kKnown);
  if (trace)
    check_accepted(*trace);
  else
    check_refused(trace.error());
  return 0;
}
