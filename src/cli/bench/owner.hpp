// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <cstdint>
#include <memory>
#include <string>

#include "cli/bench/machine.hpp"
#include "cli/command.hpp"

namespace harvest::cli::bench {

/// The one whose memory is used, as somebody else than us: another process on a real machine, a tenant on a
/// simulated one. It takes what is free, and then what was given back.
class Owner {
 public:
  virtual ~Owner() = default;
  /// "another process", "a simulated tenant"
  [[nodiscard]] virtual std::string who() const = 0;
  /// Takes all that is free on the device but `leave_bytes`.
  [[nodiscard]] virtual Status take_all_but(std::uint64_t leave_bytes) = 0;
  /// Allocates `bytes` more and answers how long that took. Errors: out_of_memory.
  [[nodiscard]] virtual Result<TimeNs> allocate(std::uint64_t bytes) = 0;
  /// Gives everything back.
  [[nodiscard]] virtual Status give_back() = 0;
};

/// The owner of `device`. Errors: why there is none.
[[nodiscard]] Result<std::unique_ptr<Owner>> make_owner(const MeasuredMachine& machine, DeviceId device);

/// The other process's side: obeys the lines on its standard input until that ends.
[[nodiscard]] Exit run_owner(DeviceId gpu);
/// The option of `harvest bench reclaim` that makes it that process; not for people.
inline constexpr const char* kOwnerOption = "--owner-process";

}  // namespace harvest::cli::bench
