// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include "backend/backend_laws.hpp"

namespace harvest::test {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

/// The parts of `backend_laws()` that stand in files of their own.
[[nodiscard]] std::vector<Law> memory_laws();
[[nodiscard]] std::vector<Law> order_laws();

/// Ends a law early. Thrown by the tests' own code alone.
struct TrialOver {};

class Trial {
 public:
  explicit Trial(Subject subject) : subject_(std::move(subject)) {}

  Backend& backend() { return *subject_.backend; }
  HostMemory& host() { return *subject_.host; }
  std::vector<std::string> take_findings() { return std::move(findings_); }

  /// Notes what is broken and goes on.
  void expect(bool holds, std::string_view what) {
    if (!holds) findings_.emplace_back(what);
  }
  void expect_error(const Status& status, ErrorCode code, std::string_view what) {
    if (status || status.error().code != code)
      findings_.push_back(fmt::format("{}: {} instead of {}", what,
                                      status ? "success" : to_string(status.error().code), to_string(code)));
  }
  template <typename T>
  void expect_error(const Result<T>& result, ErrorCode code, std::string_view what) {
    expect_error(result ? Status{} : Status{tl::unexpected(result.error())}, code, what);
  }

  /// Notes what is broken and ends the law: nothing after it makes sense.
  void require(bool holds, std::string_view what) {
    expect(holds, what);
    if (!holds) throw TrialOver{};
  }
  void require(const Status& status, std::string_view what) {
    require(status.has_value(), status ? "" : fmt::format("{}: {}", what, status.error().message));
  }
  template <typename T>
  T require(Result<T> result, std::string_view what) {
    require(result.has_value(), result ? "" : fmt::format("{}: {}", what, result.error().message));
    return *result;
  }

  // --- what most laws do -----------------------------------------------------------------------------

  StreamId stream(DeviceId device = 0) { return require(backend().create_stream(device), "create_stream"); }

  std::byte* segment(DeviceId device, std::uint64_t bytes) {
    const DeviceInfo& info =
        device == kHost ? backend().devices().back() : backend().devices()[static_cast<std::size_t>(device)];
    const std::uint64_t step = info.segment_granularity_bytes;
    std::vector<DeviceId> readers;
    if (device != kHost) readers.push_back(device == 0 ? 1 : 0);
    return require(backend().map_segment(device, (bytes + step - 1) / step * step, readers), "map_segment");
  }

  void copy(StreamId stream, Route route, std::byte* to, const std::byte* from, std::uint64_t bytes) {
    const Copy one{to, from, bytes};
    require(backend().copy(stream, route, {&one, 1}), "copy");
  }

  EventId record(StreamId stream) { return require(backend().record_event(stream), "record_event"); }

  /// Waits until all work of a stream is over, which must have gone well.
  void finish(StreamId stream) {
    const EventId event = record(stream);
    const EventState state = backend().wait_event(event, kNever);
    require(state == EventState::complete, "waiting without a deadline did not end with a complete event");
    backend().release_event(event);
  }

  /// New host memory with content `seed`.
  std::byte* content(std::uint64_t bytes, std::uint64_t seed) {
    std::byte* address = host().allocate(bytes);
    host().write(address, bytes, seed);
    return address;
  }

 private:
  Subject subject_;
  std::vector<std::string> findings_;
};

}  // namespace harvest::test
