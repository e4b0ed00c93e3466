// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/copy_kernel.hpp"

#include <thread>

#include "fake_cuda/driver_calls.hpp"

/// The copy kernel on the fake.
namespace harvest::fake_cuda {
namespace {

class Kernels : public FakeCudaTest {
 protected:
  void SetUp() override {
    FakeCudaTest::SetUp();
    find_driver_function("cuLibraryLoadData", load_);
    find_driver_function("cuLibraryUnload", unload_);
    find_driver_function("cuLibraryGetKernel", get_kernel_);
    find_driver_function("cuLaunchKernel", launch_);
    ASSERT_CUDA(CUDA_SUCCESS, load_(&library_, "an image", nullptr, nullptr, 0, nullptr, nullptr, 0));
    ASSERT_CUDA(CUDA_SUCCESS, get_kernel_(&kernel_, library_, cuda::kCopyKernelName));
  }
  void TearDown() override {
    EXPECT_CUDA(CUDA_SUCCESS, unload_(library_));
    FakeCudaTest::TearDown();
  }

  CUresult launch(cuda::RunBatch& batch, cudaStream_t stream, unsigned threads = cuda::kThreadsPerBlock) {
    void* parameters[] = {&batch};
    return launch_(reinterpret_cast<CUfunction>(kernel_), 4, 1, 1, threads, 1, 1, 0, stream, parameters,
                   nullptr);
  }
  static bool add(cuda::RunBatch& batch, const void* to, const void* from, std::uint32_t bytes) {
    return cuda::add_run(batch, reinterpret_cast<std::uintptr_t>(to), reinterpret_cast<std::uintptr_t>(from),
                         bytes);
  }

