// SPDX-License-Identifier: Apache-2.0
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <span>
#include <string>
#include <thread>

#include "backend/cuda/copy_engine_fixture.hpp"
#include "backend/cuda/descriptor_pool.hpp"

/// Plans become the calls that they say, on a CUDA runtime that enforces the rules. What each call moved is
/// looked at byte by byte.
namespace harvest::cuda {
namespace {

using ::testing::HasSubstr;

TEST_F(CopyEngineTest, SinglesGoOneByOne) {
  make_engine(CopyMethod::single);
  for (Route route : {kIn, kOut, kFromPeer}) copy_and_check(route, runs(route, 50));
  EXPECT_EQ(calls("cudaMemcpyAsync"), 150U);
  EXPECT_EQ(calls("cudaMemcpyBatchAsync"), 0U);
}

TEST_F(CopyEngineTest, BatchesGoInCallsOfBoundedLength) {
  NEEDS_BATCHES();
  make_engine(CopyMethod::batch);
  EXPECT_EQ(engine_->ways(0).no_batches, "");
  for (Route route : {kIn, kOut, kFromPeer}) copy_and_check(route, runs(route, 2'500));
  EXPECT_EQ(calls("cudaMemcpyBatchAsync"), 9U);
  EXPECT_EQ(fake_cuda::counters().batches, 9U);
  EXPECT_EQ(fake_cuda::counters().copies, 7'500U);
  EXPECT_EQ(calls("cudaMemcpyAsync"), 0U);
}

TEST_F(CopyEngineTest, TheKernelCopiesManyRunsWithEachLaunch) {
  NEEDS_KERNEL();
  make_engine(CopyMethod::kernel);
  EXPECT_EQ(engine_->ways(0).no_kernels, "");
  for (Route route : {kIn, kOut, kFromPeer}) copy_and_check(route, runs(route, 400));
  EXPECT_EQ(fake_cuda::counters().kernels, 9U);
  EXPECT_EQ(fake_cuda::counters().kernel_runs, 1'200U);
  EXPECT_EQ(calls("cudaMemcpyAsync") + calls("cudaMemcpyBatchAsync"), 0U);
}

TEST_F(CopyEngineTest, InsideOneGpuTheKernelIsTakenWhateverTheThresholds) {
  NEEDS_KERNEL();
  make_engine(CopyMethod::single);
  copy_and_check(kWithin, runs(kWithin, 20));
  EXPECT_EQ(fake_cuda::counters().kernel_runs, 20U);
  EXPECT_EQ(calls("cudaMemcpyAsync"), 0U);
}

TEST_F(CopyEngineTest, WithoutAccessThePeerCopyIsTaken) {
  make_engine(CopyMethod::kernel);
  const Route route{2, 0};
  copy_and_check(route, runs(route, 20));
  EXPECT_EQ(calls("cudaMemcpyPeerAsync"), 20U);
  EXPECT_EQ(fake_cuda::counters().staged_copies, 20U);
}

TEST_F(CopyEngineTest, PageableMemoryGoesOneByOne) {
  make_engine(CopyMethod::batch);
  const std::vector<std::byte> pageable = pattern(4'000, 9);
  std::vector<Copy> copies;
  for (std::size_t i = 0; i < 10; ++i) copies.push_back({on_[0] + i * 400, pageable.data() + i * 400, 400});
  ASSERT_TRUE(engine_->copy(job(kIn), copies));
  expect_ok(cudaStreamSynchronize(stream_));
  EXPECT_TRUE(get(on_[0], 4'000) == pageable);
  EXPECT_EQ(calls("cudaMemcpyAsync"), 10U);
  EXPECT_EQ(calls("cudaMemcpyBatchAsync"), 0U);
}

TEST_F(CopyEngineTest, WaysThatAreTurnedOffAreNotTakenAndSaySo) {
  make_engine(CopyMethod::kernel, false, false);
  copy_and_check(kIn, runs(kIn, 30));
  EXPECT_EQ(calls("cudaMemcpyAsync"), 30U);
  EXPECT_EQ(engine_->ways(0).no_batches, "turned off");
  EXPECT_EQ(engine_->ways(0).no_kernels, "turned off");
}

// --- drivers that do not have what the build has ---------------------------------------------------

TEST_F(CopyEngineTest, ADriverWithoutTheBatchCallIsAskedOnce) {
  NEEDS_BATCHES();
  for (cudaError_t error : {cudaErrorNotSupported, cudaErrorCallRequiresNewerDriver}) {
    make_engine(CopyMethod::batch);
    const std::uint64_t before = calls("cudaMemcpyBatchAsync");
    fake_cuda::fail_call("cudaMemcpyBatchAsync", 1, error);
    copy_and_check(kIn, runs(kIn, 30));
    copy_and_check(kIn, runs(kIn, 30));
    EXPECT_EQ(calls("cudaMemcpyBatchAsync") - before, 1U);
    EXPECT_THAT(engine_->ways(1).no_batches, HasSubstr(cudaGetErrorName(error)));
  }
}

TEST_F(CopyEngineTest, AGpuThatTheKernelWasNotMadeForDoesWithoutAndOthersDoNot) {
  NEEDS_KERNEL();
  make_engine(CopyMethod::kernel);
  fake_cuda::fail_call("cuLaunchKernel", 1, CUDA_ERROR_NO_BINARY_FOR_GPU);
  copy_and_check(kIn, runs(kIn, 30));
  copy_and_check(kIn, runs(kIn, 30));
  EXPECT_EQ(calls("cuLaunchKernel"), 1U);
  EXPECT_EQ(fake_cuda::counters().kernels, 0U);
  EXPECT_THAT(engine_->ways(0).no_kernels, HasSubstr("launch of the copy kernel"));
  EXPECT_EQ(engine_->ways(1).no_kernels, "");
}

TEST_F(CopyEngineTest, ALibraryThatDoesNotLoadIsNamedAndTriedAgainByTheNextEngine) {
  NEEDS_KERNEL();
  // The fake forgot the library of the test before, as a driver would that was started again.
  fake_cuda::fail_call("cuLibraryLoadData", 1, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
  make_engine(CopyMethod::kernel);
  EXPECT_THAT(engine_->ways(0).no_kernels, HasSubstr("cuLibraryLoadData of the copy kernel"));
  copy_and_check(kIn, runs(kIn, 30));
  EXPECT_EQ(fake_cuda::counters().kernels, 0U);
  make_engine(CopyMethod::kernel);
  EXPECT_EQ(engine_->ways(0).no_kernels, "");
  make_engine(CopyMethod::kernel);
  EXPECT_EQ(calls("cuLibraryLoadData"), 2U) << "loaded once for all engines";
}

// --- streams that a batch may not be given to ------------------------------------------------------

class CopyEngineCaptureTest : public CopyEngineTest, public ::testing::WithParamInterface<CopyMethod> {};

TEST_P(CopyEngineCaptureTest, ACapturedBatchIsInTheGraph) {
  make_engine(GetParam());
  const std::vector<Copy> copies = runs(kIn, 300);
  expect_ok(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  const Status status = engine_->copy(job(kIn, true), copies);
  ASSERT_TRUE(status) << status.error().message;
  cudaGraph_t graph = nullptr;
  expect_ok(cudaStreamEndCapture(stream_, &graph));
  EXPECT_EQ(calls("cudaMemcpyBatchAsync"), 0U);
  cudaGraphExec_t executable = nullptr;
  expect_ok(cudaGraphInstantiate(&executable, graph, 0));
  for (int round = 0; round < 2; ++round) {
    prepare(kIn);
    expect_ok(cudaGraphLaunch(executable, stream_));
    expect_ok(cudaStreamSynchronize(stream_));
    expect_copied(kIn, copies);
  }
  expect_ok(cudaGraphExecDestroy(executable));
  expect_ok(cudaGraphDestroy(graph));
}
INSTANTIATE_TEST_SUITE_P(EachMethod, CopyEngineCaptureTest,
                         ::testing::Values(CopyMethod::single, CopyMethod::batch, CopyMethod::kernel),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST_F(CopyEngineTest, ABatchCallOnACapturedStreamWouldBeLost) {
  NEEDS_BATCHES();
  make_engine(CopyMethod::batch);
  expect_ok(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  // What the engine is told not to know: the fake sees the call that the test above must not see.
  const Status status = engine_->copy(job(kIn, false), runs(kIn, 5));
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("cudaMemcpyBatchAsync of 5 runs from device -1 to 0"));
  cudaGraph_t graph = nullptr;
  static_cast<void>(cudaStreamEndCapture(stream_, &graph));
  static_cast<void>(cudaGetLastError());
  if (graph != nullptr) expect_ok(cudaGraphDestroy(graph));
}

TEST_F(CopyEngineTest, BatchesOfAStreamDoNotSpoilTheCaptureOfAnother) {
  NEEDS_BATCHES();
  make_engine(CopyMethod::batch);
  cudaStream_t captured = nullptr;
  expect_ok(cudaStreamCreateWithFlags(&captured, cudaStreamNonBlocking));
  expect_ok(cudaStreamBeginCapture(captured, cudaStreamCaptureModeGlobal));
  for (int round = 0; round < 5; ++round) ASSERT_TRUE(engine_->copy(job(kIn), runs(kIn, 100)));
  cudaGraph_t graph = nullptr;
  expect_ok(cudaStreamEndCapture(captured, &graph));
  expect_ok(cudaGraphDestroy(graph));
  expect_ok(cudaStreamDestroy(captured));
  expect_ok(cudaStreamSynchronize(stream_));
}

TEST_F(CopyEngineTest, TheLegacyStreamGetsNoBatchAndThePerThreadOneDoes) {
  NEEDS_BATCHES();
  make_engine(CopyMethod::batch);
  for (cudaStream_t stream : {cudaStream_t{nullptr}, cudaStreamLegacy, cudaStreamPerThread}) {
    prepare(kIn);
    const std::vector<Copy> copies = runs(kIn, 10);
    const Status status = engine_->copy({stream, 0, kIn, false}, copies);
    ASSERT_TRUE(status) << status.error().message;
    expect_ok(cudaStreamSynchronize(stream));
    expect_copied(kIn, copies);
  }
  EXPECT_EQ(calls("cudaMemcpyAsync"), 20U);
  EXPECT_EQ(calls("cudaMemcpyBatchAsync"), 1U);
}

// --- order -----------------------------------------------------------------------------------------

/// Holds a stream until it is opened.
class Gate {
 public:
  explicit Gate(cudaStream_t stream) {
    expect_ok(cudaLaunchHostFunc(
        stream,
        [](void* gate) {
          while (!static_cast<Gate*>(gate)->open_) std::this_thread::yield();
        },
        this));
  }
  void open() { open_ = true; }

 private:
  std::atomic<bool> open_{false};
};

class CopyEngineOrderTest : public CopyEngineTest, public ::testing::WithParamInterface<CopyMethod> {};

/// Work before writes the source and the destination; work after overwrites the source and reads the
/// destination. A missing edge on either side delivers other bytes.
TEST_P(CopyEngineOrderTest, ABatchStandsBetweenTheWorkBeforeAndAfterIt) {
  make_engine(GetParam());
  for (Route route : {kIn, kOut, kFromPeer}) {
    std::byte* const from = end_of(route.from);
    std::byte* const to = end_of(route.to) + kBytes / 2;
    prepare(route);
    const std::vector<Copy> copies = runs(route, 5);
    Gate gate(stream_);  // all is given before any of it runs
    expect_ok(cudaMemsetAsync(from, 0x11, kBytes / 2, stream_));
    expect_ok(cudaMemsetAsync(to, 0x22, kBytes / 2, stream_));
    ASSERT_TRUE(engine_->copy(job(route), copies));
    expect_ok(cudaMemsetAsync(from, 0x33, kBytes / 2, stream_));
    expect_ok(cudaMemsetAsync(to + kBytes / 4, 0x44, 16, stream_));
    gate.open();
    expect_ok(cudaStreamSynchronize(stream_));
    std::vector<std::byte> expected(kBytes / 2, std::byte{0x22});
    for (const Copy& copy : copies)
      std::fill_n(expected.begin() + (copy.destination - to), copy.bytes, std::byte{0x11});
    std::fill_n(expected.begin() + kBytes / 4, 16, std::byte{0x44});
    EXPECT_TRUE(get(to, kBytes / 2) == expected);
  }
}
INSTANTIATE_TEST_SUITE_P(EachMethod, CopyEngineOrderTest,
                         ::testing::Values(CopyMethod::single, CopyMethod::batch, CopyMethod::kernel),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST_F(CopyEngineTest, DescriptorsStayUntilTheirBatchIsOverAndAreNotMoreThanTheLimit) {
  NEEDS_BATCHES();
  make_engine(CopyMethod::batch);
  prepare(kIn);
  const std::vector<Copy> copies = runs(kIn, 200);
  Gate gate(stream_);
  for (std::size_t i = 0; i < DescriptorPool::kMostDescriptors; ++i)
    ASSERT_TRUE(engine_->copy(job(kIn), copies));
  EXPECT_EQ(calls("cudaMemcpyBatchAsync"), DescriptorPool::kMostDescriptors);
  EXPECT_EQ(calls("cudaMemcpyAsync"), 0U);
  ASSERT_TRUE(engine_->copy(job(kIn), copies));
  EXPECT_EQ(calls("cudaMemcpyBatchAsync"), DescriptorPool::kMostDescriptors) << "none is free";
  EXPECT_EQ(calls("cudaMemcpyAsync"), copies.size());
  gate.open();
  expect_ok(cudaStreamSynchronize(stream_));
  expect_copied(kIn, copies);
  EXPECT_EQ(fake_cuda::counters().batches, DescriptorPool::kMostDescriptors) << fake_cuda::last_complaint();

  const std::uint64_t events = calls("cudaEventCreateWithFlags");
  for (std::size_t i = 0; i < DescriptorPool::kMostDescriptors; ++i)
    ASSERT_TRUE(engine_->copy(job(kIn), copies));
  EXPECT_EQ(calls("cudaEventCreateWithFlags"), events) << "used again";
  expect_ok(cudaStreamSynchronize(stream_));
}

TEST_F(CopyEngineTest, AnEngineThatGoesWaitsForItsBatches) {
  NEEDS_BATCHES();
  make_engine(CopyMethod::batch);
  prepare(kIn);
  fake_cuda::slow_copies(500);
  const std::vector<Copy> copies = runs(kIn, 40);
  ASSERT_TRUE(engine_->copy(job(kIn), copies));
  engine_.reset();
  EXPECT_EQ(fake_cuda::counters().batches, 1U);
  expect_ok(cudaStreamSynchronize(stream_));
  expect_copied(kIn, copies);
}

TEST_F(CopyEngineTest, StreamsGiveTheirBatchesAtTheSameTime) {
  make_engine(CopyMethod::batch);
  prepare(kIn);
  const std::vector<Copy> all = runs(kIn, 2'000);
  std::vector<std::thread> threads;
  for (std::size_t part = 0; part < 4; ++part)
    threads.emplace_back([&, part] {
      expect_ok(cudaSetDevice(0));
      cudaStream_t stream = nullptr;
      expect_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      for (std::size_t i = 0; i < 10; ++i) {
        const std::span<const Copy> mine = std::span(all).subspan(part * 500 + i * 50, 50);
        EXPECT_TRUE(engine_->copy({stream, 0, kIn, false}, mine));
      }
      expect_ok(cudaStreamSynchronize(stream));
      expect_ok(cudaStreamDestroy(stream));
    });
  for (std::thread& thread : threads) thread.join();
  expect_copied(kIn, all);
}

}  // namespace
}  // namespace harvest::cuda
