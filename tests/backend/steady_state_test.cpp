// SPDX-License-Identifier: Apache-2.0
// Replaces the global operator new, so it stands in a program of its own.
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "backend/simulation.hpp"

namespace {
std::atomic<std::uint64_t> allocations{0};
}

// Not inlined, so that the compiler does not see malloc and free of one object as a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const auto step = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(step, (size + step - 1) / step * step)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace harvest::test {
namespace {

/// Copies, events and waits that come again and again take their room from pools: a test that counts
/// the allocations of the code above the backend is not disturbed by the backend.
TEST(SteadyState, SubmittingAndWaitingDoNotAllocate) {
  for (const SimulatedBytes bytes : {SimulatedBytes::real, SimulatedBytes::phantom}) {
    const auto backend =
        make_simulated_backend(machine_from_preset("2xh100-nvl").value(), {.bytes = bytes}).value();
    const StreamId streams[] = {backend->create_stream(0).value(), backend->create_stream(1).value()};
    std::byte* peer = backend->map_segment(1, 32 * kMiB, {}).value();
    std::byte* local = backend->map_segment(0, 32 * kMiB, {}).value();
    backend->stamp(peer, 32 * kMiB, 1);
    std::vector<Copy> batch;
    for (std::uint64_t i = 0; i < 16; ++i) batch.push_back({local + i * 100'000, peer + i * 100'000, 65'536});
    const auto round = [&](int i) {
      const StreamId stream = streams[i % 2];
      ASSERT_TRUE(backend->copy(stream, {1, 0}, batch));
      const EventId event = backend->record_event(stream).value();
      ASSERT_TRUE(backend->stream_wait(streams[(i + 1) % 2], event));
      if (i % 4 == 3) {
        ASSERT_EQ(backend->wait_event(event, kNever), EventState::complete);
      }
      backend->release_event(event);
    };
    for (int i = 0; i < 100; ++i) round(i);
    const std::uint64_t before = allocations.load();
    ASSERT_GT(before, 0u) << "the count works";
    for (int i = 0; i < 1000; ++i) round(i);
    EXPECT_EQ(allocations.load() - before, 0u);
  }
}

}  // namespace
}  // namespace harvest::test
