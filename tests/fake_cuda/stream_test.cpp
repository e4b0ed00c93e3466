// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <thread>

#include "fake_cuda/trial.hpp"

/// Order: streams, events, default streams, host functions (rules 13 and 14).
namespace harvest::fake_cuda {
namespace {

using Streams = FakeCudaTest;

TEST_F(Streams, WorkOfOneStreamRunsInOrder) {
  const TestStream stream(0);
  std::vector<int> order;
  struct Step {
    std::vector<int>* order;
    int number;
  };
  std::vector<Step> steps;
  for (int i = 0; i < 50; ++i) steps.push_back({&order, i});
  for (auto& step : steps) {
    ASSERT_CUDA(cudaSuccess, cudaLaunchHostFunc(
                                 stream,
                                 [](void* given) {
                                   const auto& own = *static_cast<Step*>(given);
                                   own.order->push_back(own.number);
                                 },
                                 &step));
  }
  ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  ASSERT_EQ(order.size(), 50U);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST_F(Streams, QueriesTellWhetherWorkIsOver) {
  const TestStream stream(0);
  const TestEvent event(0);
  EXPECT_CUDA(cudaSuccess, cudaStreamQuery(stream));
  EXPECT_CUDA(cudaSuccess, cudaEventQuery(event));  // never recorded
  {
    const Gate gate(stream);
    ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, stream));
    EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(stream));
    EXPECT_CUDA(cudaErrorNotReady, cudaEventQuery(event));
    EXPECT_CUDA(cudaErrorNotReady, cudaGetLastError());  // CUDA remembers that one as well
  }
  EXPECT_CUDA(cudaSuccess, cudaEventSynchronize(event));
  EXPECT_CUDA(cudaSuccess, cudaEventQuery(event));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
}

TEST_F(Streams, AWaitCrossesDevices) {
  const TestStream first(0);
  const TestStream second(1);
  const TestEvent event(0);
  {
    const Gate gate(first);
    ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, first));
    ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(second, event, 0));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(second));
  }
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(second));
}

TEST_F(Streams, ARecordDoesNotCrossDevices) {
  const TestStream stream(1);
  const TestEvent other(0);
  const TestEvent own(1);
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaEventRecord(other, stream));
  EXPECT_CUDA(cudaSuccess, cudaEventRecord(own, stream));
}

TEST_F(Streams, AWaitIsForTheRecordOfThatTime) {
  const TestStream first(0);
  const TestStream second(0);
  const TestEvent event(0);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, first));
  ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(second, event, 0));
  const Gate gate(first);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, first));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(second));  // the new record does not hold it
}

TEST_F(Streams, TheLegacyStreamWaitsForBlockingStreamsAndTheyForIt) {
  const TestStream blocking(0, cudaStreamDefault);
  const TestStream free_one(0, cudaStreamNonBlocking);
  const TestMemory memory(0, 8192);
  {
    const Gate gate(blocking);
    ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 1, 4096, cudaStreamLegacy));
    ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get() + 4096, 2, 8, free_one));
    EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(free_one));
    EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(nullptr));
  }
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(cudaStreamLegacy));
  {
    const Gate gate(nullptr);
    ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 3, 4096, blocking));
    EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(blocking));
    EXPECT_CUDA(cudaSuccess, cudaStreamQuery(free_one));
  }
  EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
}

TEST_F(Streams, EachThreadHasADefaultStream) {
  const TestMemory memory(0, 4096);
  const Gate gate(cudaStreamPerThread);
  std::thread other([&] {
    EXPECT_CUDA(cudaSuccess, cudaSetDevice(0));
    EXPECT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 1, 4096, cudaStreamPerThread));
    EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(cudaStreamPerThread));
  });
  other.join();
  EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(cudaStreamPerThread));
}

TEST_F(Streams, HostFunctionsMayNotCallCuda) {
  const TestStream stream(0);
  std::atomic<int> found{-1};
  ASSERT_CUDA(cudaSuccess, cudaLaunchHostFunc(
                               stream,
                               [](void* result) {
                                 int device = 0;
                                 *static_cast<std::atomic<int>*>(result) = cudaGetDevice(&device);
                               },
                               &found));
  ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_EQ(found, cudaErrorNotPermitted);
}

