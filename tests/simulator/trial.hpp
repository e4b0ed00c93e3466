// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "simulator/life.hpp"

/// Lives in processes of their own: a life that ends badly ends its process, which is how it tells.
namespace harvest::simulator {

struct Outcome {
  Case life;
  bool passed = false;
  LifeResult result;         ///< if it passed
  std::string message;       ///< if not: what does not hold, the invariant first
  std::uint32_t number = 0;  ///< if not: of the operation before which, or in which, it was seen
  Operation operation = Operation::calm;
  [[nodiscard]] std::string invariant() const { return message.substr(0, message.find(':')); }
};

struct TrialOptions {
  std::uint32_t jobs = 1;
  bool repeat = true;        ///< every life is lived twice and compared (I11)
  unsigned patience_s = 60;  ///< no operation of a life takes nearly as long: it hangs
};

/// Lives all cases that `next` gives until it has no more, `jobs` at a time, and tells of each outcome in the
/// order in which they end; `tell` answers whether to go on.
void run_trials(const TrialOptions& options, const std::function<bool(Case& life)>& next,
                const std::function<bool(const Outcome& outcome)>& tell);

/// One case.
[[nodiscard]] Outcome try_case(const Case& life, const TrialOptions& options);

}  // namespace harvest::simulator
