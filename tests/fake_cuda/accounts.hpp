// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace harvest::fake_cuda::internal {

struct SharedCounts;

/// How much of each device's memory is in use. With a file they count it together with every other process
/// that has the same file; what a process held is free again when it dies, but for what others imported from
/// it. Not thread-safe: the state's lock guards it.
class Accounts {
 public:
  Accounts() = default;
  Accounts(const Accounts&) = delete;
  Accounts& operator=(const Accounts&) = delete;
  ~Accounts();

  /// An empty path: this process alone. Returns false if the file cannot be used.
  [[nodiscard]] bool open(const std::string& path, std::vector<std::uint64_t> total_bytes);
  void close();

  /// Counts `bytes` more; false where the device has not as much.
  [[nodiscard]] bool take(int device, std::uint64_t bytes);
  void give_back(int device, std::uint64_t bytes);

  /// Memory that others may import: counted once, for as long as one process holds it. False where there is
  /// no place for it.
  [[nodiscard]] bool share(std::uint64_t inode, int device, std::uint64_t bytes);
  [[nodiscard]] bool import(std::uint64_t inode, int device, std::uint64_t bytes);
  void drop(std::uint64_t inode, int device, std::uint64_t bytes);

  /// Takes over a file descriptor of memory that was given back here while others had it: it counts until
  /// they have not.
  void linger(int fd, std::uint64_t inode, int device, std::uint64_t bytes);

  [[nodiscard]] std::uint64_t used(int device);

 private:
  struct Lingering {
    int fd;
    std::uint64_t inode;
    int device;
    std::uint64_t bytes;
  };
  void settle();

  std::vector<std::uint64_t> total_{};
  std::vector<std::uint64_t> used_{};  ///< without a file
  std::vector<Lingering> lingering_{};
  int fd_ = -1;
  SharedCounts* shared_ = nullptr;
};

}  // namespace harvest::fake_cuda::internal
