// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>

#include <set>
#include <thread>

#include "cuda/fake_machine.hpp"

/// What the CUDA backend does beyond the laws of all backends.
namespace harvest::test {
namespace {

using testing::HasSubstr;

const LinkInfo& link_of(const Backend& backend, DeviceId from, DeviceId to) {
  for (const LinkInfo& link : backend.links())
    if (link.from == from && link.to == to) return link;
  ADD_FAILURE() << "no link from " << from << " to " << to;
  return backend.links().front();
}

int current_device() {
  int device = -1;
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  return device;
}

/// No error of ours is left for whoever asks next.
void expect_no_trace() {
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

// --- the machine ----------------------------------------------------------------------------------------

TEST(CudaMachine, IsDescribed) {
  fake::MachineDescription description = machine_of(2);
  description.devices[0].name = "One GPU";
  description.devices[1].name = "Another GPU";
  description.devices[1].copy_engines = 5;
  const FakeMachine machine(description);
  const auto backend = make_backend();
  EXPECT_EQ(backend->info().name, "cuda");
  EXPECT_EQ(backend->info().system, "One GPU, Another GPU");
  EXPECT_FALSE(backend->info().simulated || backend->info().virtual_time);
  EXPECT_TRUE(backend->info().holds_bytes);
  const auto devices = backend->devices();
  ASSERT_EQ(devices.size(), 3U);
  EXPECT_EQ(devices[1].name, "Another GPU");
  EXPECT_EQ(devices[1].copy_engines, 5U);
  EXPECT_EQ(devices[1].total_bytes, 512 * kMiB);
  EXPECT_EQ(devices[1].segment_granularity_bytes, 2 * kMiB);
  EXPECT_EQ(devices[2].id, kHost);
  EXPECT_THAT(devices[0].uuid,
              testing::MatchesRegex("GPU-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+"));
  EXPECT_NE(devices[0].uuid, devices[1].uuid);
  expect_no_trace();
}

TEST(CudaMachine, ChosenGpusAreTheDevicesInThatOrder) {
  fake::MachineDescription description = machine_of(4);
  for (std::size_t i = 0; i < 4; ++i) description.devices[i].name = "GPU number " + std::to_string(i);
  const FakeMachine machine(description);
  CudaOptions options = plain_options();
  options.gpus = {3, 1};
  const auto backend = make_backend(options);
  ASSERT_EQ(backend->devices().size(), 3U);
  EXPECT_EQ(backend->devices()[0].name, "GPU number 3");
  EXPECT_EQ(backend->devices()[1].name, "GPU number 1");
  // Memory of device 0 is GPU 3's.
  std::byte* segment = backend->map_segment(0, 8 * kMiB, {}).value();
  EXPECT_EQ(fake::used_bytes(3), 8 * kMiB);
  EXPECT_EQ(fake::used_bytes(1), 0U);
  EXPECT_TRUE(backend->unmap_segment(segment));
}

TEST(CudaMachine, LinksAreWhatNvmlSays) {
  fake::MachineDescription description = machine_of(4);
  for (fake::DeviceDescription& device : description.devices) device.nvlinks = {{fake::kSwitch, 18}};
  {
    const FakeMachine machine(description);
    const auto backend = make_backend();
    const LinkInfo& link = link_of(*backend, 0, 3);
    EXPECT_EQ(link.kind, LinkKind::nvswitch);
    EXPECT_THAT(link.source, HasSubstr("18 NVLinks"));
    EXPECT_NEAR(link.bandwidth_bytes_per_s, 18 * 25e9 * .87, 60e9);
  }
  description.devices[0].nvlinks = {{1, 12}};
  description.devices[1].nvlinks = {{0, 12}};
  description.devices[2].nvlinks = description.devices[3].nvlinks = {};
  {
    const FakeMachine machine(description);
    const auto backend = make_backend();
    EXPECT_EQ(link_of(*backend, 0, 1).kind, LinkKind::nvlink);
    EXPECT_THAT(link_of(*backend, 1, 0).source, HasSubstr("12 NVLinks"));
    EXPECT_EQ(link_of(*backend, 2, 3).kind, LinkKind::pcie);
    EXPECT_TRUE(link_of(*backend, 2, 3).peer_access);
    EXPECT_THAT(link_of(*backend, 2, kHost).source, HasSubstr("PCIe 5 x16"));
    EXPECT_EQ(link_of(*backend, 2, 2).kind, LinkKind::same_device);
  }
}

TEST(CudaMachine, WithoutNvmlLinksAreAssumed) {
  fake::MachineDescription description = machine_of(2);
  description.has_nvml = false;
  const FakeMachine machine(description);
  const auto backend = make_backend();
  EXPECT_TRUE(link_of(*backend, 0, 1).peer_access);
  EXPECT_THAT(link_of(*backend, 0, 1).source, HasSubstr("assumed"));
  EXPECT_THAT(link_of(*backend, kHost, 1).source, HasSubstr("assumed: PCIe"));
}

TEST(CudaMachine, InstancesOfAGpuReachNoPeer) {
  fake::MachineDescription description = machine_of(2);
  for (fake::DeviceDescription& device : description.devices) device.mig = true;
  const FakeMachine machine(description);
  const auto backend = make_backend();
  EXPECT_FALSE(link_of(*backend, 0, 1).peer_access);
  EXPECT_FALSE(link_of(*backend, 1, 0).peer_access);
  EXPECT_TRUE(link_of(*backend, 0, kHost).peer_access);
}

// --- copies -----------------------------------------------------------------------------------------------

TEST(CudaCopies, AreStagedWhereTheReaderCannotReach) {
  const FakeMachine machine(without_peer_access(machine_of(2)));
  const auto backend = make_backend();
  const DeviceId readers[] = {0, 1};
  constexpr std::uint64_t kBytes = 3 * kMiB + 5;
  std::byte* from = backend->map_segment(1, 4 * kMiB, readers).value();
  std::byte* to = backend->map_segment(0, 4 * kMiB, readers).value();
  const StreamId stream = backend->create_stream(0).value();
  const auto sent = content(kBytes, 1);
  std::vector<std::byte> received(kBytes);
  ASSERT_TRUE(copy_one(*backend, stream, {kHost, 1}, from, sent.data(), kBytes));
  ASSERT_TRUE(copy_one(*backend, stream, {1, 0}, to, from, kBytes));
  ASSERT_TRUE(copy_one(*backend, stream, {0, kHost}, received.data(), to, kBytes));
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(received, sent);
  EXPECT_GE(fake::counters().staged_copies, 1U);
}

TEST(CudaCopies, FillMemoryThatTheStreamCannotReach) {
  const FakeMachine machine(without_peer_access(machine_of(2)));
  const auto backend = make_backend();
  std::byte* there = backend->map_segment(1, 4 * kMiB, {}).value();
  const StreamId stream = backend->create_stream(0).value();
  const StreamId other = backend->create_stream(1).value();
  for (std::uint64_t round = 0; round < 5;
       ++round) {  // each time the copies before and after are not overtaken
    const auto sent = content(2 * kMiB, round);
    std::vector<std::byte> received(2 * kMiB);
    ASSERT_TRUE(copy_one(*backend, stream, {kHost, 1}, there, sent.data(), sent.size()));
    ASSERT_TRUE(backend->fill(stream, 1, there + 100, kMiB, 0x5A));
    ASSERT_TRUE(copy_one(*backend, stream, {1, kHost}, received.data(), there, received.size()));
    ASSERT_EQ(finish(*backend, stream), EventState::complete);
    auto wanted = sent;
    std::fill_n(wanted.begin() + 100, kMiB, std::byte{0x5A});
    EXPECT_EQ(received, wanted);
  }
  ASSERT_EQ(finish(*backend, other), EventState::complete);
}

TEST(CudaCopies, FillPinnedHostMemoryAndNoOther) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const StreamId stream = backend->create_stream(0).value();
  std::byte* pinned = backend->map_segment(kHost, 2 * kMiB, {}).value();
  std::memset(pinned, 1, 2 * kMiB);
  ASSERT_TRUE(backend->fill(stream, kHost, pinned + 10, 1000, 0xC3));
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(pinned[9], std::byte{1});
  EXPECT_EQ(pinned[10], std::byte{0xC3});
  EXPECT_EQ(pinned[1009], std::byte{0xC3});
  EXPECT_EQ(pinned[1010], std::byte{1});
  std::byte pageable[64]{};
  EXPECT_EQ(code_of(backend->fill(stream, kHost, pageable, 64, 1)), ErrorCode::invalid_argument);
  EXPECT_EQ(code_of(backend->fill(stream, 0, pinned, 64, 1)), ErrorCode::invalid_argument)
      << "another device's";
  EXPECT_EQ(code_of(backend->fill(StreamId{99}, kHost, pinned, 64, 1)), ErrorCode::not_found);
  EXPECT_TRUE(backend->unmap_segment(pinned));
}

/// A buffer that the caller's own code allocated.
TEST(CudaCopies, TakeTheCallersOwnMemory) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  void* buffer = nullptr;
  ASSERT_EQ(cudaMalloc(&buffer, kMiB), cudaSuccess);
  const StreamId stream = backend->create_stream(0).value();
  const auto sent = content(kMiB, 4);
  std::vector<std::byte> received(kMiB);
  ASSERT_TRUE(copy_one(*backend, stream, {kHost, 0}, buffer, sent.data(), kMiB));
  ASSERT_TRUE(copy_one(*backend, stream, {0, kHost}, received.data(), buffer, kMiB));
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(received, sent);
  ASSERT_TRUE(backend->fill(stream, 0, static_cast<std::byte*>(buffer), kMiB, 7));
  ASSERT_TRUE(copy_one(*backend, stream, {0, kHost}, received.data(), buffer, kMiB));
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(received, std::vector<std::byte>(kMiB, std::byte{7}));
  ASSERT_EQ(cudaFree(buffer), cudaSuccess);
}

// --- streams and events
// -------------------------------------------------------------------------------------

TEST(CudaStreams, OfTheCallerAreWrapped) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  cudaStream_t native = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  const StreamId stream = backend->wrap_stream(1, native).value();
  EXPECT_EQ(backend->stream_device(stream).value(), 1);

