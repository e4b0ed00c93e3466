// SPDX-License-Identifier: Apache-2.0
#include <thread>

#include "fake_cuda/trial.hpp"

/// Captures into graphs, and what must not be done while one is under way.
namespace harvest::fake_cuda {
namespace {

class Captures : public FakeCudaTest {
 protected:
  static void begin(cudaStream_t stream, cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
    ASSERT_CUDA(cudaSuccess, cudaStreamBeginCapture(stream, mode));
  }
  /// Ends a capture that must have failed.
  static void expect_invalidated(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    EXPECT_CUDA(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(stream, &graph));
    EXPECT_EQ(graph, nullptr);
  }
  /// Ends a capture and throws away what it gave.
  static void end(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    ASSERT_CUDA(cudaSuccess, cudaStreamEndCapture(stream, &graph));
    EXPECT_CUDA(cudaSuccess, cudaGraphDestroy(graph));
  }
};

TEST_F(Captures, AGraphRunsWhatWasCapturedAsOftenAsItIsLaunched) {
  PinnedMemory out(4096);
  const PinnedMemory in(4096);
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  begin(stream);
  EXPECT_CUDA(cudaSuccess, cudaStreamIsCapturing(stream, &status));
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  ASSERT_CUDA(cudaSuccess, cudaMemcpyAsync(memory.get(), out.get(), 4096, cudaMemcpyDefault, stream));
  ASSERT_CUDA(cudaSuccess, cudaMemcpyAsync(in.get(), memory.get(), 4096, cudaMemcpyDefault, stream));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_CUDA(cudaSuccess, cudaStreamEndCapture(stream, &graph));
  EXPECT_EQ(counters().copies, 0U);
  ASSERT_CUDA(cudaSuccess, cudaGraphInstantiate(&executable, graph, 0));
  ASSERT_CUDA(cudaSuccess, cudaGraphDestroy(graph));
  for (std::uint8_t seed = 1; seed < 4; ++seed) {
    out.fill(seed);
    ASSERT_CUDA(cudaSuccess, cudaGraphLaunch(executable, stream));
    ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
    EXPECT_TRUE(in.holds(seed));
  }
  EXPECT_CUDA(cudaSuccess, cudaGraphExecDestroy(executable));
}

TEST_F(Captures, OtherStreamsJoinByEvents) {
  const TestMemory memory(0, 4096);
  const TestStream origin(0);
  const TestStream branch(0);
  const TestEvent fork(0);
  const TestEvent join(0);
  begin(origin);
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 1, 8, origin));
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(fork, origin));
  ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(branch, fork, 0));
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 2, 8, branch));
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(join, branch));
  ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(origin, join, 0));
  end(origin);
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(branch));  // it is nobody's any more
}

TEST_F(Captures, WorkThatIsNotJoinedIsAnError) {
  const TestMemory memory(0, 4096);
  const TestStream origin(0);
  const TestStream branch(0);
  const TestEvent fork(0);
  cudaGraph_t graph = nullptr;
  begin(origin);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(fork, origin));
  ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(branch, fork, 0));
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 2, 8, branch));
  EXPECT_CUDA(cudaErrorStreamCaptureUnjoined, cudaStreamEndCapture(origin, &graph));
  EXPECT_EQ(graph, nullptr);
}

TEST_F(Captures, EndOnAnotherStreamIsAnError) {
  const TestStream origin(0);
  const TestStream branch(0);
  const TestEvent fork(0);
  cudaGraph_t graph = nullptr;
  begin(origin);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(fork, origin));
  ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(branch, fork, 0));
  EXPECT_CUDA(cudaErrorStreamCaptureUnmatched, cudaStreamEndCapture(branch, &graph));
  expect_invalidated(origin);
  EXPECT_CUDA(cudaErrorIllegalState, cudaStreamEndCapture(origin, &graph));
}

TEST_F(Captures, WaitingForACapturedStreamInvalidates) {
  const TestStream stream(0);
  begin(stream, cudaStreamCaptureModeRelaxed);
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize(stream));
  EXPECT_CUDA(cudaErrorStreamCaptureInvalidated, cudaLaunchHostFunc(
                                                     stream, [](void*) {}, nullptr));
  expect_invalidated(stream);
  begin(stream, cudaStreamCaptureModeRelaxed);
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, cudaStreamQuery(stream));
  expect_invalidated(stream);
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
}

TEST_F(Captures, WaitingForADeviceWithACapturedStreamInvalidates) {
  const TestStream stream(0);
  begin(stream, cudaStreamCaptureModeRelaxed);
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, cudaDeviceSynchronize());
  expect_invalidated(stream);
  EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
}

TEST_F(Captures, BranchesOfAGraphHaveNoOrder) {
  const TestMemory memory(0, 4096);
  const TestStream origin(0);
  const TestStream branch(0);
  const TestEvent fork(0);
  const TestEvent join(0);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  begin(origin);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(fork, origin));
  ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(branch, fork, 0));
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 0, 8, branch));
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 1, 8, origin));
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(join, branch));
  ASSERT_CUDA(cudaSuccess, cudaStreamWaitEvent(origin, join, 0));
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get() + 1, 7, 1, origin));  // after both, always
  ASSERT_CUDA(cudaSuccess, cudaStreamEndCapture(origin, &graph));
  ASSERT_CUDA(cudaSuccess, cudaGraphInstantiate(&executable, graph, 0));
  bool seen[2] = {};
  for (int i = 0; i < 100 && !(seen[0] && seen[1]); ++i) {
    ASSERT_CUDA(cudaSuccess, cudaGraphLaunch(executable, origin));
    ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(origin));
    unsigned char found[2] = {};
    ASSERT_TRUE(read(memory.get(), found, 2));
    ASSERT_LT(found[0], 2);
    seen[found[0]] = true;
    EXPECT_EQ(found[1], 7);
  }
  EXPECT_TRUE(seen[0] && seen[1]);
  EXPECT_CUDA(cudaSuccess, cudaGraphExecDestroy(executable));
  EXPECT_CUDA(cudaSuccess, cudaGraphDestroy(graph));
}

