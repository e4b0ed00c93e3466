// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/copy_engine.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "backend/cuda/copy_kernel_image.hpp"
#include "backend/cuda/descriptor_pool.hpp"
#include "backend/cuda/memory_map.hpp"
#include "fake_cuda/fake_cuda.hpp"

/// Plans become the calls that they say, on a CUDA runtime that enforces the rules. What each call moved is
/// looked at byte by byte.
namespace harvest::cuda {
namespace {

using ::testing::HasSubstr;

constexpr Route kIn{kHost, 0};
constexpr Route kOut{0, kHost};
constexpr Route kFromPeer{1, 0};
constexpr Route kWithin{0, 0};

void expect_ok(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error) << ": " << fake_cuda::last_complaint();
}

std::vector<std::byte> pattern(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> result(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    result[i] = static_cast<std::byte>((i * 31 + i / 251 + seed) & 0xff);
  return result;
}

/// Three GPUs, of which 0 and 1 reach each other. A buffer on each and one of pinned host memory, all known.
class CopyEngineTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kBytes = 4 << 20;

  void SetUp() override {
    fake_cuda::MachineDescription machine = fake_cuda::uniform_machine(3);
    machine.peer_access = {{true, true, false}, {true, true, false}, {false, false, true}};
    machine.max_delay_us = 20;
    fake_cuda::reset(machine);
    for (int gpu : {2, 1, 0}) {
      expect_ok(cudaSetDevice(gpu));
      expect_ok(cudaMalloc(reinterpret_cast<void**>(&on_[gpu]), kBytes));
      map_.add({on_[gpu], kBytes, gpu, gpu == 2 ? 0b100U : 0b011U});
    }
    expect_ok(cudaDeviceEnablePeerAccess(1, 0));
    expect_ok(cudaHostAlloc(reinterpret_cast<void**>(&pinned_), kBytes,
                            cudaHostAllocPortable | cudaHostAllocMapped));
    map_.add({pinned_, kBytes, kHost, 0b111});
    expect_ok(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }

  void TearDown() override {
    engine_.reset();
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "an error was left for others to find";
    expect_ok(cudaStreamDestroy(stream_));
    for (std::byte* memory : on_) expect_ok(cudaFree(memory));
    expect_ok(cudaFreeHost(pinned_));
    fake_cuda::Leaks leaks = fake_cuda::leaks();
    leaks.libraries = 0;  // the kernel stays for the life of the process
    EXPECT_EQ(leaks.total(), 0U) << to_string(leaks);
  }

  void make_engine(CopyMethod method, bool kernels = true, bool batches = true) {
    CopyEngineOptions options;
    options.ordinals = {0, 1, 2};
    options.calibrations.assign(3, forced_calibration(method, 8));
    options.use_kernels = kernels;
    options.use_batches = batches;
    engine_ = make_copy_engine(map_, options);
  }

  std::byte* end_of(DeviceId device) { return device == kHost ? pinned_ : on_[device]; }

  /// `count` runs of different sizes, from the first half of one buffer to the second of the other.
  std::vector<Copy> runs(Route route, std::size_t count, std::size_t step = 400) {
    std::vector<Copy> result;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t at = i * step;
      result.push_back({end_of(route.to) + kBytes / 2 + at + i % 5 * 4, end_of(route.from) + at + i % 3 * 4,
                        step - 40 - i % 7});
    }
    return result;
  }

  void set(std::byte* address, const std::vector<std::byte>& bytes) {
    if (address >= pinned_ && address < pinned_ + kBytes)
      std::copy(bytes.begin(), bytes.end(), address);
    else
      ASSERT_TRUE(fake_cuda::write(address, bytes.data(), bytes.size()));
  }
  std::vector<std::byte> get(const std::byte* address, std::size_t bytes) {
    std::vector<std::byte> result(bytes);
    if (address >= pinned_ && address < pinned_ + kBytes)
      std::copy_n(address, bytes, result.begin());
    else
      EXPECT_TRUE(fake_cuda::read(address, result.data(), bytes));
    return result;
  }

  void prepare(Route route) {
    set(end_of(route.from), pattern(kBytes / 2, 3));
    set(end_of(route.to) + kBytes / 2, std::vector<std::byte>(kBytes / 2, std::byte{0xEE}));
  }
  /// The destination holds the runs' bytes, and around them what it held.
  void expect_copied(Route route, const std::vector<Copy>& copies) {
    const std::vector<std::byte> source = get(end_of(route.from), kBytes / 2);
    std::vector<std::byte> expected(kBytes / 2, std::byte{0xEE});
    for (const Copy& copy : copies)
      std::copy_n(source.begin() + (copy.source - end_of(route.from)), copy.bytes,
                  expected.begin() + (copy.destination - (end_of(route.to) + kBytes / 2)));
    EXPECT_TRUE(get(end_of(route.to) + kBytes / 2, kBytes / 2) == expected);
  }

  CopyJob job(Route route, bool capturing = false) { return {stream_, 0, route, capturing}; }

  void copy_and_check(Route route, const std::vector<Copy>& copies) {
    prepare(route);
    const Status status = engine_->copy(job(route), copies);
    ASSERT_TRUE(status) << status.error().message;
    expect_ok(cudaStreamSynchronize(stream_));
    expect_copied(route, copies);
  }

  static bool has_kernel() { return !copy_kernel_image().bytes.empty(); }
  static std::uint64_t calls(const char* name) { return fake_cuda::calls(name); }

  MemoryMap map_;
  std::byte* on_[3] = {};
  std::byte* pinned_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<CopyEngine> engine_;
};

#define NEEDS_KERNEL() \
  if (!has_kernel()) GTEST_SKIP() << "no copy kernel: " << copy_kernel_image().made_by
#define NEEDS_BATCHES() \
  if (CUDART_VERSION < 12080) GTEST_SKIP() << "this toolkit has no batch call"

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

// --- failures --------------------------------------------------------------------------------------

TEST_F(CopyEngineTest, AfterAFailureHalfwayNothingIsUnderWay) {
  struct Case {
    CopyMethod method;
    const char* call;
    Route route;
  };
  for (const Case& c : {Case{CopyMethod::single, "cudaMemcpyAsync", kIn},
                        Case{CopyMethod::single, "cudaMemcpyPeerAsync", Route{2, 0}},
                        Case{CopyMethod::batch, "cudaMemcpyBatchAsync", kIn},
                        Case{CopyMethod::kernel, "cuLaunchKernel", kIn}}) {
    if (c.method == CopyMethod::kernel && !has_kernel()) continue;
    if (c.method == CopyMethod::batch && CUDART_VERSION < 12080) continue;
    make_engine(c.method);
    const std::vector<Copy> copies = runs(c.route, 2'500);
    prepare(c.route);
    fake_cuda::slow_copies(2'000);
    fake_cuda::fail_call(c.call, 2, cudaErrorInvalidValue);
    const Status status = engine_->copy(job(c.route), copies);
    EXPECT_EQ(cudaStreamQuery(stream_), cudaSuccess) << c.call << ": work of the failed batch is under way";
    fake_cuda::slow_copies(0);
    ASSERT_FALSE(status) << c.call;
    EXPECT_EQ(status.error().code, ErrorCode::invalid_argument);
    EXPECT_THAT(status.error().message,
                HasSubstr(c.method == CopyMethod::kernel ? "the copy kernel" : c.call));
    EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess) << c.call << ": the error was left for others to find";
    copy_and_check(c.route, copies);
  }
}

TEST_F(CopyEngineTest, AnErrorThatMayBeAnythingIsWaitedForToo) {
  make_engine(CopyMethod::single);
  prepare(kIn);
  fake_cuda::slow_copies(2'000);
  fake_cuda::fail_call("cudaMemcpyAsync", 3, cudaErrorUnknown);
  EXPECT_FALSE(engine_->copy(job(kIn), runs(kIn, 10)));
  EXPECT_EQ(cudaStreamQuery(stream_), cudaSuccess);
}

TEST_F(CopyEngineTest, WhereNoEventCanBeRecordedTheBatchIsWaitedFor) {
  NEEDS_BATCHES();
  make_engine(CopyMethod::batch);
  prepare(kIn);
  fake_cuda::slow_copies(500);
  fake_cuda::fail_call("cudaEventRecord", 1, cudaErrorMemoryAllocation);
  const std::vector<Copy> copies = runs(kIn, 20);
  ASSERT_TRUE(engine_->copy(job(kIn), copies));
  EXPECT_EQ(cudaStreamQuery(stream_), cudaSuccess);
  expect_copied(kIn, copies);
}

TEST_F(CopyEngineTest, WhereNoEventCanBeMadeCopiesGoOneByOne) {
  NEEDS_BATCHES();
  make_engine(CopyMethod::batch);
  fake_cuda::fail_call("cudaEventCreateWithFlags", 1, cudaErrorMemoryAllocation);
  copy_and_check(kIn, runs(kIn, 20));
  EXPECT_EQ(calls("cudaMemcpyAsync"), 20U);
  copy_and_check(kIn, runs(kIn, 20));
  EXPECT_EQ(calls("cudaMemcpyBatchAsync"), 1U);
}

TEST_F(CopyEngineTest, ALostDeviceIsUnavailable) {
  const Route route{kHost, 2};
  expect_ok(cudaSetDevice(2));
  fake_cuda::lose_device(2);
  for (CopyMethod method : {CopyMethod::single, CopyMethod::batch, CopyMethod::kernel}) {
    make_engine(method);
    const Status status = engine_->copy({cudaStreamPerThread, 2, route, false}, runs(route, 20));
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::unavailable) << status.error().message;
  }
  expect_ok(cudaSetDevice(0));
  static_cast<void>(cudaGetLastError());
  copy_and_check(kIn, runs(kIn, 20));
  on_[2] = nullptr;  // cannot be given back any more
}

}  // namespace
}  // namespace harvest::cuda
