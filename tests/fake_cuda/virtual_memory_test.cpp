// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <thread>

#include "fake_cuda/driver_calls.hpp"

/// The driver's virtual memory: rules 1, 2 and 3.
namespace harvest::fake_cuda {
namespace {

using VirtualMemory = FakeCudaTest;

TEST_F(VirtualMemory, ASegmentHoldsBytes) {
  const Segment segment(0, kGranularity);
  PinnedMemory out(kGranularity);
  const PinnedMemory in(kGranularity);
  out.fill(5);
  EXPECT_CUDA(cudaSuccess, cudaMemcpy(segment.get(), out.get(), kGranularity, cudaMemcpyDefault));
  EXPECT_CUDA(cudaSuccess, cudaMemcpy(in.get(), segment.get(), kGranularity, cudaMemcpyDefault));
  EXPECT_TRUE(in.holds(5));
  cudaPointerAttributes attributes{};
  ASSERT_CUDA(cudaSuccess, cudaPointerGetAttributes(&attributes, segment.get()));
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
}

TEST_F(VirtualMemory, UnmapUnderQueuedWorkPoisonsTheContext) {
  Segment segment(0, kGranularity);
  const PinnedMemory host(4096);
  const TestStream stream(0);
  {
    const Gate gate(stream);
    ASSERT_CUDA(cudaSuccess, cudaMemcpyAsync(host.get(), segment.get(), 4096, cudaMemcpyDefault, stream));
    EXPECT_CUDA(CUDA_SUCCESS, segment.unmap());  // which waits for nothing
  }
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaStreamSynchronize(stream));
  // Sticky: every later call of that device's context fails with it, and asking does not take it away.
  void* memory = nullptr;
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaMalloc(&memory, 4096));
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaGetLastError());
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaGetLastError());
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaDeviceSynchronize());
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaDeviceReset());
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaSetDevice(0));
  // The other device goes on.
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(1));
  EXPECT_CUDA(cudaSuccess, cudaMalloc(&memory, 4096));
  EXPECT_CUDA(cudaSuccess, cudaFree(memory));
}

TEST_F(VirtualMemory, UnmapUnderRunningWorkPoisonsTheContext) {
  Segment segment(0, kGranularity);
  const PinnedMemory host(4096);
  const TestStream stream(0);
  slow_copies(50'000);
  ASSERT_CUDA(cudaSuccess, cudaMemcpyAsync(segment.get(), host.get(), 4096, cudaMemcpyDefault, stream));
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_CUDA(CUDA_SUCCESS, segment.unmap());
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaStreamSynchronize(stream));
}

TEST_F(VirtualMemory, UnmapAfterTheWorkIsRight) {
  Segment segment(0, kGranularity);
  const PinnedMemory host(4096);
  const TestStream stream(0);
  ASSERT_CUDA(cudaSuccess, cudaMemcpyAsync(host.get(), segment.get(), 4096, cudaMemcpyDefault, stream));
  ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_CUDA(CUDA_SUCCESS, segment.unmap());
  EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
}

TEST_F(VirtualMemory, OtherMemoryAtTheSameAddressDoesNotHideTheError) {
  Segment segment(0, kGranularity);
  const PinnedMemory host(4096);
  const TestStream stream(0);
  {
    const Gate gate(stream);
    ASSERT_CUDA(cudaSuccess, cudaMemcpyAsync(host.get(), segment.get(), 4096, cudaMemcpyDefault, stream));
    ASSERT_CUDA(CUDA_SUCCESS, segment.unmap());
    ASSERT_CUDA(CUDA_SUCCESS, segment.cu.map(segment.address(), kGranularity, 0, segment.handle(), 0));
    ASSERT_CUDA(CUDA_SUCCESS, segment.cu.allow(segment.address(), kGranularity, 0));
  }
  EXPECT_CUDA(cudaErrorIllegalAddress, cudaStreamSynchronize(stream));
}

TEST_F(VirtualMemory, MemoryReturnsWithTheLastMappingAndReference) {
  Segment segment(0, kGranularity);
  EXPECT_EQ(used_bytes(0), kGranularity);
  CUmemGenericAllocationHandle again = 0;
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.retain(&again, segment.get()));
  segment.release();
  EXPECT_EQ(used_bytes(0), kGranularity);
  ASSERT_CUDA(CUDA_SUCCESS, segment.unmap());
  EXPECT_EQ(used_bytes(0), kGranularity) << "a reference is left";
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.release(again));
  EXPECT_EQ(used_bytes(0), 0U);
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, segment.cu.release(again));
}

TEST_F(VirtualMemory, AMappingOutlivesItsHandle) {
  Segment segment(0, kGranularity);
  segment.release();
  EXPECT_EQ(used_bytes(0), kGranularity);
  EXPECT_CUDA(cudaSuccess, cudaMemset(segment.get(), 1, kGranularity));
  EXPECT_CUDA(cudaSuccess, cudaDeviceSynchronize());
  ASSERT_CUDA(CUDA_SUCCESS, segment.unmap());
  EXPECT_EQ(used_bytes(0), 0U);
}

