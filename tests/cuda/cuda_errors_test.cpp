// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>

#include <chrono>

#include "cuda/fake_machine.hpp"

/// What goes wrong on real machines, made to happen.
namespace harvest::test {
namespace {

using testing::HasSubstr;

// --- no machine: what is wrong with the options is shown in cuda_wrong_input_test.cpp
// ------------------------

TEST(CudaErrors, AGpuThatDoesNotAnswerIsSaid) {
  for (const char* call : {"cudaMemGetInfo", "cudaGetDeviceProperties", "cudaDeviceGetPCIBusId"}) {
    const FakeMachine machine(machine_of(2));
    fake::fail_call(call, 2, cudaErrorDevicesUnavailable, 10);
    const auto made = make_cuda_backend(plain_options());
    ASSERT_EQ(code_of(made), ErrorCode::unavailable) << call;
    EXPECT_THAT(made.error().message, HasSubstr("cudaErrorDevicesUnavailable"));
  }
}

// --- out of memory ----------------------------------------------------------------------------------------

/// All that takes memory, once; the first error, or success.
Status use_everything(bool use_virtual_memory) {
  CudaOptions options = plain_options();
  options.use_virtual_memory = use_virtual_memory;
  auto made = make_cuda_backend(options);
  if (!made) return tl::unexpected(made.error());
  Backend& backend = **made;
  const DeviceId readers[] = {0, 1};
  for (const DeviceId device : {0, 1, kHost})
    if (const auto segment = backend.map_segment(device, 4 * kMiB, readers); !segment)
      return tl::unexpected(segment.error());
  std::vector<std::byte> own(kMiB);
  if (Status status = backend.register_host(own.data(), own.size()); !status) return status;
  const auto stream = backend.create_stream(0);
  if (!stream) return tl::unexpected(stream.error());
  const auto event = backend.record_event(*stream);
  if (!event) return tl::unexpected(event.error());
  backend.release_event(*event);
  return backend.unregister_host(own.data());
}

/// Each allocation in turn fails; what was taken before it is given back.
TEST(CudaErrors, OutOfMemoryAtEachAllocationLeavesNothing) {
  for (const bool use_virtual_memory : {true, false}) {
    std::uint64_t failed = 0;
    for (bool again = true; again; ++failed) {
      const FakeMachine machine(machine_of(2));
      fake::fail_allocation(failed + 1);
      const Status status = use_everything(use_virtual_memory);
      again = !status;
      if (status) break;
      EXPECT_EQ(status.error().code, ErrorCode::out_of_memory) << status.error().message;
      EXPECT_THAT(status.error().message,
                  testing::AnyOf(HasSubstr("OUT_OF_MEMORY"), HasSubstr("cudaErrorMemoryAllocation")));
      EXPECT_EQ(fake::used_bytes(0) + fake::used_bytes(1), 0U);
      EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
    }
    EXPECT_GE(failed, 4U) << "two devices, the host, and the caller's memory";
  }
}

/// Each step of a mapping in turn fails; those before it are undone, and the device goes on.
TEST(CudaErrors, AMappingIsUndoneStepByStep) {
  for (const char* call : {"cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"}) {
    const FakeMachine machine(machine_of(2));
    const auto backend = make_backend();
    const std::uint64_t before = backend->query_memory(1)->free_bytes;
    const DeviceId readers[] = {0};
    fake::fail_call(call, 1, 2 /* CUDA_ERROR_OUT_OF_MEMORY */);
    const auto segment = backend->map_segment(1, 8 * kMiB, readers);
    ASSERT_EQ(code_of(segment), ErrorCode::out_of_memory) << call;
    EXPECT_THAT(segment.error().message, HasSubstr(call));
    EXPECT_EQ(fake::leaks().handles + fake::leaks().mappings + fake::leaks().reservations, 0U) << call;
    EXPECT_EQ(backend->query_memory(1)->free_bytes, before);
    std::byte* again = backend->map_segment(1, 8 * kMiB, readers).value();
    EXPECT_TRUE(backend->unmap_segment(again));
  }
}

TEST(CudaErrors, AnUnmapThatFailsIsSaid) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  std::byte* segment = backend->map_segment(1, 2 * kMiB, {}).value();
  fake::fail_call("cuMemAddressFree", 1, 1 /* CUDA_ERROR_INVALID_VALUE */);
  const Status status = backend->unmap_segment(segment);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("cuMemAddressFree"));
  EXPECT_EQ(fake::used_bytes(1), 0U) << "the memory itself is back";
  fake::reset(machine_of(1));  // the address range is lost, as the test wants it
}

