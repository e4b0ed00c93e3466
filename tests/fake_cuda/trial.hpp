// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "fake_cuda/fake_cuda.hpp"

/// What the tests of the fake have in common.
namespace harvest::fake_cuda {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
inline constexpr std::uint64_t kGranularity = 2 * kMiB;

/// A machine of two linked devices for each test, and nothing left of it afterwards.
class FakeCudaTest : public ::testing::Test {
 protected:
  void SetUp() override { reset(machine()); }
  void TearDown() override {
    EXPECT_EQ(to_string(leaks()), "nothing");
    (void)cudaGetLastError();
  }

  [[nodiscard]] static MachineDescription machine(int devices = 2, std::uint64_t bytes_each = 256 * kMiB) {
    return uniform_machine(devices, bytes_each);
  }
};

#define EXPECT_CUDA(expected, call) \
  EXPECT_EQ(static_cast<int>(expected), static_cast<int>(call)) << last_complaint()
#define ASSERT_CUDA(expected, call) \
  ASSERT_EQ(static_cast<int>(expected), static_cast<int>(call)) << last_complaint()

/// A stream that is destroyed at the end.
class TestStream {
 public:
  explicit TestStream(int device = 0, unsigned flags = cudaStreamNonBlocking) {
    EXPECT_CUDA(cudaSuccess, cudaSetDevice(device));
    EXPECT_CUDA(cudaSuccess, cudaStreamCreateWithFlags(&stream_, flags));
  }
  ~TestStream() { (void)cudaStreamDestroy(stream_); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT: stands for it

 private:
  cudaStream_t stream_ = nullptr;
};

class TestEvent {
 public:
  explicit TestEvent(int device = 0, unsigned flags = cudaEventDisableTiming) {
    EXPECT_CUDA(cudaSuccess, cudaSetDevice(device));
    EXPECT_CUDA(cudaSuccess, cudaEventCreateWithFlags(&event_, flags));
  }
  ~TestEvent() { (void)cudaEventDestroy(event_); }
  TestEvent(const TestEvent&) = delete;
  TestEvent& operator=(const TestEvent&) = delete;
  operator cudaEvent_t() const { return event_; }  // NOLINT: stands for it

 private:
  cudaEvent_t event_ = nullptr;
};

/// Holds a stream until it is opened: by a host function that waits, and that the constructor has seen begin.
/// Its state outlives the gate.
class Gate {
 public:
  explicit Gate(cudaStream_t stream) {
    EXPECT_CUDA(cudaSuccess, cudaLaunchHostFunc(stream, &Gate::hold, new std::shared_ptr<State>(state_)));
    state_->has_begun.wait(false);
  }
  ~Gate() { open(); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  void open() {
    state_->is_open = true;
    state_->is_open.notify_all();
  }

 private:
  struct State {
    std::atomic<bool> has_begun{false};
    std::atomic<bool> is_open{false};
  };
  static void hold(void* given) {
    const std::unique_ptr<std::shared_ptr<State>> state(static_cast<std::shared_ptr<State>*>(given));
    (*state)->has_begun = true;
    (*state)->has_begun.notify_all();
    (*state)->is_open.wait(false);
  }

  std::shared_ptr<State> state_ = std::make_shared<State>();
};

/// Memory of a device by cudaMalloc.
class TestMemory {
 public:
  TestMemory(int device, std::uint64_t bytes) : device_(device) {
    EXPECT_CUDA(cudaSuccess, cudaSetDevice(device));
    EXPECT_CUDA(cudaSuccess, cudaMalloc(&address_, bytes));
  }
  ~TestMemory() { free(); }
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;
  [[nodiscard]] std::byte* get() const { return static_cast<std::byte*>(address_); }
  void free() {
    if (address_ == nullptr) return;
    (void)cudaSetDevice(device_);
    (void)cudaFree(address_);
    address_ = nullptr;
  }

 private:
  int device_;
  void* address_ = nullptr;
};

/// Pinned memory of the host.
class PinnedMemory {
 public:
  explicit PinnedMemory(std::uint64_t bytes) : bytes_(bytes) {
    EXPECT_CUDA(cudaSuccess, cudaMallocHost(&address_, bytes));
  }
  ~PinnedMemory() { (void)cudaFreeHost(address_); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  [[nodiscard]] std::byte* get() const { return static_cast<std::byte*>(address_); }
  void fill(std::uint8_t seed) {
    for (std::uint64_t i = 0; i < bytes_; ++i) get()[i] = pattern(seed, i);
  }
  [[nodiscard]] bool holds(std::uint8_t seed) const {
    for (std::uint64_t i = 0; i < bytes_; ++i) {
      if (get()[i] != pattern(seed, i)) return false;
    }
    return true;
  }
  [[nodiscard]] static std::byte pattern(std::uint8_t seed, std::uint64_t at) {
    return static_cast<std::byte>((at * 131 + at / 251 + seed) & 0xff);
  }

 private:
  std::uint64_t bytes_;
  void* address_ = nullptr;
};

}  // namespace harvest::fake_cuda
