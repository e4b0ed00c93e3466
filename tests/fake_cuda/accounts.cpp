// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/accounts.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

namespace harvest::fake_cuda::internal {
namespace {

constexpr std::size_t kMaxDevices = 32;
constexpr std::size_t kMaxProcesses = 64;
constexpr std::size_t kMaxObjects = 4096;
constexpr std::size_t kMaxHolders = 8;

/// A process and when it started: ids come round again.
struct Process {
  std::int64_t pid;
  std::uint64_t started;
  friend bool operator==(const Process&, const Process&) = default;
};

/// The start time of a process that runs; 0 if none does. A zombie has no memory any more.
std::uint64_t start_time(std::int64_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(file, text)) return 0;
  const auto name_end = text.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 2));
  std::string field;
  for (int number = 3; fields >> field; ++number) {
    if (number == 3 && (field == "Z" || field == "X")) return 0;
    if (number == 22) return std::stoull(field);
  }
  return 0;
}

Process self() {
  const auto pid = static_cast<std::int64_t>(getpid());
  return {pid, start_time(pid)};
}

bool lives(const Process& process) {
  return process.pid != 0 && start_time(process.pid) == process.started;
}

struct ProcessRow {
  Process process;
  std::uint64_t bytes[kMaxDevices];
};

struct ObjectRow {
  std::uint64_t inode;  // 0: free
  std::int32_t device;
  std::uint32_t unused;
  std::uint64_t bytes;
  Process holders[kMaxHolders];
};

/// Held while the file is looked at; the kernel lets go of it when a process dies.
class FileLock {
 public:
  explicit FileLock(int fd) : fd_(fd) {
    while (flock(fd_, LOCK_EX) != 0) {
    }
  }
  ~FileLock() { flock(fd_, LOCK_UN); }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_;
};

/// True where this descriptor's is the only open file description of its file: a lease for writing is given
/// to the only one.
bool is_held_by_others(int fd) {
  if (fcntl(fd, F_SETLEASE, F_WRLCK) != 0) return true;
  fcntl(fd, F_SETLEASE, F_UNLCK);
  return false;
}

}  // namespace

struct SharedCounts {
  ProcessRow processes[kMaxProcesses];
  ObjectRow objects[kMaxObjects];

  void forget_the_dead() {
    for (auto& row : processes) {
      if (row.process.pid != 0 && !lives(row.process)) row = {};
    }
    for (auto& row : objects) {
      if (row.inode == 0) continue;
      bool held = false;
      for (auto& holder : row.holders) {
        if (holder.pid != 0 && !lives(holder)) holder = {};
        held = held || holder.pid != 0;
      }
      if (!held) row = {};
    }
  }

  [[nodiscard]] std::uint64_t used(int device) const {
    std::uint64_t bytes = 0;
    for (const auto& row : processes) bytes += row.bytes[device];
    for (const auto& row : objects) {
      if (row.inode != 0 && row.device == device) bytes += row.bytes;
    }
    return bytes;
  }

  /// This process's row; null where there are too many processes.
  ProcessRow* mine() {
    const auto me = self();
    for (auto& row : processes) {
      if (row.process == me) return &row;
    }
    for (auto& row : processes) {
      if (row.process.pid != 0) continue;
      row.process = me;
      return &row;
    }
    return nullptr;
  }

  ObjectRow* object(std::uint64_t inode) {
    const auto found = std::find_if(std::begin(objects), std::end(objects),
                                    [&](const auto& row) { return row.inode == inode; });
    return found == std::end(objects) ? nullptr : &*found;
  }

  static void hold(ObjectRow& row) {
    const auto me = self();
    if (std::find(std::begin(row.holders), std::end(row.holders), me) != std::end(row.holders)) return;
    const auto place = std::find_if(std::begin(row.holders), std::end(row.holders),
                                    [](const Process& holder) { return holder.pid == 0; });
    if (place != std::end(row.holders)) *place = me;
  }
};

Accounts::~Accounts() {
  close();
}