TEST_F(VirtualMemory, AnExportedDescriptorPinsTheMemory) {
  int fd = -1;
  {
    Segment segment(0, kGranularity, true);
    ASSERT_CUDA(CUDA_SUCCESS,
                segment.cu.export_handle(&fd, segment.handle(), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  }
  EXPECT_EQ(used_bytes(0), kGranularity);
  ASSERT_EQ(close(fd), 0);
  EXPECT_EQ(used_bytes(0), 0U);
}

TEST_F(VirtualMemory, AnImportIsTheSameMemory) {
  Segment segment(0, kGranularity, true);
  int fd = -1;
  ASSERT_CUDA(CUDA_SUCCESS,
              segment.cu.export_handle(&fd, segment.handle(), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  CUmemGenericAllocationHandle imported = 0;
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.import_handle(&imported, reinterpret_cast<void*>(std::uintptr_t(fd)),
                                                     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
  ASSERT_EQ(close(fd), 0);
  CUdeviceptr alias = 0;
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.reserve(&alias, kGranularity, 0, 0, 0));
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.map(alias, kGranularity, 0, imported, 0));
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.allow(alias, kGranularity, 0));
  EXPECT_EQ(used_bytes(0), kGranularity) << "it is one memory";
  const int value = 77;
  int found = 0;
  ASSERT_TRUE(write(reinterpret_cast<void*>(alias), &value, sizeof value));
  ASSERT_TRUE(read(segment.get(), &found, sizeof found));
  EXPECT_EQ(found, 77);
  EXPECT_CUDA(CUDA_SUCCESS, segment.cu.unmap(alias, kGranularity));
  EXPECT_CUDA(CUDA_SUCCESS, segment.cu.release(imported));
  EXPECT_CUDA(CUDA_SUCCESS, segment.cu.free_address(alias, kGranularity));
}

TEST_F(VirtualMemory, OnlyWhatIsMadeForItIsExported) {
  Segment segment(0, kGranularity);
  int fd = -1;
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE,
              segment.cu.export_handle(&fd, segment.handle(), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
  CUmemGenericAllocationHandle imported = 0;
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE,
              segment.cu.import_handle(&imported, reinterpret_cast<void*>(std::uintptr_t{0}),
                                       CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
}

TEST_F(VirtualMemory, SizesAreMultiplesOfTheGranularity) {
  const DriverCalls cu;
  const auto prop = DriverCalls::properties(0);
  std::size_t granularity = 0;
  ASSERT_CUDA(CUDA_SUCCESS, cu.granularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  EXPECT_EQ(granularity, kGranularity);
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr address = 0;
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, cu.create(&handle, kMiB, &prop, 0));
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, cu.create(&handle, 0, &prop, 0));
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, cu.reserve(&address, kMiB, 0, 0, 0));
  EXPECT_CUDA(CUDA_ERROR_OUT_OF_MEMORY, cu.create(&handle, 512 * kMiB, &prop, 0));
  const auto nowhere = DriverCalls::properties(2);
  EXPECT_CUDA(CUDA_ERROR_INVALID_DEVICE, cu.create(&handle, kGranularity, &nowhere, 0));
}

TEST_F(VirtualMemory, MapsWholeReservedUnmappedRangesAtOffsetZero) {
  Segment segment(0, 2 * kGranularity);
  CUdeviceptr free_space = 0;
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.reserve(&free_space, 2 * kGranularity, 0, 0, 0));
  const auto map = [&](CUdeviceptr address, std::size_t bytes, std::size_t offset) {
    return segment.cu.map(address, bytes, offset, segment.handle(), 0);
  };
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, map(segment.address(), 2 * kGranularity, 0));  // mapped already
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, map(free_space, kGranularity, kGranularity));  // an offset
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, map(free_space, 4 * kGranularity, 0));         // more than there is
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE,
              map(free_space + kGranularity, 2 * kGranularity, 0));                // beyond the end
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, map(free_space + 4096, kGranularity, 0));  // not aligned
  EXPECT_CUDA(CUDA_SUCCESS, map(free_space, 2 * kGranularity, 0));
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE,
              segment.cu.free_address(free_space, 2 * kGranularity));  // still mapped
  EXPECT_CUDA(CUDA_SUCCESS, segment.cu.unmap(free_space, 2 * kGranularity));
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, segment.cu.free_address(free_space, kGranularity));  // another size
  EXPECT_CUDA(CUDA_SUCCESS, segment.cu.free_address(free_space, 2 * kGranularity));
}

TEST_F(VirtualMemory, NoPartIsUnmapped) {
  Segment segment(0, 2 * kGranularity);
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, segment.cu.unmap(segment.address(), kGranularity));
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, segment.cu.unmap(segment.address() + kGranularity, kGranularity));
  EXPECT_CUDA(CUDA_SUCCESS, segment.cu.unmap(segment.address(), 2 * kGranularity));
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, segment.cu.unmap(segment.address(), 2 * kGranularity));
}

