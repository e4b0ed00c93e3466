// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <string_view>

#include "base/assert.hpp"

namespace harvest::fuzz {

/// A file without a disk under it, for readers that take a path.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("fuzz", 0)) {
    HARVEST_ASSERT(descriptor_ >= 0, "no file in memory");
    path_ = fmt::format("/proc/self/fd/{}", descriptor_);
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  void fill(std::string_view content) const {
    const bool emptied = ::ftruncate(descriptor_, 0) == 0;
    const auto written = ::pwrite(descriptor_, content.data(), content.size(), 0);
    HARVEST_ASSERT(emptied && written == static_cast<ssize_t>(content.size()),
                   "a file in memory is not filled");
  }

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  int descriptor_;
  std::string path_;
};

}  // namespace harvest::fuzz
