// SPDX-License-Identifier: Apache-2.0
#include "core/allocation_count.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

/// In a file of their own: where a compiler inlines one of `new` and `delete` and not the other, it takes
/// them for a mismatched pair.
namespace {

thread_local bool counting = false;
thread_local std::uint64_t allocations = 0;

void* count_and_allocate(std::size_t bytes, std::size_t alignment) {
  if (counting) ++allocations;
  void* memory = alignment <= alignof(std::max_align_t)
                     ? std::malloc(std::max<std::size_t>(bytes, 1))
                     : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return count_and_allocate(bytes, 1);
}
void* operator new[](std::size_t bytes) {
  return count_and_allocate(bytes, 1);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return count_and_allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return count_and_allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace harvest::testing {

AllocationCount::AllocationCount() {
  allocations = 0;
  counting = true;
}
std::uint64_t AllocationCount::stop() {
  counting = false;
  return allocations;
}

NotCounting::NotCounting() : was_(counting) {
  counting = false;
}
NotCounting::~NotCounting() {
  counting = was_;
}

}  // namespace harvest::testing
