// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>
#include <thread>

#include "fake_cuda/sanitizer.hpp"
#include "fake_cuda/trial.hpp"

/// cudaMemcpyBatchAsync: rules 10, 11 and 12.
#if CUDART_VERSION >= 12080
namespace harvest::fake_cuda {
namespace {

using Batches = FakeCudaTest;

/// The arrays of a batch, and the call in whichever signature the toolkit has.
struct Arrays {
  std::vector<void*> to;
  std::vector<const void*> from;
  std::vector<std::size_t> bytes;
  cudaMemcpyAttributes attributes{};
  std::size_t begin = 0;

  Arrays() { attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream; }
  void add(void* destination, const void* source, std::size_t size) {
    to.push_back(destination);
    from.push_back(source);
    bytes.push_back(size);
  }
  cudaError_t give(cudaStream_t stream, std::size_t attribute_count = 1) {
#if CUDART_VERSION >= 13000
    return cudaMemcpyBatchAsync(to.data(), from.data(), bytes.data(), to.size(), &attributes, &begin,
                                attribute_count, stream);
#else
    std::size_t failed = 0;
    return cudaMemcpyBatchAsync(to.data(), const_cast<void**>(from.data()), bytes.data(), to.size(),
                                &attributes, &begin, attribute_count, &failed, stream);
#endif
  }
};

TEST_F(Batches, CopyAllTheirRuns) {
  PinnedMemory out(64 * 1024);
  const PinnedMemory in(64 * 1024);
  out.fill(3);
  const TestMemory memory(0, 64 * 1024);
  const TestStream stream(0);
  Arrays there;
  Arrays back;
  for (std::size_t at = 0; at < 64 * 1024; at += 4096) {
    there.add(memory.get() + at, out.get() + at, 4096);
    back.add(in.get() + at, memory.get() + at, 4096);
  }
  EXPECT_CUDA(cudaSuccess, there.give(stream));
  EXPECT_CUDA(cudaSuccess, back.give(stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_TRUE(in.holds(3));
  EXPECT_EQ(counters().batches, 2U);
  EXPECT_EQ(counters().copies, 32U);
}

TEST_F(Batches, NotOnTheLegacyStream) {
  const PinnedMemory host(4096);
  const TestMemory memory(0, 4096);
  Arrays arrays;
  arrays.add(memory.get(), host.get(), 4096);
  EXPECT_CUDA(cudaErrorInvalidValue, arrays.give(nullptr));
  EXPECT_CUDA(cudaErrorInvalidValue, arrays.give(cudaStreamLegacy));
  EXPECT_CUDA(cudaSuccess, arrays.give(cudaStreamPerThread));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(cudaStreamPerThread));
}

TEST_F(Batches, MustSayHowSourcesAreAccessed) {
  const PinnedMemory host(4096);
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  Arrays arrays;
  arrays.add(memory.get(), host.get(), 4096);
  arrays.attributes.srcAccessOrder = cudaMemcpySrcAccessOrderInvalid;
  EXPECT_CUDA(cudaErrorInvalidValue, arrays.give(stream));
  arrays.attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  EXPECT_CUDA(cudaErrorInvalidValue, arrays.give(stream, 0));
  EXPECT_CUDA(cudaErrorInvalidValue, arrays.give(stream, 2));  // more attributes than copies
  arrays.begin = 1;
  EXPECT_CUDA(cudaErrorInvalidValue, arrays.give(stream));
  arrays.begin = 0;
  EXPECT_CUDA(cudaSuccess, arrays.give(stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
}

/// The value that arrives when the source is overwritten by earlier work of the stream.
unsigned char arrives(cudaMemcpySrcAccessOrder order) {
  const TestMemory source(0, 4096);
  const TestMemory destination(0, 4096);
  const TestStream stream(0);
  EXPECT_CUDA(cudaSuccess, cudaMemset(source.get(), 1, 4096));
  EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
  Arrays arrays;
  arrays.add(destination.get(), source.get(), 4096);
  arrays.attributes.srcAccessOrder = order;
  {
    const Gate gate(stream);
    EXPECT_CUDA(cudaSuccess, cudaMemsetAsync(source.get(), 2, 4096, stream));
    EXPECT_CUDA(cudaSuccess, arrays.give(stream));
  }
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  unsigned char value = 0;
  EXPECT_TRUE(read(destination.get(), &value, 1));
  return value;
}

TEST_F(Batches, InStreamOrderWaitAndInAnyOrderReadEarly) {
  EXPECT_EQ(arrives(cudaMemcpySrcAccessOrderStream), 2);
#if defined(HARVEST_FAKE_CUDA_TSAN)
  if (internal::hides_insides()) return;  // reading early is a race, and the sanitizer would say so
#endif
  EXPECT_EQ(arrives(cudaMemcpySrcAccessOrderAny), 1);
  EXPECT_EQ(arrives(cudaMemcpySrcAccessOrderDuringApiCall), 1);
}

TEST_F(Batches, HaveNoOrderInside) {
  const TestMemory source(0, 8);
  const TestMemory destination(0, 8);
  const TestStream stream(0);
  for (unsigned char i = 0; i < 8; ++i) ASSERT_TRUE(write(source.get() + i, &i, 1));
  std::set<int> last;
  for (int round = 0; round < 100 && last.size() < 8; ++round) {
    Arrays arrays;
    for (std::size_t i = 0; i < 8; ++i) arrays.add(destination.get(), source.get() + i, 1);
    ASSERT_CUDA(cudaSuccess, arrays.give(stream));
    ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
    unsigned char value = 0;
    ASSERT_TRUE(read(destination.get(), &value, 1));
    last.insert(value);
  }
  EXPECT_GE(last.size(), 4U);
}

TEST_F(Batches, CannotBeCapturedAndTheCaptureGoesOn) {
  const PinnedMemory host(4096);
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  Arrays arrays;
  arrays.add(memory.get(), host.get(), 4096);
  cudaGraph_t graph = nullptr;
  ASSERT_CUDA(cudaSuccess, cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  EXPECT_CUDA(cudaErrorStreamCaptureUnsupported, arrays.give(stream));
  EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(memory.get(), host.get(), 4096, cudaMemcpyDefault, stream));
  ASSERT_CUDA(cudaSuccess, cudaStreamEndCapture(stream, &graph));
  std::size_t nodes = 0;
  EXPECT_CUDA(cudaSuccess, cudaGraphGetNodes(graph, nullptr, &nodes));
  EXPECT_EQ(nodes, 1U);
  EXPECT_CUDA(cudaSuccess, cudaGraphDestroy(graph));
}

TEST_F(Batches, NeedTheirArraysUntilTheyRan) {
  const PinnedMemory host(4096);
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  Arrays arrays;
  arrays.add(memory.get(), host.get(), 4096);
  {
    const Gate gate(stream);
    ASSERT_CUDA(cudaSuccess, arrays.give(stream));
    arrays.bytes[0] = 17;  // as a freed array would have it, where somebody else has it now
  }
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaStreamSynchronize(stream));
}

TEST_F(Batches, MayLoseTheirArraysWhereTheMachineSaysSo) {
  auto lenient = machine();
  lenient.late_descriptors = false;
  reset(lenient);
  const PinnedMemory host(4096);
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  Arrays arrays;
  arrays.add(memory.get(), host.get(), 4096);
  {
    const Gate gate(stream);
    ASSERT_CUDA(cudaSuccess, arrays.give(stream));
    arrays.bytes[0] = 17;
  }
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
}

TEST_F(Batches, CheckEachOfTheirRuns) {
  const PinnedMemory host(4096);
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  Arrays arrays;
  arrays.add(memory.get(), host.get(), 100);
  arrays.add(memory.get() + 4000, host.get(), 200);
  EXPECT_CUDA(cudaErrorInvalidValue, arrays.give(stream));
  arrays.bytes[1] = 0;
  EXPECT_CUDA(cudaErrorInvalidValue, arrays.give(stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_EQ(counters().copies, 0U);
}

}  // namespace
}  // namespace harvest::fake_cuda
#endif
