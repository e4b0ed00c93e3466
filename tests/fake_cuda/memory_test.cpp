// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>

#include "fake_cuda/trial.hpp"

/// Memory and plain copies.
namespace harvest::fake_cuda {
namespace {

using Memory = FakeCudaTest;

TEST_F(Memory, BytesGoThereAndBack) {
  PinnedMemory out(kMiB);
  PinnedMemory in(kMiB);
  out.fill(7);
  const TestMemory a(0, kMiB);
  const TestMemory b(1, kMiB);
  const TestStream stream(0);
  EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(a.get(), out.get(), kMiB, cudaMemcpyDefault, stream));
  EXPECT_CUDA(cudaSuccess, cudaMemcpyPeerAsync(b.get(), 1, a.get(), 0, kMiB, stream));
  EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(in.get(), b.get(), kMiB, cudaMemcpyDefault, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_TRUE(in.holds(7));
  EXPECT_EQ(counters().copied_bytes, 3 * kMiB);
}

TEST_F(Memory, FreeCountShowsWhatIsAllocated) {
  std::size_t free_before = 0;
  std::size_t free_then = 0;
  std::size_t total = 0;
  ASSERT_CUDA(cudaSuccess, cudaMemGetInfo(&free_before, &total));
  EXPECT_EQ(total, 256 * kMiB);
  {
    const TestMemory memory(0, 3 * kMiB);
    ASSERT_CUDA(cudaSuccess, cudaMemGetInfo(&free_then, &total));
    EXPECT_EQ(free_before - free_then, 3 * kMiB);
  }
  ASSERT_CUDA(cudaSuccess, cudaMemGetInfo(&free_then, &total));
  EXPECT_EQ(free_before, free_then);
}

TEST_F(Memory, OutOfMemoryIsNotSticky) {
  void* memory = nullptr;
  EXPECT_CUDA(cudaErrorMemoryAllocation, cudaMalloc(&memory, 257 * kMiB));
  EXPECT_CUDA(cudaErrorMemoryAllocation, cudaPeekAtLastError());
  EXPECT_CUDA(cudaErrorMemoryAllocation, cudaGetLastError());
  EXPECT_CUDA(cudaSuccess, cudaGetLastError());
  ASSERT_CUDA(cudaSuccess, cudaMalloc(&memory, 255 * kMiB));
  EXPECT_CUDA(cudaSuccess, cudaFree(memory));
}

TEST_F(Memory, TheHostCannotTouchADevicesMemory) {
  const TestMemory memory(0, kMiB);
  EXPECT_DEATH(std::memset(memory.get(), 1, 1), "");
}

TEST_F(Memory, ControlReadsAndWritesIt) {
  const TestMemory memory(0, kMiB);
  const int value = 42;
  int found = 0;
  ASSERT_TRUE(write(memory.get() + 8, &value, sizeof value));
  ASSERT_TRUE(read(memory.get() + 8, &found, sizeof found));
  EXPECT_EQ(found, 42);
  EXPECT_FALSE(read(memory.get() + kMiB, &found, sizeof found));
}

TEST_F(Memory, ACopySpanningTwoAllocationsIsRefused) {
  const TestMemory memory(0, kMiB);
  PinnedMemory host(2 * kMiB);
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(memory.get(), host.get(), kMiB + 1, cudaMemcpyDefault));
  EXPECT_CUDA(cudaSuccess, cudaMemcpy(memory.get(), host.get(), kMiB, cudaMemcpyDefault));
  EXPECT_CUDA(cudaErrorInvalidValue,
              cudaMemcpy(host.get() + kMiB + 1, memory.get(), kMiB, cudaMemcpyDefault));
}

TEST_F(Memory, ACopySpanningTwoRegistrationsIsRefused) {
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(4096, 4 * 4096));
  std::memset(memory, 1, 4 * 4096);
  ASSERT_CUDA(cudaSuccess, cudaHostRegister(memory, 2 * 4096, cudaHostRegisterDefault));
  ASSERT_CUDA(cudaSuccess, cudaHostRegister(memory + 2 * 4096, 2 * 4096, cudaHostRegisterDefault));
  {
    const TestMemory device(0, kMiB);
    EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(device.get(), memory, 3 * 4096, cudaMemcpyDefault));
    EXPECT_CUDA(cudaSuccess, cudaMemcpy(device.get(), memory, 2 * 4096, cudaMemcpyDefault));
    EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(device.get(), memory + 4096, 2 * 4096, cudaMemcpyDefault));
  }
  EXPECT_CUDA(cudaSuccess, cudaHostUnregister(memory));
  EXPECT_CUDA(cudaSuccess, cudaHostUnregister(memory + 2 * 4096));
  std::free(memory);
}