  std::byte* segment = backend->map_segment(1, 2 * kMiB, {}).value();
  const auto sent = content(kMiB, 8);
  std::vector<std::byte> received(kMiB);
  ASSERT_TRUE(copy_one(*backend, stream, {kHost, 1}, segment, sent.data(), kMiB));
  ASSERT_TRUE(copy_one(*backend, stream, {1, kHost}, received.data(), segment, kMiB));
  ASSERT_EQ(cudaStreamSynchronize(native), cudaSuccess);  // the caller's own means see our work
  EXPECT_EQ(received, sent);
  ASSERT_TRUE(backend->destroy_stream(stream));
  EXPECT_EQ(cudaStreamQuery(native), cudaSuccess) << "the caller's stream was destroyed";
  ASSERT_EQ(cudaStreamDestroy(native), cudaSuccess);
  EXPECT_EQ(current_device(), 0);
  EXPECT_TRUE(backend->unmap_segment(segment));
}

TEST(CudaStreams, TheLegacyStreamTakesCopies) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const StreamId stream = backend->wrap_stream(1, nullptr).value();
  std::byte* segment = backend->map_segment(1, 2 * kMiB, {}).value();
  const auto sent = content(kMiB, 8);
  std::vector<std::byte> received(kMiB);
  std::vector<Copy> in, out;
  for (std::uint64_t at = 0; at < kMiB; at += 4096) {
    in.push_back({segment + at, sent.data() + at, 4000});
    out.push_back({received.data() + at, segment + at, 4000});
  }
  ASSERT_TRUE(backend->copy(stream, {kHost, 1}, in));
  ASSERT_TRUE(backend->copy(stream, {1, kHost}, out));
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  for (std::uint64_t at = 0; at < kMiB; at += 4096)
    ASSERT_EQ(std::memcmp(received.data() + at, sent.data() + at, 4000), 0) << at;
  EXPECT_FALSE(backend->is_capturing(stream));
  EXPECT_TRUE(backend->unmap_segment(segment));
}

