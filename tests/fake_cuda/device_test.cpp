// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "fake_cuda/driver_calls.hpp"

/// Devices, their peers (rules 7, 8, 9 and 20), and errors by name.
namespace harvest::fake_cuda {
namespace {

using Devices = FakeCudaTest;

TEST_F(Devices, AreThoseOfTheMachine) {
  auto description = machine(3);
  description.devices[1].name = "Other GPU";
  description.devices[1].pci_bus_id = "0000:AB:00.0";
  reset(description);
  int count = 0;
  ASSERT_CUDA(cudaSuccess, cudaGetDeviceCount(&count));
  EXPECT_EQ(count, 3);
  cudaDeviceProp prop{};
  ASSERT_CUDA(cudaSuccess, cudaGetDeviceProperties(&prop, 1));
  EXPECT_STREQ(prop.name, "Other GPU");
  EXPECT_EQ(prop.totalGlobalMem, 256 * kMiB);
  EXPECT_EQ(prop.pciBusID, 0xab);
  char text[32];
  ASSERT_CUDA(cudaSuccess, cudaDeviceGetPCIBusId(text, sizeof text, 1));
  EXPECT_STREQ(text, "0000:AB:00.0");
  EXPECT_CUDA(cudaErrorInvalidValue, cudaDeviceGetPCIBusId(text, 5, 1));
  int device = -1;
  ASSERT_CUDA(cudaSuccess, cudaDeviceGetByPCIBusId(&device, "0000:AB:00.0"));
  EXPECT_EQ(device, 1);
  EXPECT_CUDA(cudaErrorInvalidDevice, cudaSetDevice(3));
  EXPECT_CUDA(cudaErrorInvalidDevice, cudaGetDeviceProperties(&prop, -1));
  int runtime = 0;
  int driver = 0;
  EXPECT_CUDA(cudaSuccess, cudaRuntimeGetVersion(&runtime));
  EXPECT_CUDA(cudaSuccess, cudaDriverGetVersion(&driver));
  EXPECT_EQ(runtime, CUDART_VERSION);
  EXPECT_EQ(driver, CUDART_VERSION);
}

TEST_F(Devices, NoneIsAnError) {
  reset(uniform_machine(0));
  int count = -1;
  EXPECT_CUDA(cudaErrorNoDevice, cudaGetDeviceCount(&count));
}

TEST_F(Devices, PeerAccessIsOneDirectional) {
  const TestMemory on_0(0, 4096);
  const TestMemory on_1(1, 4096);
  const auto device_pointer = [](int device, const void* address) {
    cudaPointerAttributes attributes{};
    EXPECT_CUDA(cudaSuccess, cudaSetDevice(device));
    EXPECT_CUDA(cudaSuccess, cudaPointerGetAttributes(&attributes, address));
    return attributes.devicePointer;
  };
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(0));
  ASSERT_CUDA(cudaSuccess, cudaDeviceEnablePeerAccess(1, 0));
  EXPECT_CUDA(cudaErrorPeerAccessAlreadyEnabled, cudaDeviceEnablePeerAccess(1, 0));
  EXPECT_NE(device_pointer(0, on_1.get()), nullptr);
  EXPECT_EQ(device_pointer(1, on_0.get()), nullptr);
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(1));
  EXPECT_CUDA(cudaErrorPeerAccessNotEnabled, cudaDeviceDisablePeerAccess(0));
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(0));
  EXPECT_CUDA(cudaSuccess, cudaDeviceDisablePeerAccess(1));
}

TEST_F(Devices, HaveEightPeersWithoutASwitch) {
  auto many = machine(10, 16 * kMiB);
  many.nvswitch = false;
  reset(many);
  for (int peer = 1; peer <= 8; ++peer) ASSERT_CUDA(cudaSuccess, cudaDeviceEnablePeerAccess(peer, 0));
  EXPECT_CUDA(cudaErrorTooManyPeers, cudaDeviceEnablePeerAccess(9, 0));
  EXPECT_CUDA(cudaSuccess, cudaDeviceDisablePeerAccess(3));
  EXPECT_CUDA(cudaSuccess, cudaDeviceEnablePeerAccess(9, 0));
  many.nvswitch = true;
  reset(many);
  for (int peer = 1; peer <= 9; ++peer) EXPECT_CUDA(cudaSuccess, cudaDeviceEnablePeerAccess(peer, 0));
}

TEST_F(Devices, HaveNoLinkToThemselves) {
  int value = -1;
  EXPECT_CUDA(cudaErrorInvalidDevice, cudaDeviceGetP2PAttribute(&value, cudaDevP2PAttrAccessSupported, 0, 0));
  EXPECT_CUDA(cudaSuccess, cudaDeviceGetP2PAttribute(&value, cudaDevP2PAttrAccessSupported, 0, 1));
  EXPECT_EQ(value, 1);
  EXPECT_CUDA(cudaSuccess, cudaDeviceCanAccessPeer(&value, 0, 0));
  EXPECT_EQ(value, 0);
}