TEST_F(VirtualMemory, AccessIsGrantedAgainAfterEachMap) {
  Segment segment(0, kGranularity);
  int value = 3;
  EXPECT_CUDA(cudaSuccess, cudaMemcpy(segment.get(), &value, sizeof value, cudaMemcpyDefault));
  ASSERT_CUDA(CUDA_SUCCESS, segment.unmap());
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(segment.get(), &value, sizeof value, cudaMemcpyDefault));
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.map(segment.address(), kGranularity, 0, segment.handle(), 0));
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpy(segment.get(), &value, sizeof value, cudaMemcpyDefault));
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.allow(segment.address(), kGranularity, 0));
  value = 0;
  EXPECT_CUDA(cudaSuccess, cudaMemcpy(&value, segment.get(), sizeof value, cudaMemcpyDefault));
  EXPECT_EQ(value, 3);
}

TEST_F(VirtualMemory, OtherPhysicalMemoryMapsAtTheSameAddress) {
  Segment segment(0, kGranularity);
  const auto prop = DriverCalls::properties(0);
  CUmemGenericAllocationHandle other = 0;
  int value = 3;
  ASSERT_CUDA(cudaSuccess, cudaMemcpy(segment.get(), &value, sizeof value, cudaMemcpyDefault));
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.create(&other, kGranularity, &prop, 0));
  ASSERT_CUDA(CUDA_SUCCESS, segment.unmap());
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.map(segment.address(), kGranularity, 0, other, 0));
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.allow(segment.address(), kGranularity, 0));
  ASSERT_CUDA(cudaSuccess, cudaMemcpy(&value, segment.get(), sizeof value, cudaMemcpyDefault));
  EXPECT_EQ(value, 0);
  ASSERT_CUDA(CUDA_SUCCESS, segment.cu.release(other));
}

TEST_F(VirtualMemory, ADeviceCopiesOnlyWhatItMayAccess) {
  const Segment segment(1, kGranularity);
  const TestMemory local(0, kGranularity);
  const TestStream stream(0);
  EXPECT_CUDA(cudaErrorInvalidValue,
              cudaMemcpyAsync(local.get(), segment.get(), 4096, cudaMemcpyDefault, stream));
  // By the two devices themselves it goes, through the host.
  EXPECT_CUDA(cudaSuccess, cudaMemcpyPeerAsync(local.get(), 0, segment.get(), 1, 4096, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_EQ(counters().staged_copies, 1U);
  ASSERT_CUDA(CUDA_SUCCESS,
              segment.cu.allow(segment.address(), kGranularity, 0, CU_MEM_ACCESS_FLAGS_PROT_READ));
  EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(local.get(), segment.get(), 4096, cudaMemcpyDefault, stream));
  EXPECT_CUDA(cudaErrorInvalidValue,
              cudaMemcpyAsync(segment.get(), local.get(), 4096, cudaMemcpyDefault, stream));
  ASSERT_CUDA(CUDA_SUCCESS,
              segment.cu.allow(segment.address(), kGranularity, 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE));
  EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(segment.get(), local.get(), 4096, cudaMemcpyDefault, stream));
  ASSERT_CUDA(CUDA_SUCCESS,
              segment.cu.allow(segment.address(), kGranularity, 0, CU_MEM_ACCESS_FLAGS_PROT_NONE));
  EXPECT_CUDA(cudaErrorInvalidValue,
              cudaMemcpyAsync(local.get(), segment.get(), 4096, cudaMemcpyDefault, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
}

TEST_F(VirtualMemory, AccessGoesToPeersAlone) {
  auto apart = machine();
  apart.peer_access = {{false, false}, {false, false}};
  reset(apart);
  const Segment segment(1, kGranularity);
  EXPECT_CUDA(CUDA_ERROR_INVALID_DEVICE, segment.cu.allow(segment.address(), kGranularity, 0));
  EXPECT_CUDA(CUDA_SUCCESS, segment.cu.allow(segment.address(), kGranularity, 1));
}

TEST_F(VirtualMemory, TellsTheRangeOfAnAddress) {
  const Segment segment(0, 2 * kGranularity);
  CUdeviceptr begin = 0;
  std::size_t bytes = 0;
  EXPECT_CUDA(CUDA_SUCCESS, segment.cu.address_range(&begin, &bytes, segment.address() + 5));
  EXPECT_EQ(begin, segment.address());
  EXPECT_EQ(bytes, 2 * kGranularity);
  int plain = 0;
  EXPECT_CUDA(CUDA_ERROR_NOT_FOUND,
              segment.cu.address_range(&begin, &bytes, reinterpret_cast<std::uintptr_t>(&plain)));
}

TEST_F(VirtualMemory, ADeviceMayLackIt) {
  auto plain = machine();
  plain.devices[0].virtual_memory = false;
  reset(plain);
  const DriverCalls cu;
  const auto prop = DriverCalls::properties(0);
  std::size_t granularity = 0;
  CUmemGenericAllocationHandle handle = 0;
  EXPECT_CUDA(CUDA_ERROR_NOT_SUPPORTED,
              cu.granularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  EXPECT_CUDA(CUDA_ERROR_NOT_SUPPORTED, cu.create(&handle, kGranularity, &prop, 0));
}

}  // namespace
}  // namespace harvest::fake_cuda
