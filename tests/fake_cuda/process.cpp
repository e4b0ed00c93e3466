// SPDX-License-Identifier: Apache-2.0
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>

#include "fake_cuda/driver_entry.hpp"

/// What process_test.cpp starts: a program on the fake whose machine comes from the environment. Its first
/// argument says what it does. It talks by single bytes on descriptor 3.
namespace {

constexpr int kChannel = 3;
constexpr std::size_t kMiB = std::size_t{1} << 20;

void say(char word) {
  if (write(kChannel, &word, 1) != 1) _exit(90);
}

char hear() {
  char word = 0;
  if (read(kChannel, &word, 1) != 1) _exit(91);
  return word;
}

template <typename Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  if (harvest::fake_cuda::ask_driver(name, &found, &result) != cudaSuccess) _exit(92);
  return reinterpret_cast<Function>(found);
}

/// Tells the number of devices by its status.
int count() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 93;
}

/// Takes memory, waits for a word, and gives it back or dies with it.
int hold(const char* bytes) {
  void* memory = nullptr;
  say(cudaMalloc(&memory, std::strtoull(bytes, nullptr, 10)) == cudaSuccess ? 'y' : 'n');
  const char word = hear();
  if (word == 'd') std::abort();
  (void)cudaFree(memory);
  say('f');
  (void)hear();
  return 0;
}

int receive_descriptor() {
  char word = 0;
  iovec data{&word, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(kChannel, &message, 0) != 1 || CMSG_FIRSTHDR(&message) == nullptr) _exit(94);
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}

/// Imports memory of another process, checks what is in it, writes, and gives it back when told.
int import() {
  const auto import_handle =
      driver_function<decltype(&::cuMemImportFromShareableHandle)>("cuMemImportFromShareableHandle");
  const auto reserve = driver_function<decltype(&::cuMemAddressReserve)>("cuMemAddressReserve");
  const auto map = driver_function<decltype(&::cuMemMap)>("cuMemMap");
  const auto set_access = driver_function<decltype(&::cuMemSetAccess)>("cuMemSetAccess");
  const auto unmap = driver_function<decltype(&::cuMemUnmap)>("cuMemUnmap");
  const auto release = driver_function<decltype(&::cuMemRelease)>("cuMemRelease");
  const auto free_address = driver_function<decltype(&::cuMemAddressFree)>("cuMemAddressFree");
  const int fd = receive_descriptor();
  CUmemGenericAllocationHandle handle = 0;
  CUdeviceptr address = 0;
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  if (import_handle(&handle, reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd)),
                    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != CUDA_SUCCESS ||
      reserve(&address, 2 * kMiB, 0, 0, 0) != CUDA_SUCCESS ||
      map(address, 2 * kMiB, 0, handle, 0) != CUDA_SUCCESS ||
      set_access(address, 2 * kMiB, &access, 1) != CUDA_SUCCESS) {
    return 95;
  }
  close(fd);
  int value = 0;
  void* memory = reinterpret_cast<void*>(address);
  if (cudaMemcpy(&value, memory, sizeof value, cudaMemcpyDefault) != cudaSuccess || value != 41) return 96;
  ++value;
  if (cudaMemcpy(memory, &value, sizeof value, cudaMemcpyDefault) != cudaSuccess) return 97;
  if (cudaDeviceSynchronize() != cudaSuccess) return 98;
  say('i');
  (void)hear();
  if (unmap(address, 2 * kMiB) != CUDA_SUCCESS || release(handle) != CUDA_SUCCESS ||
      free_address(address, 2 * kMiB) != CUDA_SUCCESS) {
    return 99;
  }
  say('g');
  (void)hear();
  return 0;
}

int leak() {
  cudaStream_t stream = nullptr;
  return cudaStreamCreate(&stream) == cudaSuccess ? 0 : 93;
}

/// Reads what a copy wrote, after the event that tells of its end or (wrongly) after a while.
int read_after_copy(bool waits) {
  void* device = nullptr;
  void* host = nullptr;
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  (void)cudaMalloc(&device, 4096);
  (void)cudaMallocHost(&host, 4096);
  (void)cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  (void)cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  (void)cudaMemcpyAsync(host, device, 4096, cudaMemcpyDefault, stream);
  (void)cudaEventRecord(event, stream);
  if (waits)
    (void)cudaEventSynchronize(event);
  else
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const int sum = static_cast<unsigned char*>(host)[7];
  (void)cudaStreamSynchronize(stream);
  (void)cudaEventDestroy(event);
  (void)cudaStreamDestroy(stream);
  (void)cudaFreeHost(host);
  (void)cudaFree(device);
  return sum;
}

/// Copies what a stream of another device writes, with or without the event between the two.
int copy_after_fill(bool waits) {
  void* device = nullptr;
  cudaStream_t streams[2] = {};
  void* host = nullptr;
  cudaEvent_t event = nullptr;
  (void)cudaMallocHost(&host, 4096);
  for (int i = 0; i < 2; ++i) {
    (void)cudaSetDevice(i);
    (void)cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking);
  }
  (void)cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  (void)cudaMalloc(&device, 4096);
  (void)cudaMemsetAsync(device, 1, 4096, streams[1]);
  (void)cudaEventRecord(event, streams[1]);
  if (waits)
    (void)cudaStreamWaitEvent(streams[0], event, 0);
  else
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  (void)cudaMemcpyAsync(host, device, 4096, cudaMemcpyDefault, streams[0]);
  for (cudaStream_t stream : streams) {
    (void)cudaStreamSynchronize(stream);
    (void)cudaStreamDestroy(stream);
  }
  (void)cudaEventDestroy(event);
  (void)cudaFree(device);
  (void)cudaFreeHost(host);
  return 0;
}

}  // namespace

int main(int count_of_arguments, char** arguments) {
  const std::string_view task = count_of_arguments > 1 ? arguments[1] : "";
  if (task == "count") return count();
  if (task == "hold" && count_of_arguments > 2) return hold(arguments[2]);
  if (task == "import") return import();
  if (task == "leak") return leak();
  if (task == "read_after_event") return read_after_copy(true);
  if (task == "read_without_event") return read_after_copy(false);
  if (task == "copy_after_event") return copy_after_fill(true);
  if (task == "copy_without_event") return copy_after_fill(false);
  std::fprintf(stderr, "no task '%s'\n", arguments[1]);
  return 2;
}
