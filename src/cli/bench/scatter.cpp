// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/scatter.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace harvest::cli::bench {
namespace {

constexpr std::uint64_t kSeed = 1;

}  // namespace

std::vector<std::uint64_t> scattered_order(std::uint64_t n) {
  auto stride = static_cast<std::uint64_t>(static_cast<double>(n) * 0.618) + 1;  // the golden section
  while (std::gcd(stride, n) != 1) ++stride;
  std::vector<std::uint64_t> order(n);
  for (std::uint64_t i = 0; i < n; ++i) order[i] = i * stride % n;
  return order;
}

Result<ScatterMeter> ScatterMeter::create(Backend& backend, Route route, DeviceId gpu,
                                          std::uint64_t most_bytes) {
  auto ends = map_ends(backend, route, most_bytes);
  if (!ends) return tl::unexpected(ends.error());
  auto pattern = PatternCarrier::create(backend, gpu, most_bytes);
  if (!pattern) return tl::unexpected(pattern.error());
  auto gate = Gate::create(backend, gpu);
  if (!gate) return tl::unexpected(gate.error());
  auto stream = Stream::create(backend, gpu);
  if (!stream) return tl::unexpected(stream.error());
  if (Status written = pattern->write(*stream, route.from, ends->source.data(), most_bytes, kSeed); !written)
    return tl::unexpected(written.error());
  return ScatterMeter(route, std::move(*ends), std::move(*pattern), std::move(*gate), std::move(*stream));
}

Status ScatterMeter::check(const ScatterPoint& point, const std::vector<std::uint64_t>& order) const {
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 0; i < point.runs; ++i) {
    const auto here =
        pattern_.count_wrong_at(stream_, route_.to, ends_.destination.data() + i * point.run_bytes,
                                point.run_bytes, kSeed, order[i] * point.run_bytes);
    if (!here) return tl::unexpected(here.error());
    wrong += *here;
  }
  if (wrong == 0) return {};
  return fail(ErrorCode::copy_failed,
              fmt::format("{} runs of {} bytes from device {} to {}: {} bytes are wrong", point.runs,
                          point.run_bytes, route_.from, route_.to, wrong));
}

Result<double> ScatterMeter::bytes_per_s(const ScatterPoint& point, std::uint64_t times) {
  const auto order = scattered_order(point.runs);
  std::vector<Copy> copies;
  for (std::uint64_t i = 0; i < point.runs; ++i)
    copies.push_back({ends_.destination.data() + i * point.run_bytes,
                      ends_.source.data() + order[i] * point.run_bytes, point.run_bytes});
  std::uint64_t repeats = 1;
  const auto submit = [&]() -> Status {
    for (std::uint64_t i = 0; i < repeats; ++i)
      if (Status given = stream_.backend().copy(stream_.id(), route_, copies); !given) return given;
    return {};
  };
  if (Status spoilt =
          PatternCarrier::spoil(stream_, route_.to, ends_.destination.data(), point.total_bytes());
      !spoilt)
    return tl::unexpected(spoilt.error());
  const auto warm_up = gate_.time(stream_, submit);
  if (!warm_up) return tl::unexpected(warm_up.error());
  // One by one each run is a call, of which drivers queue about a thousand.
  repeats = std::max<std::uint64_t>(1, repeats_for(stream_.backend(), warm_up->duration_ns) / point.runs);
  std::vector<double> rates;
  for (std::uint64_t i = 0; i < times; ++i) {
    const auto run = gate_.time(stream_, submit);
    if (!run) return tl::unexpected(run.error());
    rates.push_back(static_cast<double>(point.total_bytes() * repeats) * 1e9 /
                    static_cast<double>(run->duration_ns));
  }
  if (Status right = check(point, order); !right) return tl::unexpected(right.error());
  return spread_of(std::move(rates)).median;
}

}  // namespace harvest::cli::bench