bool Accounts::open(const std::string& path, std::vector<std::uint64_t> total_bytes) {
  close();
  total_ = std::move(total_bytes);
  used_.assign(total_.size(), 0);
  if (path.empty()) return true;
  if (total_.size() > kMaxDevices) return false;
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd_ < 0) return false;
  const FileLock lock(fd_);
  if (ftruncate(fd_, sizeof(SharedCounts)) != 0) return false;
  void* mapped = mmap(nullptr, sizeof(SharedCounts), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (mapped == MAP_FAILED) return false;
  shared_ = static_cast<SharedCounts*>(mapped);
  return true;
}

void Accounts::close() {
  for (const auto& memory : lingering_) ::close(memory.fd);
  lingering_.clear();
  if (shared_ != nullptr) {
    {
      const FileLock lock(fd_);
      const auto me = self();
      for (auto& row : shared_->processes) {
        if (row.process == me) row = {};
      }
      for (auto& row : shared_->objects) {
        for (auto& holder : row.holders) {
          if (holder == me) holder = {};
        }
      }
    }
    munmap(shared_, sizeof(SharedCounts));
    shared_ = nullptr;
  }
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

bool Accounts::take(int device, std::uint64_t bytes) {
  const auto at = static_cast<std::size_t>(device);
  settle();
  if (shared_ == nullptr) {
    if (bytes > total_[at] || used_[at] > total_[at] - bytes) return false;
    used_[at] += bytes;
    return true;
  }
  const FileLock lock(fd_);
  shared_->forget_the_dead();
  const auto used = shared_->used(device);
  if (bytes > total_[at] || used > total_[at] - bytes) return false;
  auto* row = shared_->mine();
  if (row == nullptr) return false;
  row->bytes[at] += bytes;
  return true;
}

void Accounts::give_back(int device, std::uint64_t bytes) {
  const auto at = static_cast<std::size_t>(device);
  if (shared_ == nullptr) {
    used_[at] -= bytes;
    return;
  }
  const FileLock lock(fd_);
  if (auto* row = shared_->mine(); row != nullptr) row->bytes[at] -= bytes;
}

bool Accounts::share(std::uint64_t inode, int device, std::uint64_t bytes) {
  if (shared_ == nullptr) return true;
  const FileLock lock(fd_);
  auto* row = shared_->object(0);
  if (row == nullptr) return false;
  *row = {inode, device, 0, bytes, {}};
  SharedCounts::hold(*row);
  if (auto* mine = shared_->mine(); mine != nullptr) mine->bytes[device] -= bytes;
  return true;
}

bool Accounts::import(std::uint64_t inode, int device, std::uint64_t bytes) {
  if (shared_ == nullptr) {
    // Nobody else counts it here: what this process can see of the device is what it uses itself.
    used_[static_cast<std::size_t>(device)] += bytes;
    return true;
  }
  const FileLock lock(fd_);
  auto* row = shared_->object(inode);
  if (row == nullptr) {  // its owner died before anybody held it
    row = shared_->object(0);
    if (row == nullptr) return false;
    *row = {inode, device, 0, bytes, {}};
  }
  SharedCounts::hold(*row);
  return true;
}

void Accounts::drop(std::uint64_t inode, int device, std::uint64_t bytes) {
  if (shared_ == nullptr) {
    give_back(device, bytes);
    return;
  }
  const FileLock lock(fd_);
  auto* row = shared_->object(inode);
  if (row == nullptr) return;
  const auto me = self();
  bool held = false;
  for (auto& holder : row->holders) {
    if (holder == me) holder = {};
    held = held || holder.pid != 0;
  }
  if (!held) *row = {};
}

void Accounts::linger(int fd, std::uint64_t inode, int device, std::uint64_t bytes) {
  lingering_.push_back({fd, inode, device, bytes});
  settle();
}

void Accounts::settle() {
  auto kept = lingering_.begin();
  for (auto& memory : lingering_) {
    if (is_held_by_others(memory.fd)) {
      *kept++ = memory;
      continue;
    }
    ::close(memory.fd);
    drop(memory.inode, memory.device, memory.bytes);
  }
  lingering_.erase(kept, lingering_.end());
}

std::uint64_t Accounts::used(int device) {
  settle();
  if (shared_ == nullptr) return used_[static_cast<std::size_t>(device)];
  const FileLock lock(fd_);
  shared_->forget_the_dead();
  return shared_->used(device);
}

}  // namespace harvest::fake_cuda::internal