TEST_F(Captures, AskingForACapturedEventInvalidates) {
  const TestStream stream(0);
  const TestEvent event(0);
  begin(stream, cudaStreamCaptureModeRelaxed);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, stream));
  EXPECT_CUDA(cudaErrorCapturedEvent, cudaEventQuery(event));
  expect_invalidated(stream);
  begin(stream, cudaStreamCaptureModeRelaxed);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, stream));
  EXPECT_CUDA(cudaErrorCapturedEvent, cudaEventSynchronize(event));
  expect_invalidated(stream);
}

TEST_F(Captures, WaitingForAnEventFromOutsideIsAnError) {
  const TestStream stream(0);
  const TestStream other(0);
  const TestEvent event(0);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, other));
  begin(stream);
  EXPECT_CUDA(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(stream, event, 0));
  expect_invalidated(stream);
}

TEST_F(Captures, TwoCapturesDoNotMerge) {
  const TestStream first(0);
  const TestStream second(0);
  const TestEvent event(0);
  begin(first);
  begin(second);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, first));
  EXPECT_CUDA(cudaErrorStreamCaptureMerge, cudaStreamWaitEvent(second, event, 0));
  expect_invalidated(first);
  expect_invalidated(second);
}

TEST_F(Captures, TheLegacyStreamCannotBeCapturedNorUsedBesideABlockingOne) {
  const TestMemory memory(0, 4096);
  const TestStream blocking(0, cudaStreamDefault);
  const TestStream free_one(0);
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported,
              cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed));
  begin(blocking, cudaStreamCaptureModeRelaxed);
  EXPECT_CUDA(cudaErrorStreamCaptureImplicit, cudaMemsetAsync(memory.get(), 1, 8, nullptr));
  expect_invalidated(blocking);
  begin(free_one, cudaStreamCaptureModeRelaxed);
  EXPECT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 1, 8, nullptr));
  end(free_one);
  EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
}

TEST_F(Captures, UnsafeCallsOfOtherThreadsSpoilAGlobalCapture) {
  const TestStream stream(0);
  const TestStream other(0);
  const TestEvent event(0);
  ASSERT_CUDA(cudaSuccess, cudaEventRecord(event, other));
  begin(stream, cudaStreamCaptureModeGlobal);
  std::thread([&] { EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, cudaEventQuery(event)); }).join();
  expect_invalidated(stream);

  begin(stream, cudaStreamCaptureModeGlobal);
  std::thread([&] {
    auto mode = cudaStreamCaptureModeRelaxed;
    EXPECT_CUDA(cudaSuccess, cudaThreadExchangeStreamCaptureMode(&mode));
    EXPECT_EQ(mode, cudaStreamCaptureModeGlobal);
    EXPECT_CUDA(cudaSuccess, cudaEventSynchronize(event));
  }).join();
  end(stream);

  begin(stream, cudaStreamCaptureModeThreadLocal);
  std::thread([&] { EXPECT_CUDA(cudaSuccess, cudaEventQuery(event)); }).join();
  end(stream);
}

TEST_F(Captures, UnsafeCallsOfTheOwnThreadNeedRelaxation) {
  const TestStream stream(0);
  void* memory = nullptr;
  begin(stream, cudaStreamCaptureModeThreadLocal);
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, cudaMalloc(&memory, 4096));
  expect_invalidated(stream);
  begin(stream, cudaStreamCaptureModeRelaxed);
  EXPECT_CUDA(cudaSuccess, cudaMalloc(&memory, 4096));
  end(stream);
  EXPECT_CUDA(cudaSuccess, cudaFree(memory));
}

TEST_F(Captures, EndsInTheThreadInWhichItBegan) {
  const TestStream stream(0);
  cudaGraph_t graph = nullptr;
  begin(stream, cudaStreamCaptureModeThreadLocal);
  std::thread([&] {
    EXPECT_CUDA(cudaErrorStreamCaptureWrongThread, cudaStreamEndCapture(stream, &graph));
  }).join();
  end(stream);
  begin(stream, cudaStreamCaptureModeRelaxed);
  std::thread([&] { end(stream); }).join();
}

TEST_F(Captures, PageableMemoryIsNotCaptured) {
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  int value = 0;
  begin(stream);
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported,
              cudaMemcpyAsync(memory.get(), &value, sizeof value, cudaMemcpyDefault, stream));
  end(stream);
}

TEST_F(Captures, AGraphWhoseMemoryIsGoneIsAnIllegalAccess) {
  TestMemory memory(0, 4096);
  const TestStream stream(0);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  begin(stream);
  ASSERT_CUDA(cudaSuccess, cudaMemsetAsync(memory.get(), 1, 8, stream));
  ASSERT_CUDA(cudaSuccess, cudaStreamEndCapture(stream, &graph));
  ASSERT_CUDA(cudaSuccess, cudaGraphInstantiate(&executable, graph, 0));
  memory.free();
  ASSERT_CUDA(cudaSuccess, cudaGraphLaunch(executable, stream));
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaStreamSynchronize(stream));
  EXPECT_CUDA(cudaSuccess, cudaGraphExecDestroy(executable));
  EXPECT_CUDA(cudaSuccess, cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace harvest::fake_cuda
