// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "backend/cuda/copy_engine.hpp"
#include "backend/cuda/copy_kernel_image.hpp"
#include "backend/cuda/memory_map.hpp"
#include "fake_cuda/fake_cuda.hpp"

namespace harvest::cuda {

inline constexpr Route kIn{kHost, 0};
inline constexpr Route kOut{0, kHost};
inline constexpr Route kFromPeer{1, 0};
inline constexpr Route kWithin{0, 0};

inline void expect_ok(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error) << ": " << fake_cuda::last_complaint();
}

inline std::vector<std::byte> pattern(std::size_t bytes, unsigned seed) {
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

}  // namespace harvest::cuda
