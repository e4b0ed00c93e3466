// SPDX-License-Identifier: Apache-2.0
#include "cli/kv/serve.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/kv/server.hpp"

namespace harvest::cli {
namespace {

constexpr std::array<std::string_view, 5> kNames{"bound", "recompute", "host", "peer+host", "harvest"};

Json ms_of(const Percentiles& times) {
  const auto one = [](TimeNs ns) { return static_cast<double>(ns) / 1e6; };
  return {{"p50", one(times.p50_ns)}, {"p90", one(times.p90_ns)}, {"p99", one(times.p99_ns)}};
}

}  // namespace

std::span<const std::string_view> serve_strategy_names() {
  return std::span(kNames).subspan(1);
}

std::string_view to_string(ServeStrategy strategy) {
  return kNames[static_cast<std::size_t>(strategy)];
}

Result<ServeStrategy> serve_strategy_from(std::string_view name) {
  const auto known = serve_strategy_names();
  const auto found = std::ranges::find(known, name);
  if (found == known.end())
    return fail(ErrorCode::not_found,
                fmt::format("no strategy '{}'; known are {}", name, fmt::join(known, ", ")));
  return static_cast<ServeStrategy>(found - known.begin() + 1);
}

Percentiles percentiles_of(std::vector<TimeNs>& values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const auto rank = [&](std::size_t percent) { return values[(values.size() * percent + 99) / 100 - 1]; };
  return {rank(50), rank(90), rank(99)};
}

Json to_json(const ServeFigures& figures) {
  return {{"ttft_ms", ms_of(figures.ttft)},
          {"tbt_ms", ms_of(figures.tbt)},
          {"tokens_per_s", figures.tokens_per_s},
          {"completed", figures.completed},
          {"output_tokens", figures.output_tokens},
          {"computed_tokens", figures.computed_tokens},
          {"left", figures.left},
          {"parked_lost", figures.parked_lost},
          {"bytes_from",
           {{"peer", figures.bytes_from[static_cast<std::size_t>(Tier::peer)]},
            {"host", figures.bytes_from[static_cast<std::size_t>(Tier::host)]}}},
          {"exposed_stall_fraction", figures.exposed_stall_fraction},
          {"wrong_bytes", figures.wrong_bytes},
          {"duration_s", static_cast<double>(figures.duration_ns) / 1e9}};
}

Result<ServeFigures> serve(const ServeRun& run, ServeStrategy strategy, Progress& progress) {
  Server server(run, strategy);
  if (Status ready = server.prepare(); !ready) return tl::unexpected(ready.error());
  if (Status served = server.serve(progress); !served) return tl::unexpected(served.error());
  return server.figures();
}

}  // namespace harvest::cli
