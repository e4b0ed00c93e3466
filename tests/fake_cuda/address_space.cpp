// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/address_space.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <string_view>

#include "fake_cuda/accounts.hpp"

namespace harvest::fake_cuda::internal {
namespace {

constexpr std::uint64_t kChunkBytes = std::uint64_t{16} << 30;
constexpr std::uint64_t kReuseBeyondBytes = std::uint64_t{1} << 40;

/// How a process that imports memory learns whose it is.
constexpr std::string_view kNamePrefix = "harvest-fake-cuda-gpu-";

std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::string descriptor_path(int fd) {
  return "/proc/self/fd/" + std::to_string(fd);
}

/// An open file description of its own, so that a lease can tell ours from others'.
int open_again(int fd) {
  return open(descriptor_path(fd).c_str(), O_RDWR | O_CLOEXEC);
}

/// The device that the memory behind `fd` is of; -1 if it is none of ours.
int device_of(int fd) {
  std::string target(PATH_MAX, '\0');
  const auto length = readlink(descriptor_path(fd).c_str(), target.data(), target.size());
  if (length <= 0) return -1;
  target.resize(static_cast<std::size_t>(length));
  const auto at = target.find(kNamePrefix);
  if (at == std::string::npos) return -1;
  return std::stoi(target.substr(at + kNamePrefix.size()));
}

std::byte* map_bytes(int fd, std::uint64_t bytes) {
  const int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
  return mapped == MAP_FAILED ? nullptr : static_cast<std::byte*>(mapped);
}

}  // namespace

Physical::~Physical() {
  if (bytes_at != nullptr) munmap(bytes_at, bytes);
  if (imported) {
    accounts->drop(inode, device, bytes);
  } else if (exported) {
    accounts->linger(fd, inode, device, bytes);  // which closes it
    return;
  } else {
    accounts->give_back(device, bytes);
  }
  if (fd >= 0) close(fd);
}

Lookup AddressSpace::find(std::uint64_t address, std::uint64_t bytes) const {
  auto next = ranges.upper_bound(address);
  if (next != ranges.begin()) {
    const auto& range = std::prev(next)->second;
    if (address < range.end()) {
      return {bytes <= range.end() - address ? Found::range : Found::spans, &range};
    }
  }
  if (next != ranges.end() && next->first - address < bytes) return {Found::spans, &next->second};
  const bool is_device_address = std::any_of(chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) {
    return address - chunk.begin < chunk.bytes;
  });
  return {is_device_address ? Found::stale : Found::pageable, nullptr};
}

bool AddressSpace::overlaps(std::uint64_t begin, std::uint64_t bytes) const {
  const auto found = find(begin, bytes).found;
  return found == Found::range || found == Found::spans;
}

Range& AddressSpace::add(Range range) {
  range.id = next_id++;
  const auto begin = range.begin;
  return ranges.insert_or_assign(begin, std::move(range)).first->second;
}

std::uint64_t AddressSpace::reserve(std::uint64_t bytes, std::uint64_t alignment) {
  if (given_back_bytes_ > kReuseBeyondBytes) {
    const auto found = given_back_.lower_bound(bytes);
    if (found != given_back_.end() && found->first == bytes && found->second % alignment == 0) {
      const auto begin = found->second;
      given_back_bytes_ -= bytes;
      given_back_.erase(found);
      return begin;
    }
  }
  if (chunks_.empty() || round_up(chunks_.back().begin + chunks_.back().used, alignment) + bytes >
                             chunks_.back().begin + chunks_.back().bytes) {
    const auto size = std::max(kChunkBytes, bytes + alignment);
    // The host can read and write none of it: a device's memory is not for the host.
    void* mapped = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return 0;
    chunks_.push_back({reinterpret_cast<std::uintptr_t>(mapped), size, 0});
  }
  auto& chunk = chunks_.back();
  const auto begin = round_up(chunk.begin + chunk.used, alignment);
  chunk.used = begin + bytes - chunk.begin;
  return begin;
}

void AddressSpace::give_back(std::uint64_t begin, std::uint64_t bytes) {
  given_back_.emplace(bytes, begin);
  given_back_bytes_ += bytes;
}

bool AddressSpace::is_reserved(std::uint64_t begin, std::uint64_t bytes) const {
  auto next = reservations.upper_bound(begin);
  if (next == reservations.begin()) return false;
  const auto& [first, size] = *std::prev(next);
  return begin - first < size && bytes <= size - (begin - first);
}

void AddressSpace::clear() {
  for (const auto& [begin, range] : ranges) {
    if (range.kind == RangeKind::device) give_back(begin, range.bytes);
  }
  for (const auto& [begin, bytes] : reservations) give_back(begin, bytes);
  ranges.clear();
  reservations.clear();
  handles.clear();
  shareable.clear();
}

std::shared_ptr<Physical> make_physical(Accounts& accounts, int device, std::uint64_t bytes) {
  if (!accounts.take(device, bytes)) return nullptr;
  auto physical = std::make_shared<Physical>();
  physical->device = device;
  physical->bytes = bytes;
  physical->accounts = &accounts;
  physical->bytes_at = map_bytes(-1, bytes);
  return physical->bytes_at == nullptr ? nullptr : physical;
}

std::shared_ptr<Physical> make_shareable(AddressSpace& space, Accounts& accounts, int device,
                                         std::uint64_t bytes) {
  const auto name = std::string(kNamePrefix) + std::to_string(device);
  const int first = memfd_create(name.c_str(), MFD_CLOEXEC);
  if (first < 0) return nullptr;
  const int fd = open_again(first);
  close(first);
  struct stat status {};
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0 || fstat(fd, &status) != 0) {
    if (fd >= 0) close(fd);
    return nullptr;
  }
  if (!accounts.take(device, bytes)) {
    close(fd);
    return nullptr;
  }
  auto physical = std::make_shared<Physical>();
  physical->device = device;
  physical->bytes = bytes;
  physical->fd = fd;
  physical->inode = status.st_ino;
  physical->accounts = &accounts;
  physical->bytes_at = map_bytes(fd, bytes);
  if (physical->bytes_at == nullptr) return nullptr;
  space.shareable[physical->inode] = physical;
  return physical;
}

std::shared_ptr<Physical> import_physical(AddressSpace& space, Accounts& accounts, int fd) {
  struct stat status {};
  if (fd < 0 || fstat(fd, &status) != 0) return nullptr;
  const int device = device_of(fd);
  if (device < 0) return nullptr;
  if (const auto known = space.shareable.find(status.st_ino); known != space.shareable.end()) {
    if (auto physical = known->second.lock()) return physical;
  }
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  const int own = open_again(fd);
  if (own < 0 || !accounts.import(status.st_ino, device, bytes)) {
    if (own >= 0) close(own);
    return nullptr;
  }
  auto physical = std::make_shared<Physical>();
  physical->device = device;
  physical->bytes = bytes;
  physical->fd = own;
  physical->imported = true;
  physical->inode = status.st_ino;
  physical->accounts = &accounts;
  physical->bytes_at = map_bytes(own, bytes);
  if (physical->bytes_at == nullptr) return nullptr;
  space.shareable[physical->inode] = physical;
  return physical;
}

int export_physical(Physical& physical) {
  const int fd = open_again(physical.fd);
  if (fd < 0 || physical.exported || physical.imported) return fd;
  if (!physical.accounts->share(physical.inode, physical.device, physical.bytes)) {
    close(fd);
    return -1;
  }
  physical.exported = true;
  return fd;
}

}  // namespace harvest::fake_cuda::internal
