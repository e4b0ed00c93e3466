// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/calibration.hpp"
#include "cli/bench/machine.hpp"

/// The ways in which one machine's bytes can be copied, each as a machine that takes no other where it can.
namespace harvest::cli::bench {

struct Method {
  std::string name;  ///< "copy_engine", "kernel"
  MeasuredMachine machine;
};

struct MissingMethod {
  std::string name;
  std::string reason;
};

/// The real machine with all copies by `method`, as far as that can carry them; `blocks` of a kernel.
/// Errors: not_supported (this machine has no such way: the message says why), those of the backend.
[[nodiscard]] Result<MeasuredMachine> open_by_method(const MachineChoice& choice, cuda::CopyMethod method,
                                                     std::uint32_t blocks = 1);

struct Methods {
  std::vector<Method> found;
  std::vector<MissingMethod> missing;
  /// What `link` compares. A simulated machine has copy engines alone. Errors: those of the backend.
  [[nodiscard]] static Result<Methods> open(const MachineChoice& choice);
};

}  // namespace harvest::cli::bench