TEST_F(Devices, WithoutAccessCopiesAreStaged) {
  const TestMemory on_0(0, 4096);
  const TestMemory on_1(1, 4096);
  const TestStream stream(0);
  ASSERT_CUDA(cudaSuccess, cudaMemcpyPeerAsync(on_0.get(), 0, on_1.get(), 1, 4096, stream));
  ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_EQ(counters().staged_copies, 1U);
  ASSERT_CUDA(cudaSuccess, cudaDeviceEnablePeerAccess(1, 0));
  ASSERT_CUDA(cudaSuccess, cudaMemcpyPeerAsync(on_0.get(), 0, on_1.get(), 1, 4096, stream));
  ASSERT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_EQ(counters().staged_copies, 1U);
  EXPECT_CUDA(cudaErrorInvalidValue, cudaMemcpyPeerAsync(on_0.get(), 1, on_1.get(), 0, 4096, stream));
  EXPECT_CUDA(cudaErrorInvalidDevice, cudaMemcpyPeerAsync(on_0.get(), 0, on_1.get(), 7, 4096, stream));
}

/// Whether 4096 bytes arrive as they were sent.
bool arrives_right(const TestMemory& to, int to_device, const TestMemory& from, int from_device) {
  const TestStream stream(to_device);
  std::vector<unsigned char> sent(4096, 0xaa);
  std::vector<unsigned char> found(4096);
  EXPECT_TRUE(write(from.get(), sent.data(), sent.size()));
  EXPECT_CUDA(cudaSuccess, cudaMemcpyPeerAsync(to.get(), to_device, from.get(), from_device, 4096, stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  EXPECT_TRUE(read(to.get(), found.data(), found.size()));
  return found == sent;
}

TEST_F(Devices, APathCanCorruptSilentlyWhereItIsDirect) {
  const TestMemory on_0(0, 4096);
  const TestMemory on_1(1, 4096);
  corrupt_path(1, 0);
  EXPECT_TRUE(arrives_right(on_0, 0, on_1, 1)) << "it was staged through the host";
  ASSERT_CUDA(cudaSuccess, cudaSetDevice(0));
  ASSERT_CUDA(cudaSuccess, cudaDeviceEnablePeerAccess(1, 0));
  EXPECT_FALSE(arrives_right(on_0, 0, on_1, 1));
  EXPECT_TRUE(arrives_right(on_1, 1, on_0, 0)) << "the other direction is another path";
  corrupt_path(1, 0, false);
  EXPECT_TRUE(arrives_right(on_0, 0, on_1, 1));
}

TEST_F(Devices, MigInstancesHaveNoPeersAndShareNothing) {
  auto instances = machine();
  for (auto& device : instances.devices) device.mig = true;
  reset(instances);
  int can = -1;
  EXPECT_CUDA(cudaSuccess, cudaDeviceCanAccessPeer(&can, 0, 1));
  EXPECT_EQ(can, 0);
  EXPECT_CUDA(cudaErrorPeerAccessUnsupported, cudaDeviceEnablePeerAccess(1, 0));
  const DriverCalls cu;
  CUmemGenericAllocationHandle handle = 0;
  const auto prop = DriverCalls::properties(0, true);
  EXPECT_CUDA(CUDA_ERROR_NOT_SUPPORTED, cu.create(&handle, kGranularity, &prop, 0));
  const Segment segment(0, kGranularity);
  EXPECT_CUDA(CUDA_ERROR_INVALID_DEVICE, cu.allow(segment.address(), kGranularity, 1));
}

TEST_F(Devices, AResetGivesBackWhatTheContextHas) {
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  ASSERT_CUDA(cudaSuccess, cudaMalloc(&memory, kMiB));
  ASSERT_CUDA(cudaSuccess, cudaStreamCreate(&stream));
  ASSERT_CUDA(cudaSuccess, cudaEventCreate(&event));
  EXPECT_EQ(leaks().total(), 3U);
  ASSERT_CUDA(cudaSuccess, cudaDeviceReset());
  EXPECT_EQ(leaks().total(), 0U);
  EXPECT_EQ(used_bytes(0), 0U);
  EXPECT_CUDA(cudaErrorInvalidResourceHandle, cudaStreamQuery(stream));
}

TEST_F(Devices, ErrorsHaveTheirNames) {
  EXPECT_STREQ(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress");
  EXPECT_STREQ(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
  volatile int none = 12345;
  EXPECT_STREQ(cudaGetErrorName(static_cast<cudaError_t>(none)), "unrecognized error code");
  decltype(&::cuGetErrorName) name_of = nullptr;
  decltype(&::cuGetErrorString) text_of = nullptr;
  find_driver_function("cuGetErrorName", name_of);
  find_driver_function("cuGetErrorString", text_of);
  const char* text = nullptr;
  EXPECT_CUDA(CUDA_SUCCESS, name_of(CUDA_ERROR_OUT_OF_MEMORY, &text));
  EXPECT_STREQ(text, "CUDA_ERROR_OUT_OF_MEMORY");
  EXPECT_CUDA(CUDA_SUCCESS, text_of(CUDA_ERROR_ILLEGAL_ADDRESS, &text));
  EXPECT_STREQ(text, "an illegal memory access was encountered");
  EXPECT_CUDA(CUDA_ERROR_INVALID_VALUE, name_of(static_cast<CUresult>(none), &text));
}

TEST_F(Devices, TheDriverIsAskedByName) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSuccess;
  EXPECT_CUDA(cudaSuccess, ask_driver("cuNoSuchThing", &function, &result));
  EXPECT_EQ(result, cudaDriverEntryPointSymbolNotFound);
  EXPECT_EQ(function, nullptr);
#if CUDART_VERSION >= 12050
  EXPECT_CUDA(cudaSuccess, ask_driver("cuLibraryLoadData", &function, &result, 11000));
  EXPECT_EQ(result, cudaDriverEntryPointVersionNotSufficent);
  EXPECT_EQ(function, nullptr);
#endif
}

}  // namespace
}  // namespace harvest::fake_cuda
