// SPDX-License-Identifier: Apache-2.0
#include <harvest/topology.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <optional>

#include "core/ordering.hpp"

namespace harvest {
namespace {

constexpr std::uint64_t kPatternBytes = 256 << 10;
constexpr std::uint64_t kFragmentBytes = 4 << 10;
constexpr TimeNs kTestDeadlineNs = 5'000'000'000;
constexpr const char* kVerdict = "the caller's verdict";

/// Tests paths with a pattern that tells every 8 bytes apart, so that a lost, shifted or stale run shows.
class PathTester {
 public:
  PathTester(Backend& backend, std::span<const DeviceInfo> devices) : backend_(backend) {
    std::vector<DeviceId> gpus;
    for (const DeviceInfo& device : devices)
      if (device.id != kHost) gpus.push_back(device.id);
    for (const DeviceInfo& device : devices) {
      const std::uint64_t unit = std::max<std::uint64_t>(1, device.segment_granularity_bytes);
      // The host needs two ranges: what is sent, and what came back.
      const std::uint64_t needed = device.id == kHost ? 2 * kPatternBytes : kPatternBytes;
      if (auto base = backend_.map_segment(device.id, (needed + unit - 1) / unit * unit, gpus))
        segments_[device.id] = *base;
      if (device.id == kHost) continue;
      if (auto stream = backend_.create_stream(device.id)) streams_[device.id] = *stream;
    }
  }

  ~PathTester() {
    for (const auto& [device, stream] : streams_) static_cast<void>(backend_.destroy_stream(stream));
    for (const auto& [device, base] : segments_) static_cast<void>(backend_.unmap_segment(base));
  }
  PathTester(const PathTester&) = delete;
  PathTester& operator=(const PathTester&) = delete;

  /// Nothing if the pattern came through from `from` to `to`, else what went wrong.
  std::optional<std::string> test(DeviceId from, DeviceId to) {
    if (!segments_.contains(kHost)) return "no pinned host memory for the test";
    for (const DeviceId id : {from, to})
      if (id != kHost && (!segments_.contains(id) || !streams_.contains(id)))
        return fmt::format("device {} has no memory or stream for the test", id);
    std::byte* sent = segments_[kHost];
    std::byte* received = sent + kPatternBytes;
    write_pattern(sent);
    std::memset(received, 0, kPatternBytes);
    const StreamId stream = streams_.empty() ? StreamId::none
                                             : streams_[to != kHost     ? to
                                                        : from != kHost ? from
                                                                        : 0];

    std::byte* at_source = from == kHost ? sent : segments_[from];
    std::byte* at_target = to == kHost ? received : segments_[to];
    if (from == to && from != kHost) at_target = at_source;  // there and back through the host tests it
    if (from != kHost)
      if (auto why = copy(stream, {kHost, from}, at_source, sent)) return why;
    if (from != to || from == kHost)
      if (auto why = copy(stream, {from, to}, at_target, at_source)) return why;
    if (to != kHost)
      if (auto why = copy(stream, {to, kHost}, received, at_target)) return why;
    if (std::memcmp(sent, received, kPatternBytes) != 0) return "the pattern came back changed";
    return std::nullopt;
  }

 private:
  std::optional<std::string> copy(StreamId stream, Route route, std::byte* destination,
                                  const std::byte* source) {
    // One half in a piece and one in many, last first, so that they are not merged: a backend may have ways
    // of its own for either, and one of them may be the broken one.
    std::vector<Copy> runs{{destination, source, kPatternBytes / 2}};
    for (std::uint64_t at = kPatternBytes; at > kPatternBytes / 2; at -= kFragmentBytes)
      runs.push_back({destination + at - kFragmentBytes, source + at - kFragmentBytes, kFragmentBytes});
    if (const Status status = backend_.copy(stream, route, runs); !status) return status.error().message;
    const auto event = core::record_surely(backend_, stream);
    if (!event) return event.error().message;
    const EventState state = backend_.wait_event(*event, backend_.now_ns() + kTestDeadlineNs);
    // A copy that is late still owns the memory: wait it out before anything is unmapped.
    if (state == EventState::pending) backend_.wait_event(*event, kNever);
    backend_.release_event(*event);
    if (state == EventState::complete) return std::nullopt;
    return state == EventState::failed ? "the copy failed" : "the copy took longer than 5 s";
  }

