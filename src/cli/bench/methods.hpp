// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <memory>
#include <string>
#include <vector>

#include "cli/bench/machine.hpp"

/// The ways in which one machine's bytes can be copied, each as a backend that takes no other.
namespace harvest::cli::bench {

struct Method {
  std::string name;  ///< "copy_engine", "kernel"
  Backend* backend = nullptr;
};

class Methods {
 public:
  /// A simulated machine knows one way. Errors: those of the backends.
  [[nodiscard]] static Result<Methods> open(const MeasuredMachine& machine, const MachineChoice& choice);
  [[nodiscard]] const std::vector<Method>& all() const { return all_; }

 private:
  std::vector<std::unique_ptr<MeasuredMachine>> machines_;
  std::vector<Method> all_;
};

}  // namespace harvest::cli::bench
