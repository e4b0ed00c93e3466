// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

/// What every `Backend` must do, as laws that run against any of them and say what was broken instead
/// of failing a test: so they also run against backends that are broken on purpose.
namespace harvest::test {

/// The caller's host memory and what lies in it. Content `seed` is a sequence of bytes that no other
/// seed has; `offset_bytes` says from which of them on.
class HostMemory {
 public:
  HostMemory() = default;
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  virtual ~HostMemory() = default;

  /// Memory that lives as long as this.
  virtual std::byte* allocate(std::uint64_t bytes) = 0;
  virtual void write(std::byte* address, std::uint64_t bytes, std::uint64_t seed) = 0;
  [[nodiscard]] virtual bool holds(const std::byte* address, std::uint64_t bytes, std::uint64_t seed,
                                   std::uint64_t offset_bytes = 0) const = 0;
  [[nodiscard]] virtual bool is_filled(const std::byte* address, std::uint64_t bytes,
                                       std::uint8_t value) const = 0;
};

/// Ordinary memory with real bytes in it.
[[nodiscard]] std::unique_ptr<HostMemory> make_host_memory();

struct Subject {
  std::shared_ptr<void> keeps_alive;  ///< what `backend` needs under it, if anything
  std::unique_ptr<Backend> backend;
  std::unique_ptr<HostMemory> host;
};
using SubjectFactory = std::function<Subject()>;

/// Where a law writes what it found; stops the law at what makes going on pointless.
class Trial;

struct Law {
  const char* name;
  void (*check)(Trial&);
};

/// All laws. Each needs a machine with two GPUs that can reach each other and 64 MiB free on both.
[[nodiscard]] std::span<const Law> backend_laws();

/// Runs one law on a fresh subject. What it found broken, in words; nothing if the law holds.
[[nodiscard]] std::vector<std::string> check(const Law& law, const SubjectFactory& make);

}  // namespace harvest::test