  void write_pattern(std::byte* to) {
    for (std::uint64_t at = 0; at < kPatternBytes; at += sizeof(std::uint64_t)) {
      const std::uint64_t word = (++seed_) * 0x9E3779B97F4A7C15ULL;
      std::memcpy(to + at, &word, sizeof word);
    }
  }

  Backend& backend_;
  std::map<DeviceId, std::byte*> segments_;
  std::map<DeviceId, StreamId> streams_;
  std::uint64_t seed_ = 0;
};

}  // namespace

std::string_view to_string(PathState state) {
  switch (state) {
    case PathState::untested: return "untested";
    case PathState::verified: return "verified";
    case PathState::failed: return "failed";
  }
  return "?";
}

Result<Topology> Topology::probe(Backend& backend, bool verify, std::span<const PathVerdict> verdicts) {
  Topology topology;
  topology.backend_ = backend.info();
  topology.devices_.assign(backend.devices().begin(), backend.devices().end());
  if (topology.devices_.size() < 2)
    return fail(ErrorCode::invalid_argument,
                fmt::format("the {} backend has no GPU", topology.backend_.name));
  for (const LinkInfo& link : backend.links()) topology.paths_.push_back({link, PathState::untested, {}});
  for (const PathVerdict& verdict : verdicts) {
    const auto path = std::ranges::find_if(topology.paths_, [&](const Path& known) {
      return known.link.from == verdict.route.from && known.link.to == verdict.route.to;
    });
    if (path == topology.paths_.end())
      return fail(ErrorCode::not_found,
                  fmt::format("a verdict on the path from device {} to device {}: there is "
                              "no such path",
                              verdict.route.from, verdict.route.to));
    if (path->reason == kVerdict)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("two verdicts on the path from device {} to device {}", verdict.route.from,
                              verdict.route.to));
    path->state = verdict.state;
    path->reason = kVerdict;
  }
  if (!verify || !topology.backend_.holds_bytes) return topology;

  PathTester tester(backend, topology.devices_);
  for (Path& path : topology.paths_) {
    const bool judged = std::ranges::any_of(verdicts, [&](const PathVerdict& verdict) {
      return verdict.route == Route{path.link.from, path.link.to};
    });
    const bool between_gpus = path.link.from != kHost && path.link.to != kHost;
    if (judged || (between_gpus && !path.link.peer_access)) continue;
    const auto why = tester.test(path.link.from, path.link.to);
    path.state = why ? PathState::failed : PathState::verified;
    if (why) path.reason = *why;
  }
  return topology;
}

const DeviceInfo* Topology::device(DeviceId id) const {
  for (const DeviceInfo& device : devices_)
    if (device.id == id) return &device;
  return nullptr;
}

const Path* Topology::path(DeviceId from, DeviceId to) const {
  for (const Path& path : paths_)
    if (path.link.from == from && path.link.to == to) return &path;
  return nullptr;
}

bool Topology::usable_as_peer(DeviceId peer, DeviceId consumer) const {
  if (peer == consumer || peer == kHost || consumer == kHost) return false;
  for (const Path* way : {path(peer, consumer), path(consumer, peer)})
    if (way == nullptr || !way->link.peer_access || way->state == PathState::failed) return false;
  return true;
}

double Topology::expected_copy_ns(DeviceId from, DeviceId to, std::uint64_t bytes) const {
  const Path* way = path(from, to);
  if (way == nullptr || way->link.bandwidth_bytes_per_s <= 0) return std::numeric_limits<double>::infinity();
  return static_cast<double>(way->link.issue_ns + way->link.latency_ns) +
         static_cast<double>(bytes) * 1e9 / way->link.bandwidth_bytes_per_s;
}

std::vector<PeerRank> Topology::rank_peers(DeviceId consumer, std::uint64_t bytes) const {
  std::vector<PeerRank> ranks;
  for (const DeviceInfo& device : devices_)
    if (usable_as_peer(device.id, consumer))
      ranks.push_back({device.id, expected_copy_ns(device.id, consumer, bytes)});
  std::stable_sort(ranks.begin(), ranks.end(),
                   [](const PeerRank& a, const PeerRank& b) { return a.fetch_ns < b.fetch_ns; });
  return ranks;
}

}  // namespace harvest