TEST_F(Memory, OverlappingRegistrationsAreRefused) {
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(4096, 2 * 4096));
  ASSERT_CUDA(cudaSuccess, cudaHostRegister(memory, 100, cudaHostRegisterDefault));
  EXPECT_CUDA(cudaErrorHostMemoryAlreadyRegistered, cudaHostRegister(memory, 100, cudaHostRegisterDefault));
  // Pages are pinned, so another part of the same page is the same memory.
  EXPECT_CUDA(cudaErrorHostMemoryAlreadyRegistered,
              cudaHostRegister(memory + 200, 100, cudaHostRegisterDefault));
  EXPECT_CUDA(cudaSuccess, cudaHostRegister(memory + 4096, 100, cudaHostRegisterDefault));
  EXPECT_CUDA(cudaErrorHostMemoryNotRegistered, cudaHostUnregister(memory + 1));
  EXPECT_CUDA(cudaSuccess, cudaHostUnregister(memory));
  EXPECT_CUDA(cudaErrorHostMemoryNotRegistered, cudaHostUnregister(memory));
  EXPECT_CUDA(cudaSuccess, cudaHostUnregister(memory + 4096));
  std::free(memory);
}

TEST_F(Memory, OneRegistrationHasALimit) {
  auto limited = machine();
  limited.host_register_limit_bytes = 8192;
  reset(limited);
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(4096, 8192));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaHostRegister(memory, 8192, cudaHostRegisterDefault));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaGetLastError());  // which somebody else's check would find
  EXPECT_CUDA(cudaSuccess, cudaHostRegister(memory, 8191, cudaHostRegisterDefault));
  EXPECT_CUDA(cudaSuccess, cudaHostUnregister(memory));
  std::free(memory);
}

TEST_F(Memory, PointersTellWhatTheyAre) {
  const TestMemory memory(1, kMiB);
  PinnedMemory host(4096);
  int plain = 0;
  cudaPointerAttributes attributes{};
  ASSERT_CUDA(cudaSuccess, cudaPointerGetAttributes(&attributes, memory.get() + 5));
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  EXPECT_EQ(attributes.device, 1);
  EXPECT_EQ(attributes.hostPointer, nullptr);
  ASSERT_CUDA(cudaSuccess, cudaPointerGetAttributes(&attributes, host.get()));
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  ASSERT_CUDA(cudaSuccess, cudaPointerGetAttributes(&attributes, &plain));
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
}

TEST_F(Memory, TheKindOfACopyMustBeTrue) {
  const TestMemory memory(0, kMiB);
  int plain = 0;
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(&plain, memory.get(), sizeof plain, cudaMemcpyHostToDevice));
  EXPECT_CUDA(cudaErrorInvalidValue,
              cudaMemcpy(memory.get(), &plain, sizeof plain, cudaMemcpyDeviceToDevice));
  EXPECT_CUDA(cudaErrorInvalidMemcpyDirection,
              cudaMemcpy(memory.get(), &plain, sizeof plain, static_cast<cudaMemcpyKind>(7)));
  EXPECT_CUDA(cudaSuccess, cudaMemcpy(memory.get(), &plain, sizeof plain, cudaMemcpyHostToDevice));
}

TEST_F(Memory, PageableSourcesAreReadBeforeTheCallReturns) {
  const TestMemory memory(0, 4096);
  const TestStream stream(0);
  int value = 1;
  int found = 0;
  {
    Gate gate(stream);
    EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(memory.get(), &value, sizeof value, cudaMemcpyDefault, stream));
    value = 2;
  }
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  ASSERT_TRUE(read(memory.get(), &found, sizeof found));
  EXPECT_EQ(found, 1);
}

TEST_F(Memory, AFreedAddressIsKnownToBeStale) {
  void* address = nullptr;
  int value = 0;
  ASSERT_CUDA(cudaSuccess, cudaMalloc(&address, 4096));
  ASSERT_CUDA(cudaSuccess, cudaFree(address));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaFree(address));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(address, &value, sizeof value, cudaMemcpyDefault));
}

TEST_F(Memory, FreeUnderWorkIsAnError) {
  void* address = nullptr;
  const PinnedMemory host(4096);
  const TestStream stream(0);
  ASSERT_CUDA(cudaSuccess, cudaMalloc(&address, 4096));
  {
    const Gate gate(stream);
    EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(address, host.get(), 4096, cudaMemcpyDefault, stream));
    EXPECT_CUDA(cudaSuccess, cudaFree(address));
  }
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaStreamSynchronize(stream));
}

TEST_F(Memory, FreeMayWait) {
  auto waiting = machine();
  waiting.free_waits = true;
  reset(waiting);
  void* address = nullptr;
  const PinnedMemory host(4096);
  const TestStream stream(0);
  ASSERT_CUDA(cudaSuccess, cudaMalloc(&address, 4096));
  EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(address, host.get(), 4096, cudaMemcpyDefault, stream));
  EXPECT_CUDA(cudaSuccess, cudaFree(address));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_EQ(counters().copies, 1U);
}

}  // namespace
}  // namespace harvest::fake_cuda