TEST(CudaErrors, TooManyPeersNamesTheLimit) {
  fake::MachineDescription description = machine_of(10, 64 * kMiB);
  description.nvswitch = false;
  const FakeMachine machine(description);
  CudaOptions options = plain_options();
  options.use_virtual_memory = false;
  const auto backend = make_backend(options);
  std::vector<std::byte*> segments;
  Result<std::byte*> last = nullptr;
  const DeviceId reader[] = {0};
  for (DeviceId owner = 1; owner < 10; ++owner) {
    last = backend->map_segment(owner, 2 * kMiB, reader);
    if (last) segments.push_back(*last);
  }
  EXPECT_EQ(segments.size(), 8U);
  ASSERT_EQ(code_of(last), ErrorCode::unavailable);
  EXPECT_THAT(last.error().message, HasSubstr("8 peers"));
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  EXPECT_EQ(fake::used_bytes(9), 0U);
}

TEST(CudaErrors, PeerAccessThatTheCallerEnabledIsGood) {
  const FakeMachine machine(machine_of(2));
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  ASSERT_EQ(cudaDeviceEnablePeerAccess(1, 0), cudaSuccess);
  CudaOptions options = plain_options();
  options.use_virtual_memory = false;
  const auto backend = make_backend(options);
  const DeviceId reader[] = {0};
  std::byte* segment = backend->map_segment(1, 2 * kMiB, reader).value();
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  EXPECT_TRUE(backend->unmap_segment(segment));
}

// --- host memory ------------------------------------------------------------------------------------------

TEST(CudaErrors, HostMemoryThatCannotBePinnedIsGivenBack) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const std::uint64_t before = backend->query_memory(kHost)->free_bytes;
  fake::fail_call("cudaHostRegister", 1, cudaErrorMemoryAllocation);
  const auto segment = backend->map_segment(kHost, 4 * kMiB, {});
  ASSERT_EQ(code_of(segment), ErrorCode::out_of_memory);
  EXPECT_THAT(segment.error().message, HasSubstr("cudaErrorMemoryAllocation"));
  EXPECT_EQ(backend->query_memory(kHost)->free_bytes, before);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST(CudaErrors, HostMemoryThatSomebodyElsePinnedIsRefused) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  std::vector<std::byte> memory(4 * kMiB);
  ASSERT_EQ(cudaHostRegister(memory.data() + kMiB, kMiB, cudaHostRegisterDefault), cudaSuccess);
  const Status status = backend->register_host(memory.data(), memory.size());
  ASSERT_EQ(code_of(status), ErrorCode::invalid_argument);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  ASSERT_EQ(cudaHostUnregister(memory.data() + kMiB), cudaSuccess);
  EXPECT_TRUE(backend->register_host(memory.data(), memory.size()));
  EXPECT_TRUE(backend->unregister_host(memory.data()));
}

// --- lost devices -----------------------------------------------------------------------------------------