TEST(CudaStreams, LeaveTheCallersDeviceCurrent) {
  const FakeMachine machine(machine_of(3));
  const auto backend = make_backend();
  ASSERT_EQ(cudaSetDevice(2), cudaSuccess);
  const StreamId stream = backend->create_stream(0).value();
  EXPECT_EQ(current_device(), 2);
  std::byte* segment = backend->map_segment(1, 2 * kMiB, {}).value();
  std::byte* host = backend->map_segment(kHost, 2 * kMiB, {}).value();
  EXPECT_EQ(current_device(), 2);
  ASSERT_TRUE(backend->fill(stream, kHost, host, kMiB, 1));
  EXPECT_EQ(current_device(), 2);
  ASSERT_TRUE(backend->query_memory(0));
  EXPECT_EQ(current_device(), 2);
  EXPECT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(current_device(), 2);
  ASSERT_TRUE(backend->destroy_stream(stream));
  EXPECT_EQ(current_device(), 2);
  EXPECT_TRUE(backend->unmap_segment(segment));
  EXPECT_TRUE(backend->unmap_segment(host));
  EXPECT_EQ(current_device(), 2);
}

/// More events than the first chunk of a pool holds; given back, they are used again.
TEST(CudaEvents, ArePooled) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const StreamId stream = backend->create_stream(1).value();
  std::set<EventId> seen;
  for (int round = 0; round < 3; ++round) {
    std::vector<EventId> events;
    for (int i = 0; i < 300; ++i) events.push_back(backend->record_event(stream).value());
    for (const EventId event : events) {
      EXPECT_NE(event, EventId::none);
      EXPECT_TRUE(seen.insert(event).second) << "an id was given out twice";
      EXPECT_EQ(backend->wait_event(event, kNever), EventState::complete);
    }
    for (const EventId event : events) backend->release_event(event);
  }
  EXPECT_EQ(fake::calls("cudaEventCreateWithFlags"), 300U);
}

