// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cuda/copy_engine_fixture.hpp"

/// After an error nothing of the batch is under way, and the next batch is copied as ever.
namespace harvest::cuda {
namespace {

using ::testing::HasSubstr;

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