/// A backend with one of everything on two devices.
struct TwoDevices {
  TwoDevices() {
    for (const DeviceId device : {0, 1}) {
      streams.push_back(backend->create_stream(device).value());
      segments.push_back(backend->map_segment(device, 4 * kMiB, std::vector<DeviceId>{0, 1}).value());
    }
    host = backend->map_segment(kHost, 4 * kMiB, {}).value();
  }
  /// Device 0 does all that it did before.
  void expect_other_goes_on() {
    const auto sent = content(kMiB, 77);
    std::vector<std::byte> received(kMiB);
    ASSERT_TRUE(copy_one(*backend, streams[0], {kHost, 0}, segments[0], sent.data(), kMiB));
    ASSERT_TRUE(copy_one(*backend, streams[0], {0, kHost}, received.data(), segments[0], kMiB));
    EXPECT_EQ(finish(*backend, streams[0]), EventState::complete);
    EXPECT_EQ(received, sent);
    std::byte* more = backend->map_segment(0, 2 * kMiB, std::vector<DeviceId>{0, 1}).value();
    EXPECT_TRUE(backend->unmap_segment(more));
    std::byte* pinned = backend->map_segment(kHost, 2 * kMiB, {}).value();
    EXPECT_TRUE(backend->unmap_segment(pinned));
  }
  /// Device 1 answers `unavailable` to everything.
  void expect_lost() {
    EXPECT_EQ(code_of(backend->query_memory(1)), ErrorCode::unavailable);
    EXPECT_EQ(code_of(backend->map_segment(1, 2 * kMiB, {})), ErrorCode::unavailable);
    EXPECT_EQ(code_of(backend->create_stream(1)), ErrorCode::unavailable);
    EXPECT_EQ(code_of(backend->wrap_stream(1, nullptr)), ErrorCode::unavailable);
    EXPECT_EQ(code_of(backend->record_event(streams[1])), ErrorCode::unavailable);
    EXPECT_EQ(code_of(copy_one(*backend, streams[1], {kHost, 0}, segments[0], host, 8)),
              ErrorCode::unavailable);
    EXPECT_EQ(code_of(copy_one(*backend, streams[0], {kHost, 1}, segments[1], host, 8)),
              ErrorCode::unavailable);
    EXPECT_EQ(code_of(copy_one(*backend, streams[0], {1, 0}, segments[0], segments[1], 8)),
              ErrorCode::unavailable);
    EXPECT_EQ(code_of(backend->fill(streams[1], 1, segments[1], 8, 0)), ErrorCode::unavailable);
    EXPECT_FALSE(backend->is_capturing(streams[1]));
    EXPECT_EQ(code_of(backend->unmap_segment(segments[1])), ErrorCode::unavailable);
    EXPECT_EQ(code_of(backend->unmap_segment(segments[1])), ErrorCode::invalid_argument) << "not forgotten";
    EXPECT_TRUE(backend->destroy_stream(streams[1]));
    EXPECT_EQ(code_of(backend->stream_device(streams[1])), ErrorCode::not_found);
  }

  FakeMachine machine{machine_of(2)};
  std::unique_ptr<Backend> backend = make_backend();
  std::vector<StreamId> streams;
  std::vector<std::byte*> segments;
  std::byte* host = nullptr;
};

TEST(CudaLostDevice, AnswersAtOnceAndTheOthersGoOn) {
  TwoDevices world;
  const EventId before = world.backend->record_event(world.streams[1]).value();
  EXPECT_EQ(world.backend->wait_event(before, kNever), EventState::complete);
  fake::lose_device(1);
  EXPECT_EQ(code_of(world.backend->query_memory(1)), ErrorCode::unavailable);
  const std::uint64_t calls = fake::calls("cudaMemGetInfo");
  world.expect_lost();
  EXPECT_EQ(fake::calls("cudaMemGetInfo"), calls) << "CUDA was asked about a device that is known to be lost";
  EXPECT_EQ(world.backend->query_event(before), EventState::complete) << "what was known before stays";
  world.backend->release_event(before);
  world.expect_other_goes_on();
}

TEST(CudaLostDevice, FailsTheEventsOfItsWork) {
  TwoDevices world;
  fake::lose_device_at_work(1, 1);
  const auto sent = content(kMiB, 5);
  const Status given =
      copy_one(*world.backend, world.streams[1], {kHost, 1}, world.segments[1], sent.data(), kMiB);
  if (given) {
    const auto event = world.backend->record_event(world.streams[1]);
    if (event) {
      ASSERT_TRUE(world.backend->stream_wait(world.streams[0], *event));
      EXPECT_EQ(world.backend->wait_event(*event, kNever), EventState::failed);
      EXPECT_TRUE(world.backend->stream_wait(world.streams[0], *event))
          << "a failed event lets a stream go on";
      world.backend->release_event(*event);
    } else {
      EXPECT_EQ(code_of(event), ErrorCode::unavailable);
    }
  } else {
    EXPECT_EQ(code_of(given), ErrorCode::unavailable);
  }
  world.expect_lost();
  world.expect_other_goes_on();
}