  decltype(&::cuLibraryLoadData) load_ = nullptr;
  decltype(&::cuLibraryUnload) unload_ = nullptr;
  decltype(&::cuLibraryGetKernel) get_kernel_ = nullptr;
  decltype(&::cuLaunchKernel) launch_ = nullptr;
  CUlibrary library_ = nullptr;
  CUkernel kernel_ = nullptr;
};

TEST_F(Kernels, CopyTheirRuns) {
  PinnedMemory out(64 * 1024);
  const PinnedMemory in(64 * 1024);
  out.fill(9);
  const TestMemory memory(0, 64 * 1024);
  const TestStream stream(0);
  cuda::RunBatch there{};
  cuda::RunBatch back{};
  for (std::uint32_t at = 0; at < 64 * 1024; at += 4096) {
    ASSERT_TRUE(add(there, memory.get() + at, out.get() + at, 4096));
    ASSERT_TRUE(add(back, in.get() + at, memory.get() + at, 4096));
  }
  EXPECT_CUDA(CUDA_SUCCESS, launch(there, stream));
  there = {};  // the launch has its own
  EXPECT_CUDA(CUDA_SUCCESS, launch(back, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_TRUE(in.holds(9));
  EXPECT_EQ(counters().kernels, 2U);
  EXPECT_EQ(counters().kernel_runs, 32U);
}

TEST_F(Kernels, RunOnFromOneMappingToTheNext) {
  const Segment first(0, kGranularity);
  CUdeviceptr space = 0;
  ASSERT_CUDA(CUDA_SUCCESS, first.cu.reserve(&space, 2 * kGranularity, 0, 0, 0));
  const Segment second(0, kGranularity);
  ASSERT_CUDA(CUDA_SUCCESS, first.cu.map(space, kGranularity, 0, first.handle(), 0));
  ASSERT_CUDA(CUDA_SUCCESS, first.cu.map(space + kGranularity, kGranularity, 0, second.handle(), 0));
  ASSERT_CUDA(CUDA_SUCCESS, first.cu.allow(space, 2 * kGranularity, 0));
  PinnedMemory out(8192);
  const PinnedMemory in(8192);
  out.fill(4);
  const TestStream stream(0);
  auto* middle = reinterpret_cast<std::byte*>(space + kGranularity - 4097);
  cuda::RunBatch there{};
  cuda::RunBatch back{};
  ASSERT_TRUE(add(there, middle, out.get(), 8192));
  ASSERT_TRUE(add(back, in.get(), middle, 8192));
  EXPECT_CUDA(CUDA_SUCCESS, launch(there, stream));
  EXPECT_CUDA(CUDA_SUCCESS, launch(back, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_TRUE(in.holds(4));
  EXPECT_CUDA(CUDA_SUCCESS, first.cu.unmap(space, 2 * kGranularity));
  EXPECT_CUDA(CUDA_SUCCESS, first.cu.free_address(space, 2 * kGranularity));
}

TEST_F(Kernels, TouchOnlyWhatTheirDeviceMayAccess) {
  const TestMemory local(0, 4096);
  const TestMemory remote(1, 4096);
  const TestStream stream(0);
  cuda::RunBatch batch{};
  ASSERT_TRUE(add(batch, local.get(), remote.get(), 4096));
  ASSERT_CUDA(cudaSuccess, cudaDeviceEnablePeerAccess(1, 0));
  EXPECT_CUDA(CUDA_SUCCESS, launch(batch, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  ASSERT_CUDA(cudaSuccess, cudaDeviceDisablePeerAccess(1));
  EXPECT_CUDA(CUDA_SUCCESS, launch(batch, stream));
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaStreamSynchronize(stream));
}

TEST_F(Kernels, DoNotTouchPageableMemory) {
  const TestMemory local(0, 4096);
  const TestStream stream(0);
  std::vector<std::byte> plain(4096);
  cuda::RunBatch batch{};
  ASSERT_TRUE(add(batch, local.get(), plain.data(), 4096));
  EXPECT_CUDA(CUDA_SUCCESS, launch(batch, stream));
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaStreamSynchronize(stream));
}

TEST_F(Kernels, AreLaunchedOnTheCurrentDevicesStreams) {
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  cuda::RunBatch batch{};
  ASSERT_TRUE(add(batch, memory.get(), memory.get() + 2048, 2048));
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(1));
  EXPECT_CUDA(CUDA_ERROR_INVALID_HANDLE, launch(batch, stream));
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(0));
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, launch(batch, stream, 2048));
  std::thread([&] { EXPECT_CUDA(CUDA_ERROR_INVALID_CONTEXT, launch(batch, stream)); }).join();
  EXPECT_CUDA(CUDA_SUCCESS, launch(batch, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
}

TEST_F(Kernels, AreCaptured) {
  PinnedMemory out(4096);
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  cuda::RunBatch batch{};
  ASSERT_TRUE(add(batch, memory.get(), out.get(), 4096));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_CUDA(cudaSuccess, cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  EXPECT_CUDA(CUDA_SUCCESS, launch(batch, stream));
  ASSERT_CUDA(cudaSuccess, cudaStreamEndCapture(stream, &graph));
  ASSERT_CUDA(cudaSuccess, cudaGraphInstantiate(&executable, graph, 0));
  out.fill(8);
  ASSERT_CUDA(cudaSuccess, cudaGraphLaunch(executable, stream));
  ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  std::byte found{};
  ASSERT_TRUE(read(memory.get() + 4095, &found, 1));
  EXPECT_EQ(found, PinnedMemory::pattern(8, 4095));
  EXPECT_CUDA(cudaSuccess, cudaGraphExecDestroy(executable));
  EXPECT_CUDA(cudaSuccess, cudaGraphDestroy(graph));
}

TEST_F(Kernels, CanCorruptTheirPath) {
  const TestMemory memory(0, 4096);
  PinnedMemory out(4096);
  out.fill(1);
  const TestStream stream(0);
  corrupt_path(kHost, 0);
  cuda::RunBatch batch{};
  ASSERT_TRUE(add(batch, memory.get(), out.get(), 4096));
  EXPECT_CUDA(CUDA_SUCCESS, launch(batch, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  std::vector<std::byte> found(4096);
  ASSERT_TRUE(read(memory.get(), found.data(), found.size()));
  EXPECT_NE(found[2048], PinnedMemory::pattern(1, 2048));
}

TEST_F(Kernels, OfOtherNamesAreNotThere) {
  CUkernel other = nullptr;
  EXPECT_CUDA(CUDA_ERROR_NOT_FOUND, get_kernel_(&other, library_, "no_such_kernel"));
}

}  // namespace
}  // namespace harvest::fake_cuda
