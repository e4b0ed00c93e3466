// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/timing.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

namespace harvest::cli::bench {
namespace {

constexpr std::uint64_t kChunkBytes = 32ULL << 20;         // 0.6 ms over PCIe 5
constexpr std::uint64_t kVirtualChunkBytes = 64ULL << 10;  // submitting takes no virtual time
constexpr std::uint64_t kLongestGateBytes = 4ULL << 30;
constexpr TimeNs kRunNs = 2'000'000;
constexpr double kMostDoubt = .02;
constexpr int kAttempts = 5;
constexpr std::uint64_t kMostRepeats = 512;  // half of what drivers queue

/// A point in time at which an event was seen as complete; it was that up to `doubt_ns` earlier.
struct Moment {
  TimeNs seen_ns = 0;
  TimeNs doubt_ns = 0;
};

Result<Moment> see(const Backend& backend, Event& event) {
  TimeNs before = backend.now_ns();
  // Virtual time does not move while one asks, and stops exactly at the event when one waits.
  while (!backend.info().virtual_time && event.pending()) before = backend.now_ns();
  if (Status over = event.wait(); !over) return tl::unexpected(over.error());
  const TimeNs seen = backend.now_ns();
  return Moment{seen, backend.info().virtual_time ? 0 : seen - before};
}

double doubt_of(const GatedRun& run) {
  return static_cast<double>(run.doubt_ns) / static_cast<double>(run.duration_ns);
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  Spread spread;
  spread.median = n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  spread.least = values.front();
  spread.most = values.back();
  // The smallest value that at least 99 % are not above.
  spread.p99 = values[static_cast<std::size_t>(std::ceil(0.99 * static_cast<double>(n))) - 1];
  return spread;
}

void add_spread(Json& json, const std::string& name, const Spread& spread) {
  json[name] = spread.median;
  json[name + "_min"] = spread.least;
  json[name + "_max"] = spread.most;
}

Result<Gate> Gate::create(Backend& backend, DeviceId gpu) {
  Gate gate(gpu, backend.info().virtual_time ? kVirtualChunkBytes : kChunkBytes);
  auto on_gpu = Segment::map(backend, gpu, gate.chunk_bytes_);
  if (!on_gpu) return tl::unexpected(on_gpu.error());
  gate.on_gpu_ = std::move(*on_gpu);
  auto on_host = Segment::map(backend, kHost, gate.chunk_bytes_, {&gpu, 1});
  if (!on_host) return tl::unexpected(on_host.error());
  gate.on_host_ = std::move(*on_host);
  return gate;
}

Status Gate::close(const Stream& stream) const {
  for (std::uint64_t given = 0; given < bytes_; given += chunk_bytes_)
    if (Status status = stream.copy({gpu_, kHost}, on_host_.data(), on_gpu_.data(), chunk_bytes_); !status)
      return status;
  return {};
}

Result<GatedRun> Gate::time_once(const Stream& stream, const Submit& submit, const Submit& meanwhile) const {
  if (Status closed = close(stream); !closed) return tl::unexpected(closed.error());
  auto opened = stream.record();
  if (!opened) return tl::unexpected(opened.error());
  if (Status given = submit(); !given) return tl::unexpected(given.error());
  auto done = stream.record();
  if (!done) return tl::unexpected(done.error());
  GatedRun run;
  run.gated = opened->pending();
  const auto begin = see(stream.backend(), *opened);
  if (!begin) return tl::unexpected(begin.error());
  if (meanwhile && (run.gated || bytes_ >= kLongestGateBytes)) {
    if (Status status = meanwhile(); !status) return tl::unexpected(status.error());
    run.outlasted = done->pending();
  }
  const auto end = see(stream.backend(), *done);
  if (!end) return tl::unexpected(end.error());
  run.duration_ns = std::max<TimeNs>(1, end->seen_ns - begin->seen_ns);
  run.doubt_ns = std::max(begin->doubt_ns, end->doubt_ns);
  return run;
}

Result<GatedRun> Gate::time(const Stream& stream, const Submit& submit, const Submit& meanwhile) {
  std::optional<GatedRun> surest;
  for (int attempts = 0; attempts < kAttempts;) {
    const auto run = time_once(stream, submit, meanwhile);
    if (!run) return run;
    if (!run->gated && bytes_ < kLongestGateBytes) {
      bytes_ *= 2;
      continue;
    }
    if (meanwhile || doubt_of(*run) <= kMostDoubt) return run;
    if (!surest || doubt_of(*run) < doubt_of(*surest)) surest = *run;
    ++attempts;
  }
  return *surest;
}

std::uint64_t repeats_for(const Backend& backend, TimeNs once_ns) {
  if (backend.info().virtual_time) return 1;
  const auto wanted = static_cast<std::uint64_t>(kRunNs / std::max<TimeNs>(1, once_ns) + 1);
  return std::min(wanted, kMostRepeats);
}

}  // namespace harvest::cli::bench
