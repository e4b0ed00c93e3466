// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/host_memory.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "backend/cuda/error.hpp"

namespace harvest::cuda {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
/// One thread touches about 2 GiB/s: more than a few do not help, and below this one is enough.
constexpr std::uint64_t kBytesPerThreadMin = 64U << 20U;
constexpr std::uint64_t kThreadsMax = 8;

std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t number = 0;
  if (file >> number) return number;
  return std::nullopt;  // there is no such file, or it says "max"
}

/// Asks the kernel for memory of one node if it has some. Nothing is lost where it does not answer: pages
/// come from anywhere then. By number, so that libnuma and its header are not needed.
void prefer_node(void* address, std::uint64_t bytes, std::int32_t node) {
  constexpr int kPreferred = 1;  // MPOL_PREFERRED of <linux/mempolicy.h>
  constexpr std::size_t kBits = 8 * sizeof(unsigned long);
  std::array<unsigned long, 16> nodes{};
  if (node < 0 || static_cast<std::size_t>(node) >= nodes.size() * kBits) return;
  const auto bit = static_cast<std::size_t>(node);
  nodes[bit / kBits] |= 1UL << (bit % kBits);
  static_cast<void>(::syscall(SYS_mbind, address, bytes, kPreferred, nodes.data(), nodes.size() * kBits, 0U));
}

void touch(std::byte* begin, std::uint64_t bytes) {
  for (std::uint64_t at = 0; at < bytes; at += kPageBytes) *static_cast<volatile std::byte*>(begin + at) = {};
}

/// Pages that are there already are registered three to five times faster than by the driver's own touching
/// (docs/cuda.md, rule 18).
void touch_in_parallel(std::byte* begin, std::uint64_t bytes) {
  const std::uint64_t threads = std::clamp<std::uint64_t>(
      bytes / kBytesPerThreadMin, 1,
      std::clamp<std::uint64_t>(std::thread::hardware_concurrency(), 1, kThreadsMax));
  const std::uint64_t part = (bytes / threads + kPageBytes - 1) / kPageBytes * kPageBytes;
  std::vector<std::thread> helpers;
  std::uint64_t at = 0;
  for (; at + part < bytes && helpers.size() + 1 < threads; at += part) {
    try {
      helpers.emplace_back(touch, begin + at, part);
    } catch (const std::system_error&) {
      break;  // no more threads: this one does the rest
    }
  }
  touch(begin + at, bytes - at);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

Result<HostCounts> count_host_memory(const HostFiles& files) {
  HostCounts counts;
  std::ifstream file(files.memory_info);
  std::string name, unit;
  std::uint64_t kib = 0;
  while (file >> name >> kib && std::getline(file, unit)) {
    if (name == "MemTotal:") counts.total_bytes = kib << 10U;
    if (name == "MemAvailable:") counts.available_bytes = kib << 10U;
  }
  if (counts.total_bytes == 0 || counts.available_bytes == 0)
    return fail(ErrorCode::unavailable,
                fmt::format("{} does not say MemTotal and MemAvailable", files.memory_info));
  if (const auto limit = read_number(files.group_limit)) {
    const std::uint64_t used = std::min(read_number(files.group_used).value_or(0), *limit);
    counts.total_bytes = std::min(counts.total_bytes, *limit);
    counts.available_bytes = std::min(counts.available_bytes, *limit - used);
  }
  return counts;
}

HostMemory::HostMemory(MemoryMap& map, std::uint64_t accessible_by, std::int32_t numa_node, HostFiles files,
                       std::uint64_t piece_bytes_max)
    : map_(map),
      accessible_by_(accessible_by),
      numa_node_(numa_node),
      files_(std::move(files)),
      piece_bytes_max_(piece_bytes_max),
      at_start_(count_host_memory(files_).value_or(HostCounts{})) {}

HostMemory::~HostMemory() {
  const MutexLock registering_lock(registering_mutex_);
  const MutexLock lock(mutex_);
  for (const auto& [address, bytes] : registered_) static_cast<void>(unpin(address, bytes));
  for (const auto& [address, bytes] : segments_) {
    static_cast<void>(unpin(address, bytes));
    ::munmap(address, bytes + kPageBytes);
  }
}

void HostMemory::abandon() {
  const MutexLock registering_lock(registering_mutex_);
  const MutexLock lock(mutex_);
  registered_.clear();
  segments_.clear();
}

MemoryInfo HostMemory::query() const {
  const MutexLock lock(mutex_);
  return {at_start_.available_bytes - mapped_bytes_, at_start_.total_bytes, 0};
}

Status HostMemory::take(std::uint64_t bytes) {
  const auto now = count_host_memory(files_);
  const MutexLock lock(mutex_);
  const std::uint64_t free = at_start_.available_bytes - mapped_bytes_;
  const std::uint64_t room = std::min(free, now ? now->available_bytes : 0);
  if (bytes > room)
    return fail(ErrorCode::out_of_memory,
                fmt::format("a segment of {} bytes of host memory, where {} are available", bytes, room));
  mapped_bytes_ += bytes;
  return {};
}

void HostMemory::give_back(std::uint64_t bytes) {
  const MutexLock lock(mutex_);
  mapped_bytes_ -= bytes;
}

Result<std::byte*> HostMemory::map(std::uint64_t bytes) {
  if (const Status status = take(bytes); !status) return tl::unexpected(status.error());
  // With a page behind it that nobody may touch: an overrun faults, and runs that touch lie in one segment.
  void* memory =
      ::mmap(nullptr, bytes + kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED ||
      ::mprotect(static_cast<std::byte*>(memory) + bytes, kPageBytes, PROT_NONE) != 0) {
    const int why = errno;
    if (memory != MAP_FAILED) ::munmap(memory, bytes + kPageBytes);
    give_back(bytes);
    return fail(ErrorCode::out_of_memory,
                fmt::format("mmap of {} bytes of host memory: {}", bytes, std::strerror(why)));
  }
  auto* address = static_cast<std::byte*>(memory);
  static_cast<void>(::madvise(memory, bytes, MADV_HUGEPAGE));  // fewer pages to pin; a wish
  prefer_node(memory, bytes, numa_node_);
  touch_in_parallel(address, bytes);
  if (const Status status = pin(address, bytes); !status) {
    ::munmap(memory, bytes + kPageBytes);
    give_back(bytes);
    return fail(ErrorCode::out_of_memory, status.error().message);
  }
  const MutexLock lock(mutex_);
  segments_.emplace(address, bytes);
  return address;
}

Status HostMemory::unmap(std::byte* address) {
  std::uint64_t bytes = 0;
  {
    const MutexLock lock(mutex_);
    const auto found = segments_.find(address);
    if (found == segments_.end())
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{} is not the address of a segment", fmt::ptr(address)));
    bytes = found->second;
    segments_.erase(found);
  }
  const Status status = unpin(address, bytes);
  ::munmap(address, bytes + kPageBytes);
  give_back(bytes);
  return status;
}

Status HostMemory::register_range(std::byte* address, std::uint64_t bytes) {
  if (address == nullptr || bytes == 0)
    return fail(ErrorCode::invalid_argument,
                fmt::format("host memory at {} of {} bytes", fmt::ptr(address), bytes));
  if (UINTPTR_MAX - reinterpret_cast<std::uintptr_t>(address) < bytes)
    return fail(ErrorCode::invalid_argument,
                fmt::format("host memory at {} of {} bytes runs past the end of all addresses",
                            fmt::ptr(address), bytes));
  const MutexLock lock(registering_mutex_);
  if (map_.overlaps(address, bytes))
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("host memory at {} of {} bytes overlaps what is pinned", fmt::ptr(address), bytes));
  if (const Status status = pin(address, bytes); !status) return status;
  registered_.emplace(address, bytes);
  return {};
}

