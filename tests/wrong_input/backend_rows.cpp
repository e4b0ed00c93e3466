// SPDX-License-Identifier: Apache-2.0
#include "wrong_input/backend_rows.hpp"

#include <array>
#include <string>
#include <utility>

#include "wrong_input/table.hpp"

namespace harvest::testing {
namespace {

constexpr std::uint64_t kBytes = 4096;
constexpr std::uint64_t kSegmentBytes = 2U << 20;
constexpr std::uint64_t kHuge = 1ULL << 63;
constexpr StreamId kNoStream{4711};

void show_memory(Backend& backend) {
  Table table("`Backend`: memory");
  const auto map = [&](DeviceId device, std::uint64_t bytes, DeviceId reader = 0) -> Outcome {
    return backend.map_segment(device, bytes, {&reader, 1});
  };
  table.shows("`query_memory` of device 9", backend.query_memory(9));
  table.shows("`map_segment` of 0 bytes", map(1, 0));
  table.shows("`map_segment` of 1 byte", map(1, 1));
  table.shows("`map_segment` of 1 byte, host", map(kHost, 1));
  table.shows("`map_segment` of 2^63 bytes", map(1, kHuge));
  table.shows("`map_segment` of 2^63 bytes, host", map(kHost, kHuge));
  table.shows("`map_segment` on device 9", map(9, kSegmentBytes));
  table.shows("`map_segment` for reader 9", map(1, kSegmentBytes, 9));

  const std::array<DeviceId, 2> twice{0, 0};
  const auto segment = backend.map_segment(1, 2 * kSegmentBytes, twice);
  table.shows("`map_segment` for one reader twice", segment);
  std::byte own{};
  table.shows("`unmap_segment` of null", backend.unmap_segment(nullptr));
  table.shows("`unmap_segment` of other memory", backend.unmap_segment(&own));
  table.shows("`unmap_segment` of the middle of a segment", backend.unmap_segment(*segment + kSegmentBytes));
  EXPECT_TRUE(backend.unmap_segment(*segment));
  table.shows("`unmap_segment` twice", backend.unmap_segment(*segment));

  alignas(kBytes) static std::array<std::byte, 2 * kBytes> memory;
  auto* const last_page = reinterpret_cast<std::byte*>(UINTPTR_MAX - kBytes + 1);
  table.shows("`register_host` of null", backend.register_host(nullptr, kBytes));
  table.shows("`register_host` of 0 bytes", backend.register_host(memory.data(), 0));
  table.shows("`register_host` beyond the last address", backend.register_host(last_page, 2 * kBytes));
  EXPECT_TRUE(backend.register_host(memory.data(), memory.size()));
  table.shows("`register_host` twice", backend.register_host(memory.data(), memory.size()));
  table.shows("`register_host` of memory that overlaps",
              backend.register_host(memory.data() + kBytes, kBytes));
  table.shows("`unregister_host` of memory that is not registered",
              backend.unregister_host(memory.data() + 1));
  EXPECT_TRUE(backend.unregister_host(memory.data()));
  table.shows("`unregister_host` twice", backend.unregister_host(memory.data()));
}

void show_streams(Backend& backend) {
  Table table("`Backend`: streams, events and time");
  const StreamId stream = *backend.create_stream(0);
  const StreamId gone = *backend.create_stream(0);
  EXPECT_TRUE(backend.destroy_stream(gone));
  table.shows("`create_stream` of device 9", backend.create_stream(9));
  table.shows("`create_stream` of the host", backend.create_stream(kHost));
  table.shows("`destroy_stream` of `none`", backend.destroy_stream(StreamId::none));
  table.shows("`destroy_stream` twice", backend.destroy_stream(gone));
  table.shows("`stream_device` of 4711", backend.stream_device(kNoStream));
  table.shows("`is_capturing` of 4711", backend.is_capturing(kNoStream) ? "true" : "false");

  const EventId event = *backend.record_event(stream);
  EXPECT_EQ(backend.wait_event(event, kNever), EventState::complete);
  table.shows("`record_event` on 4711", backend.record_event(kNoStream));
  table.shows("`stream_wait` on 4711", backend.stream_wait(kNoStream, event));
  backend.release_event(event);
  table.stops("`stream_wait` for event 0", [&] { backend.stream_wait(stream, EventId::none); });
  table.stops("`query_event` of event 0", [&] { static_cast<void>(backend.query_event(EventId::none)); });
  table.stops("`query_event` after `release_event`", [&] { static_cast<void>(backend.query_event(event)); });
  table.stops("`release_event` twice", [&] { backend.release_event(event); });
  table.stops("`wait_event` of event 0", [&] { backend.wait_event(EventId::none, 0); });

  // Behind a copy that nobody lets end yet: in virtual time nothing moves by itself, in real time it is
  // large.
  const std::uint64_t bytes = 32 * kSegmentBytes;
  std::byte* segment = *backend.map_segment(0, bytes, {});
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(backend.fill(stream, 0, segment, bytes, 1));
  const EventId late = *backend.record_event(stream);
  const auto name = [](EventState state) { return state == EventState::pending ? "pending" : "over"; };
  table.shows("`wait_event` with a deadline in the past",
              name(backend.wait_event(late, backend.now_ns() - 1)));
  table.shows("`wait_event` with a negative deadline", name(backend.wait_event(late, -1)));
  EXPECT_EQ(backend.wait_event(late, kNever), EventState::complete);
  backend.release_event(late);
  EXPECT_TRUE(backend.unmap_segment(segment));
  EXPECT_TRUE(backend.destroy_stream(stream));

  for (const TimeNs past : {backend.now_ns() - 1, TimeNs{-1}, std::numeric_limits<TimeNs>::min()})
    backend.sleep_until(past);
  table.shows("`sleep_until` a time in the past, or a negative one", Status{});
}

void show_work(Backend& backend) {
  Table table("`Backend`: copies and fills");
  const StreamId stream = *backend.create_stream(0);
  std::byte* mine = *backend.map_segment(0, kSegmentBytes, {});
  std::byte* peers = *backend.map_segment(1, kSegmentBytes, {});
  const auto copy = [&](Copy one, Route route = {0, 0}, StreamId on = StreamId::none) -> Outcome {
    return backend.copy(on == StreamId::none ? stream : on, route, {&one, 1});
  };
  const Copy good{mine, mine + kBytes, kBytes};
  table.shows("`copy` of no copies", backend.copy(stream, {0, 0}, {}));
  table.shows("`copy` to null", copy({nullptr, mine, kBytes}));
  table.shows("`copy` from null", copy({mine, nullptr, kBytes}));
  table.shows("`copy` of 0 bytes", copy({mine, mine + kBytes, 0}));
  table.shows("`copy` on stream 4711", copy(good, {0, 0}, kNoStream));
  table.shows("`copy` to device 9", copy(good, {0, 9}));
  table.shows("`copy` from device -2", copy(good, {-2, 0}));
  table.shows("`fill` at null", backend.fill(stream, 0, nullptr, kBytes, 0));
  table.shows("`fill` of 0 bytes", backend.fill(stream, 0, mine, 0, 0));
  table.shows("`fill` on stream 4711", backend.fill(kNoStream, 0, mine, kBytes, 0));
  table.shows("`fill` on device 9", backend.fill(stream, 9, mine, kBytes, 0));
  table.shows("`fill` of memory of another device", backend.fill(stream, 0, peers, kBytes, 0));
  EXPECT_TRUE(backend.unmap_segment(mine)) << "what was refused holds nothing";
  EXPECT_TRUE(backend.unmap_segment(peers));
  EXPECT_TRUE(backend.destroy_stream(stream));
}

}  // namespace

void show_backend_rows(Backend& backend) {
  show_memory(backend);
  show_streams(backend);
  show_work(backend);
}

}  // namespace harvest::testing
