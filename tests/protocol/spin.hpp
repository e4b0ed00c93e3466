// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

/// Runs SPIN on the model of this folder.
namespace harvest::testing {

/// What a search says of itself.
struct Found {
  std::string output;             ///< all of it
  bool ended = false;             ///< it came to its end, at its bounds or at the first error
  bool exhaustive = false;        ///< no state was left out
  int errors = -1;                ///< -1 if it does not say
  std::string broken;             ///< the promise that the error breaks, "liveness", or what else it says
  std::set<std::string> reached;  ///< the changes of state that happened somewhere, as "copy none -> live"

  std::string states;  ///< the figures, as it writes them
  std::string depth;
  std::string memory_mb;
  std::string seconds;
};

enum class Promise {
  safety,   ///< I1 to I5 in every state, and every end is a good one
  liveness  ///< under weak fairness every reclaim is finished
};

/// Searches the model with `definitions` (as "-DLOSSY -DPUTS=2") until the first error.
Found search(const std::string& definitions, Promise promise);

/// Why nothing can be searched here, if so.
std::optional<std::string> no_spin();

/// The text of the model.
std::string model();

}  // namespace harvest::testing