Status HostMemory::unregister_range(std::byte* address) {
  const MutexLock lock(registering_mutex_);
  const auto found = registered_.find(address);
  if (found == registered_.end())
    return fail(ErrorCode::invalid_argument, fmt::format("{} is not registered", fmt::ptr(address)));
  const std::uint64_t bytes = found->second;
  registered_.erase(found);
  return unpin(address, bytes);
}

/// Pieces end at pages, since no two may share one.
std::uint64_t HostMemory::piece_end(std::uint64_t address, std::uint64_t end) const {
  return std::min(address / kPageBytes * kPageBytes + piece_bytes_max_, end);
}

/// All of it or nothing.
Status HostMemory::pin(std::byte* address, std::uint64_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  for (std::uint64_t at = begin; at < begin + bytes;) {
    const std::uint64_t end = piece_end(at, begin + bytes);
    std::byte* piece = address + (at - begin);
    const cudaError_t error =
        cudaHostRegister(piece, end - at, cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (error != cudaSuccess) {
      const Status status = check(
          error, fmt::format("cudaHostRegister of {} bytes, after {} of {}", end - at, at - begin, bytes));
      static_cast<void>(unpin(address, at - begin));
      return status;
    }
    map_.add({piece, end - at, kHost, accessible_by_});
    at = end;
  }
  return {};
}

/// Every piece, whatever the ones before it answered; the first error.
Status HostMemory::unpin(std::byte* address, std::uint64_t bytes) {
  Status first;
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  for (std::uint64_t at = begin; at < begin + bytes;) {
    const std::uint64_t end = piece_end(at, begin + bytes);
    std::byte* piece = address + (at - begin);
    map_.remove(piece);
    const Status status =
        check(cudaHostUnregister(piece), fmt::format("cudaHostUnregister of {} bytes", end - at));
    if (first && !status) first = status;
    at = end;
  }
  return first;
}

}  // namespace harvest::cuda