/// The event is recorded again, on other work, while a stream still waits for what it meant first.
TEST(CudaEvents, GivenBackWhilePendingStillHoldWhatWaits) {
  const FakeMachine machine(machine_of(2));
  fake::slow_copies(2'000);
  const auto backend = make_backend();
  const StreamId writer = backend->create_stream(0).value(), reader = backend->create_stream(0).value();
  const StreamId idle = backend->create_stream(0).value();
  std::byte* segment = backend->map_segment(0, 2 * kMiB, {}).value();
  for (std::uint64_t round = 0; round < 5; ++round) {
    const auto sent = content(kMiB, round);
    std::vector<std::byte> received(kMiB);
    ASSERT_TRUE(copy_one(*backend, writer, {kHost, 0}, segment, sent.data(), kMiB));
    const EventId written = backend->record_event(writer).value();
    ASSERT_TRUE(backend->stream_wait(reader, written));
    backend->release_event(written);
    const EventId again = backend->record_event(idle).value();  // the same CUDA event, complete at once
    EXPECT_EQ(backend->wait_event(again, kNever), EventState::complete);
    backend->release_event(again);
    ASSERT_TRUE(copy_one(*backend, reader, {0, kHost}, received.data(), segment, kMiB));
    ASSERT_EQ(finish(*backend, reader), EventState::complete);
    EXPECT_EQ(received, sent);
  }
  EXPECT_TRUE(backend->unmap_segment(segment));
}

/// CUDA's own copy between two places of the host waits for the stream and for itself, with the caller's
/// locks.
TEST(CudaCopies, FromHostToHostDoNotHoldTheirCaller) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const StreamId stream = backend->create_stream(0).value();
  std::byte* segment = backend->map_segment(0, 2 * kMiB, {}).value();
  const auto sent = content(kMiB, 5);
  std::vector<std::byte> between(kMiB), received(kMiB);
  ASSERT_TRUE(copy_one(*backend, stream, {kHost, 0}, segment, sent.data(), kMiB));
  ASSERT_TRUE(copy_one(*backend, stream, {0, kHost}, between.data(), segment, kMiB));
  const std::uint64_t before = fake::calls("cudaMemcpyAsync");
  ASSERT_TRUE(copy_one(*backend, stream, {kHost, kHost}, received.data(), between.data(), kMiB));
  EXPECT_EQ(fake::calls("cudaMemcpyAsync"), before);
  EXPECT_EQ(fake::calls("cudaLaunchHostFunc"), 1U);
  ASSERT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(received, sent) << "in the order of the stream";
  EXPECT_TRUE(backend->unmap_segment(segment));
}

