// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <stdexcept>

#include "fake_cuda/driver_calls.hpp"

/// What goes wrong by plan.
namespace harvest::fake_cuda {
namespace {

using FaultPlans = FakeCudaTest;

TEST_F(FaultPlans, FailTheNthCallOfAFunction) {
  const TestStream stream(0);
  fail_call("cudaStreamQuery", 2, cudaErrorUnknown, 2);
  EXPECT_CUDA(cudaSuccess, cudaStreamQuery(stream));
  EXPECT_CUDA(cudaErrorUnknown, cudaStreamQuery(stream));
  EXPECT_CUDA(cudaErrorUnknown, cudaStreamQuery(stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamQuery(stream));
  EXPECT_EQ(calls("cudaStreamQuery"), 4U);
  EXPECT_CUDA(cudaErrorUnknown, cudaGetLastError());
  EXPECT_CUDA(cudaSuccess, cudaGetLastError());
}

TEST_F(FaultPlans, FailTheDriversCalls) {
  Segment segment(0, kGranularity);
  fail_call("cuMemUnmap", 1, CUDA_ERROR_INVALID_VALUE);
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, segment.unmap());
  EXPECT_CUDA(CUDA_SUCCESS, segment.unmap());
}

TEST_F(FaultPlans, AnErrorThatPoisonsPoisons) {
  const TestMemory memory(0, 4096);
  fail_call("cudaMemsetAsync", 1, cudaErrorIllegalAddress);
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaMemsetAsync(memory.get(), 1, 8, nullptr));
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaDeviceSynchronize());
  EXPECT_CUDA(cudaSuccess, cudaSetDevice(1));
  EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
}

TEST_F(FaultPlans, RunOutOfMemoryAtTheNthAllocation) {
  void* memory = nullptr;
  CUmemGenericAllocationHandle handle = 0;
  const DriverCalls cu;
  const auto prop = DriverCalls::properties(0);
  fail_allocation(2, 2);
  ASSERT_CUDA(cudaSuccess, cudaMalloc(&memory, 4096));
  EXPECT_CUDA(CUDA_ERROR_OUT_OF_MEMORY, cu.create(&handle, kGranularity, &prop, 0));
  void* pinned = nullptr;
  EXPECT_CUDA(cudaErrorMemoryAllocation, cudaMallocHost(&pinned, 4096));
  EXPECT_CUDA(cudaSuccess, cudaMallocHost(&pinned, 4096));
  EXPECT_CUDA(cudaSuccess, cudaFreeHost(pinned));
  EXPECT_CUDA(cudaSuccess, cudaFree(memory));
}

TEST_F(FaultPlans, LoseADeviceAtACallOrAtItsWork) {
  const TestStream stream(1);
  const TestMemory memory(1, 4096);
  lose_device_at_work(1, 2);
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 1, 8, stream));
  ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 2, 8, stream));
  EXPECT_CUDA(kLostDeviceError, cudaStreamSynchronize(stream));
  unsigned char value = 0;
  ASSERT_TRUE(read(memory.get(), &value, 1));
  EXPECT_EQ(value, 1) << "nothing runs on a lost device";
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(0));
  lose_device_at_call(0, 2, cudaErrorECCUncorrectable);
  EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
  EXPECT_CUDA(cudaErrorECCUncorrectable, cudaDeviceSynchronize());
  EXPECT_CUDA(cudaErrorECCUncorrectable, cudaDeviceSynchronize());
}

TEST_F(FaultPlans, ALostDevicesEventsLetOtherStreamsGoOn) {
  const TestStream lost(0);
  const TestStream other(1);
  const TestEvent event(0);
  {
    const Gate gate(lost);
    ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, lost));
    ASSERT_CUDA(cudaSuccess, cudaSetDevice(1));
    ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(other, event, 0));
    lose_device(0);
  }
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(other));
  EXPECT_CUDA(kLostDeviceError, cudaEventQuery(event));
}

TEST_F(FaultPlans, SlowQueriesAndCopiesAreSlow) {
  const auto timed = [](auto call) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    return std::chrono::steady_clock::now() - begin;
  };
  const TestMemory memory(0, 4096);
  slow_memory_queries(8000);
  slow_copies(8000);
  std::size_t free_bytes = 0;
  std::size_t total = 0;
  EXPECT_GE(timed([&] { EXPECT_CUDA(cudaSuccess, cudaMemGetInfo(&free_bytes, &total)); }),
            std::chrono::milliseconds(8));
  int value = 0;
  EXPECT_GE(timed([&] {
              EXPECT_CUDA(cudaSuccess, cudaMemcpy(&value, memory.get(), sizeof value, cudaMemcpyDefault));
            }),
            std::chrono::milliseconds(8));
}

TEST_F(FaultPlans, ComeAsTextToo) {
  plan_faults("oom@1;fail:cudaStreamQuery@1=999;corrupt:host-0;lose:1@call:1;slow_query:10;slow_copy:10");
  void* memory = nullptr;
  EXPECT_CUDA(cudaErrorMemoryAllocation, cudaMalloc(&memory, 4096));
  EXPECT_CUDA(cudaErrorUnknown, cudaStreamQuery(nullptr));
  ASSERT_CUDA(cudaSuccess, cudaMalloc(&memory, 4096));
  const int value = 0;
  int found = 0;
  ASSERT_CUDA(cudaSuccess, cudaMemcpy(memory, &value, sizeof value, cudaMemcpyDefault));
  ASSERT_CUDA(cudaSuccess, cudaDeviceSynchronize());
  ASSERT_TRUE(read(memory, &found, sizeof found));
  EXPECT_NE(found, value);
  EXPECT_CUDA(cudaSuccess, cudaFree(memory));
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(1));
  EXPECT_CUDA(kLostDeviceError, cudaDeviceSynchronize());
  EXPECT_THROW(plan_faults("explode"), std::invalid_argument);
  EXPECT_THROW(plan_faults("oom@x"), std::invalid_argument);
  EXPECT_THROW(plan_faults("lose:1@noon:1"), std::invalid_argument);
}

TEST_F(FaultPlans, OthersMayTakeMemory) {
  ASSERT_TRUE(take_memory(0, static_cast<std::int64_t>(200 * kMiB)));
  EXPECT_FALSE(take_memory(0, static_cast<std::int64_t>(100 * kMiB)));
  void* memory = nullptr;
  EXPECT_CUDA(cudaErrorMemoryAllocation, cudaMalloc(&memory, 100 * kMiB));
  ASSERT_TRUE(take_memory(0, -static_cast<std::int64_t>(200 * kMiB)));
  EXPECT_CUDA(cudaSuccess, cudaMalloc(&memory, 100 * kMiB));
  EXPECT_CUDA(cudaSuccess, cudaFree(memory));
}

TEST_F(FaultPlans, LeaksAreCounted) {
  {
    const TestStream stream(0);
    const TestEvent event(0);
    const TestMemory memory(0, 4096);
    const Segment segment(0, kGranularity);
    const auto found = leaks();
    EXPECT_EQ(found.streams, 1U);
    EXPECT_EQ(found.events, 1U);
    EXPECT_EQ(found.allocations, 1U);
    EXPECT_EQ(found.handles, 1U);
    EXPECT_EQ(found.mappings, 1U);
    EXPECT_EQ(found.reservations, 1U);
    EXPECT_EQ(to_string(found),
              "1 streams, 1 events, 1 allocations, 1 memory handles, 1 mappings, 1 reservations");
  }
  EXPECT_EQ(leaks().total(), 0U);
}

}  // namespace
}  // namespace harvest::fake_cuda