TEST_F(Streams, HostFunctionsDoNotRunAfterAnError) {
  const TestStream stream(0);
  std::atomic<bool> ran{false};
  {
    const Gate gate(stream);
    ASSERT_CUDA(cudaSuccess,
                cudaLaunchHostFunc(
                    stream, [](void* flag) { *static_cast<std::atomic<bool>*>(flag) = true; }, &ran));
    lose_device(0);
  }
  EXPECT_CUDA(kLostDeviceError, cudaStreamSynchronize(stream));
  EXPECT_FALSE(ran);
}

TEST_F(Streams, ADestroyedStreamFinishesItsWork) {
  const TestMemory memory(0, 4096);
  cudaStream_t stream = nullptr;
  ASSERT_CUDA(cudaSuccess, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  {
    const Gate gate(stream);
    ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 9, 4096, stream));
    ASSERT_CUDA(cudaSuccess, cudaStreamDestroy(stream));
  }
  ASSERT_CUDA(cudaSuccess, cudaDeviceSynchronize());
  unsigned char value = 0;
  ASSERT_TRUE(read(memory.get() + 4095, &value, 1));
  EXPECT_EQ(value, 9);
}

TEST_F(Streams, InvalidHandlesAreSeen) {
  const TestStream stream(0);
  const TestEvent event(0);
  cudaStream_t gone = nullptr;
  cudaEvent_t gone_event = nullptr;
  ASSERT_CUDA(cudaSuccess, cudaStreamCreate(&gone));
  ASSERT_CUDA(cudaSuccess, cudaEventCreate(&gone_event));
  ASSERT_CUDA(cudaSuccess, cudaStreamDestroy(gone));
  ASSERT_CUDA(cudaSuccess, cudaEventDestroy(gone_event));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaStreamQuery(gone));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaStreamDestroy(gone));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaEventRecord(event, gone));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaEventRecord(gone_event, stream));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaStreamWaitEvent(stream, gone_event, 0));
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaEventDestroy(gone_event));
}

TEST_F(Streams, OnlyEventsWithTimingTellTime) {
  const TestStream stream(0);
  const TestEvent timed_a(0, cudaEventDefault);
  const TestEvent timed_b(0, cudaEventDefault);
  const TestEvent untimed(0);
  float ms = -1;
  for (cudaEvent_t event : {static_cast<cudaEvent_t>(timed_a), static_cast<cudaEvent_t>(timed_b),
                            static_cast<cudaEvent_t>(untimed)}) {
    ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, stream));
  }
  ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_CUDA(cudaSuccess, cudaEventElapsedTime(&ms, timed_a, timed_b));
  EXPECT_GE(ms, 0);
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, timed_a, untimed));
}

TEST_F(Streams, UnorderedWorkComesInBothOrders) {
  auto slow = machine();
  slow.max_delay_us = 2000;
  reset(slow);
  const TestStream a(0);
  const TestStream b(0);
  std::atomic<int> last{0};
  bool seen[2] = {};
  for (int i = 0; i < 400 && !(seen[0] && seen[1]); ++i) {
    ASSERT_CUDA(cudaSuccess, cudaLaunchHostFunc(
                                 a, [](void* given) { *static_cast<std::atomic<int>*>(given) = 0; }, &last));
    ASSERT_CUDA(cudaSuccess, cudaLaunchHostFunc(
                                 b, [](void* given) { *static_cast<std::atomic<int>*>(given) = 1; }, &last));
    ASSERT_CUDA(cudaSuccess, cudaDeviceSynchronize());
    seen[last] = true;
  }
  EXPECT_TRUE(seen[0]);
  EXPECT_TRUE(seen[1]);
}

#if CUDART_VERSION >= 12080
TEST_F(Streams, AStreamTellsItsDevice) {
  const TestStream stream(1);
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(0));
  int device = -1;
  EXPECT_CUDA(cudaSuccess, cudaStreamGetDevice(stream, &device));
  EXPECT_EQ(device, 1);
  EXPECT_CUDA(cudaSuccess, cudaStreamGetDevice(nullptr, &device));
  EXPECT_EQ(device, 0);
}
#endif

}  // namespace
}  // namespace harvest::fake_cuda