/// That an event cannot be had says nothing of the stream's work: only of a lost device that is over.
TEST(CudaEvents, OneThatCannotBeRecordedIsNotUsedAgain) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const StreamId stream = backend->create_stream(0).value();
  backend->release_event(backend->record_event(stream).value());  // one is in the pool
  fake::fail_call("cudaEventRecord", 1, cudaErrorInvalidResourceHandle);
  EXPECT_EQ(code_of(backend->record_event(stream)), ErrorCode::out_of_memory);
  const std::uint64_t made = fake::calls("cudaEventCreateWithFlags");
  EXPECT_EQ(finish(*backend, stream), EventState::complete);
  EXPECT_EQ(fake::calls("cudaEventCreateWithFlags"), made + 1) << "the bad one is gone";

  const StreamId other = backend->create_stream(1).value();  // whose pool is empty
  fake::fail_call("cudaEventCreateWithFlags", 1, cudaErrorUnknown);
  EXPECT_EQ(code_of(backend->record_event(other)), ErrorCode::out_of_memory)
      << "not `unavailable`: it is not lost";
  EXPECT_EQ(finish(*backend, other), EventState::complete);
}

TEST(CudaEvents, OneThatBecameAGraphsIsNotOver) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const StreamId stream = backend->create_stream(0).value();
  const EventId event = backend->record_event(stream).value();
  fake::fail_call("cudaEventQuery", 1, cudaErrorCapturedEvent);
  EXPECT_EQ(backend->query_event(event), EventState::pending);
  EXPECT_EQ(backend->wait_event(event, kNever), EventState::complete);
  backend->release_event(event);
}

TEST(CudaEvents, AWaitEndsAtItsDeadline) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const StreamId stream = backend->create_stream(0).value();
  std::byte* segment = backend->map_segment(0, 2 * kMiB, {}).value();
  const auto sent = content(kMiB, 1);
  fake::slow_copies(100'000);
  ASSERT_TRUE(copy_one(*backend, stream, {kHost, 0}, segment, sent.data(), kMiB));
  const EventId event = backend->record_event(stream).value();
  const TimeNs deadline = backend->now_ns() + 5'000'000;
  EXPECT_EQ(backend->wait_event(event, deadline), EventState::pending);
  EXPECT_GE(backend->now_ns(), deadline);
  EXPECT_EQ(backend->wait_event(event, kNever), EventState::complete);
  backend->release_event(event);
  expect_no_trace();
  EXPECT_TRUE(backend->unmap_segment(segment));
}

// --- capture
// ------------------------------------------------------------------------------------------------

