// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/link.hpp"

#include <fmt/format.h>

#include <vector>

#include "cli/output.hpp"

namespace harvest::cli::bench {
namespace {

/// Who else must be able to address memory on `device` for copies of `link`.
std::vector<DeviceId> readers_of(const LinkInfo& link, DeviceId device, DeviceId other) {
  if (other == kHost || other == device || (device != kHost && !link.peer_access)) return {};
  return {other};
}

}  // namespace

Result<Ends> map_ends(Backend& backend, Route route, std::uint64_t bytes) {
  const LinkInfo* link = link_of(backend, route);
  if (link == nullptr)
    return fail(ErrorCode::not_found,
                fmt::format("no link from {} to {}", device_name(route.from), device_name(route.to)));
  auto source = Segment::map(backend, route.from, bytes, readers_of(*link, route.from, route.to));
  if (!source) return tl::unexpected(source.error());
  auto destination = Segment::map(backend, route.to, bytes, readers_of(*link, route.to, route.from));
  if (!destination) return tl::unexpected(destination.error());
  return Ends{std::move(*source), std::move(*destination)};
}

Result<LinkMeter> LinkMeter::create(Backend& backend, Route route, std::uint64_t most_bytes) {
  const DeviceId driver = route.to != kHost ? route.to : route.from;
  if (driver == kHost) return fail(ErrorCode::not_found, "no GPU drives copies from the host to itself");
  auto ends = map_ends(backend, route, most_bytes);
  if (!ends) return tl::unexpected(ends.error());
  auto pattern = PatternCarrier::create(backend, driver, most_bytes);
  if (!pattern) return tl::unexpected(pattern.error());
  auto gate = Gate::create(backend, driver);
  if (!gate) return tl::unexpected(gate.error());
  auto stream = Stream::create(backend, driver);
  if (!stream) return tl::unexpected(stream.error());
  return LinkMeter(route, std::move(*ends), std::move(*pattern), std::move(*gate), std::move(*stream));
}

Result<GatedRun> LinkMeter::run(std::uint64_t bytes, std::uint64_t copies) {
  if (Status spoilt = PatternCarrier::spoil(stream_, route_.to, ends_.destination.data(), bytes); !spoilt)
    return tl::unexpected(spoilt.error());
  return gate_.time(stream_, [&]() -> Status {
    for (std::uint64_t i = 0; i < copies; ++i)
      if (Status given = stream_.copy(route_, ends_.destination.data(), ends_.source.data(), bytes); !given)
        return given;
    return {};
  });
}

Result<LinkFigure> LinkMeter::measure(std::uint64_t bytes, std::uint64_t runs) {
  const std::uint64_t seed = ++seed_;
  if (Status written = pattern_.write(stream_, route_.from, ends_.source.data(), bytes, seed); !written)
    return tl::unexpected(written.error());
  const auto warm_up = run(bytes, 1);
  if (!warm_up) return tl::unexpected(warm_up.error());

  LinkFigure figure;
  figure.bytes = bytes;
  figure.copies_per_run = repeats_for(stream_.backend(), warm_up->duration_ns);
  std::vector<double> rates;
  for (std::uint64_t i = 0; i < runs; ++i) {
    const auto timed = run(bytes, figure.copies_per_run);
    if (!timed) return tl::unexpected(timed.error());
    figure.gated = figure.gated && timed->gated;
    rates.push_back(static_cast<double>(bytes * figure.copies_per_run) * 1e9 /
                    static_cast<double>(timed->duration_ns));
    const auto wrong = pattern_.count_wrong_at(stream_, route_.to, ends_.destination.data(), bytes, seed);
    if (!wrong) return tl::unexpected(wrong.error());
    figure.wrong_bytes += *wrong;
  }
  figure.bytes_per_s = spread_of(std::move(rates));
  return figure;
}

}  // namespace harvest::cli::bench