/// Wherever in a use of it the device goes, nothing hangs and the other one works.
TEST(CudaLostDevice, AtAnyCall) {
  for (std::uint64_t nth = 1; nth <= 40; ++nth) {
    TwoDevices world;
    Backend& backend = *world.backend;
    fake::lose_device_at_call(1, nth);
    const auto sent = content(kMiB, nth);
    for (int i = 0; i < 3; ++i) {
      static_cast<void>(
          copy_one(backend, world.streams[1], {kHost, 1}, world.segments[1], sent.data(), kMiB));
      static_cast<void>(backend.fill(world.streams[1], 1, world.segments[1], kMiB, 1));
      if (const auto event = backend.record_event(world.streams[1])) {
        static_cast<void>(backend.stream_wait(world.streams[0], *event));
        EXPECT_NE(backend.wait_event(*event, backend.now_ns() + 5'000'000'000), EventState::pending);
        backend.release_event(*event);
      }
      static_cast<void>(backend.query_memory(1));
      if (const auto more = backend.map_segment(1, 2 * kMiB, std::vector<DeviceId>{0}))
        static_cast<void>(backend.unmap_segment(*more));
    }
    world.expect_other_goes_on();
  }
}

TEST(CudaLostDevice, AStickyErrorOfACallTakesItOut) {
  for (const char* call : {"cudaMemcpyAsync", "cudaMemsetAsync", "cudaEventRecord", "cuMemCreate"}) {
    TwoDevices world;
    Backend& backend = *world.backend;
    fake::fail_call(call, 1, cudaErrorIllegalAddress);
    const auto sent = content(kMiB, 5);
    std::vector<ErrorCode> codes{
        code_of(copy_one(backend, world.streams[1], {kHost, 1}, world.segments[1], sent.data(), kMiB)),
        code_of(backend.fill(world.streams[1], 1, world.segments[1], kMiB, 1)),
        code_of(backend.record_event(world.streams[1])), code_of(backend.map_segment(1, 2 * kMiB, {}))};
    EXPECT_THAT(codes, testing::Contains(ErrorCode::unavailable)) << call;
    world.expect_lost();
    world.expect_other_goes_on();
  }
}

TEST(CudaLostDevice, WhenAllAreLostHostMemoryStillGoes) {
  TwoDevices world;
  for (const int device : {0, 1}) {
    fake::lose_device(device);
    EXPECT_EQ(code_of(world.backend->query_memory(device)), ErrorCode::unavailable);
  }
  const std::uint64_t before = world.backend->query_memory(kHost)->free_bytes;
  static_cast<void>(world.backend->unmap_segment(world.host));
  EXPECT_EQ(world.backend->query_memory(kHost)->free_bytes, before + 4 * kMiB);
  EXPECT_EQ(code_of(world.backend->map_segment(kHost, 2 * kMiB, {})), ErrorCode::unavailable);
}

/// Work that never ends keeps its memory; the backend ends all the same.
TEST(CudaErrors, ABackendEndsThoughItsWorkDoesNot) {
  fake::reset(machine_of(2));
  auto backend = make_backend();
  const StreamId stream = backend->create_stream(0).value();
  std::byte* segment = backend->map_segment(0, 2 * kMiB, {}).value();
  std::byte* host = backend->map_segment(kHost, 2 * kMiB, {}).value();
  fake::slow_copies(8'000'000);
  ASSERT_TRUE(copy_one(*backend, stream, {kHost, 0}, segment, host, kMiB));
  const TimeNs begin = backend->now_ns();
  const auto now_ns = [] {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  backend.reset();
  EXPECT_LT(now_ns() - begin, 7'000'000'000);
  EXPECT_GT(fake::used_bytes(0), 0U) << "memory under work was unmapped";
  fake::reset(machine_of(1));
}

}  // namespace
}  // namespace harvest::test