class CudaCapture : public testing::Test {
 protected:
  void begin() { ASSERT_EQ(cudaStreamBeginCapture(native_, cudaStreamCaptureModeGlobal), cudaSuccess); }
  /// Ends the capture and does what it recorded.
  void launch() {
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(native_, &graph), cudaSuccess);
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(exec, native_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(native_), cudaSuccess);
    ASSERT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
    ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
  void SetUp() override {
    ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithFlags(&native_, cudaStreamNonBlocking), cudaSuccess);
    stream_ = backend_->wrap_stream(0, native_).value();
    host_ = backend_->map_segment(kHost, 2 * kMiB, {}).value();
    segment_ = backend_->map_segment(0, 2 * kMiB, {}).value();
  }
  void TearDown() override {
    ASSERT_TRUE(backend_->destroy_stream(stream_));
    ASSERT_EQ(cudaStreamDestroy(native_), cudaSuccess);
  }

  FakeMachine machine_{machine_of(2)};
  std::unique_ptr<Backend> backend_ = make_backend();
  cudaStream_t native_ = nullptr;
  StreamId stream_ = StreamId::none;
  std::byte* host_ = nullptr;
  std::byte* segment_ = nullptr;
};

TEST_F(CudaCapture, IsSeen) {
  EXPECT_FALSE(backend_->is_capturing(stream_));
  begin();
  EXPECT_TRUE(backend_->is_capturing(stream_));
  EXPECT_FALSE(backend_->is_capturing(StreamId{999}));
  launch();
  EXPECT_FALSE(backend_->is_capturing(stream_));
}

TEST_F(CudaCapture, TakesCopiesAndRefusesEvents) {
  const StreamId other = backend_->create_stream(0).value();
  std::vector<Copy> runs;
  for (std::uint64_t at = 0; at < kMiB; at += 4096) runs.push_back({segment_ + at, host_ + at, 4096});
  fake::slow_copies(1'000);
  ASSERT_TRUE(copy_one(*backend_, other, {kHost, 0}, segment_ + kMiB, host_ + kMiB, kMiB));
  const EventId outside = backend_->record_event(other).value();
  begin();
  EXPECT_EQ(code_of(backend_->record_event(stream_)), ErrorCode::not_supported);
  EXPECT_EQ(code_of(backend_->stream_wait(stream_, outside)), ErrorCode::not_supported);
  ASSERT_TRUE(backend_->copy(stream_, {kHost, 0}, runs));
  const auto sent = content(kMiB, 3);  // what is there when the graph runs
  std::memcpy(host_, sent.data(), kMiB);
  launch();
  std::vector<std::byte> received(kMiB);
  ASSERT_TRUE(copy_one(*backend_, stream_, {0, kHost}, received.data(), segment_, kMiB));
  ASSERT_EQ(finish(*backend_, stream_), EventState::complete);
  EXPECT_EQ(received, sent);
  EXPECT_EQ(backend_->wait_event(outside, kNever), EventState::complete);
  backend_->release_event(outside);
}

/// In CUDA's global mode a mere event query of ours would spoil somebody's capture.
TEST_F(CudaCapture, OfSomebodyElseIsNotDisturbed) {
  const StreamId other = backend_->create_stream(1).value();
  begin();
  std::thread poll([&] {
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(backend_->query_memory(1));
      std::byte* segment = backend_->map_segment(1, 2 * kMiB, {}).value();
      std::byte* pinned = backend_->map_segment(kHost, 2 * kMiB, {}).value();
      ASSERT_TRUE(copy_one(*backend_, other, {kHost, 1}, segment, pinned, kMiB));
      ASSERT_EQ(finish(*backend_, other), EventState::complete);
      ASSERT_TRUE(backend_->unmap_segment(segment));
      ASSERT_TRUE(backend_->unmap_segment(pinned));
    }
  });
  poll.join();
  ASSERT_TRUE(copy_one(*backend_, stream_, {kHost, 0}, segment_, host_, kMiB));
  launch();
}

}  // namespace
}  // namespace harvest::test
