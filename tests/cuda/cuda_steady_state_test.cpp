// SPDX-License-Identifier: Apache-2.0
// Replaces the global operator new, so it stands in a program of its own.
#include <atomic>
#include <cstdlib>
#include <new>

#include "cuda/fake_machine.hpp"

/// The library is linked statically into this program, the fake CUDA is not: what it allocates on the same
/// thread is not ours, and is told apart by where `new` was called from.
extern "C" char __executable_start, etext;  // NOLINT: the linker's names

namespace {

thread_local std::uint64_t allocations = 0;

bool is_of_this_program(const void* caller) {
  return caller >= static_cast<const void*>(&__executable_start) && caller < static_cast<const void*>(&etext);
}

void* allocate(std::size_t size, const void* caller) {
  if (is_of_this_program(caller)) ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

// Not inlined, so that the compiler does not see malloc and free of one object as a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  return allocate(size, __builtin_return_address(0));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace harvest::test {
namespace {

/// What the read path asks of the backend allocates nothing once its pools have grown (I9).
TEST(CudaSteadyState, SubmittingAndWaitingDoNotAllocate) {
  const FakeMachine machine(machine_of(2));
  const auto backend = make_backend();
  const StreamId streams[] = {backend->create_stream(0).value(), backend->create_stream(1).value()};
  const DeviceId both[] = {0, 1};
  std::byte* peer = backend->map_segment(1, 32 * kMiB, both).value();
  std::byte* local = backend->map_segment(0, 32 * kMiB, both).value();
  std::vector<Copy> small, large;
  for (std::uint64_t i = 0; i < 64; ++i) small.push_back({local + i * 100'000, peer + i * 100'000, 8'192});
  for (std::uint64_t i = 0; i < 4; ++i)
    large.push_back({local + i * 5 * kMiB, peer + i * 5 * kMiB, 4 * kMiB});
  const auto round = [&](int i) {
    const StreamId stream = streams[i % 2];
    ASSERT_TRUE(backend->copy(stream, {1, 0}, i % 3 == 0 ? large : small));
    const EventId event = backend->record_event(stream).value();
    ASSERT_TRUE(backend->stream_wait(streams[(i + 1) % 2], event));
    static_cast<void>(backend->query_event(event));
    static_cast<void>(backend->is_capturing(stream));
    static_cast<void>(backend->stream_device(stream));
    ASSERT_EQ(backend->wait_event(event, kNever), EventState::complete);
    backend->release_event(event);
  };
  for (int i = 0; i < 50; ++i) round(i);
  const std::uint64_t before = allocations;
  ASSERT_GT(before, 0U) << "the count works";
  for (int i = 0; i < 200; ++i) round(i);
  EXPECT_EQ(allocations - before, 0U);
}

}  // namespace
}  // namespace harvest::test
