// SPDX-License-Identifier: Apache-2.0
#include "simulator/planted.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <thread>

#include "base/test_hooks.hpp"
#include "simulator/trial.hpp"

namespace harvest::simulator {

#if defined(HARVEST_TEST_HOOKS)

namespace {

/// A life that hangs is a find as well, and nobody wants to wait a minute for each.
constexpr unsigned kPatienceS = 10;

struct Find {
  std::uint64_t lives = 0;  ///< that passed before one failed
  std::optional<Outcome> failed;
};

Find look_for(const Case& first, std::uint64_t seeds, std::uint32_t jobs) {
  Find find;
  std::uint64_t begun = 0;
  run_trials(
      {.jobs = jobs, .repeat = true, .patience_s = kPatienceS},
      [&](Case& life) {
        life = first;
        life.seed = first.seed + begun;
        return begun++ < seeds;
      },
      [&](const Outcome& outcome) {
        if (outcome.passed) {
          ++find.lives;
          return true;
        }
        find.failed = outcome;
        return false;
      });
  return find;
}

}  // namespace

bool can_plant_bugs() {
  return true;
}

bool plant_bug(std::string_view name) {
  return choose_planted_bug(name);
}

int find_planted_bugs(const Case& first, std::uint64_t seeds, std::uint32_t jobs) {
  if (jobs == 0) jobs = std::max(1U, std::thread::hardware_concurrency());
  std::size_t missed = 0;
  for (const PlantedBugInfo& bug : planted_bugs()) {
    if (!choose_planted_bug(bug.name)) return 1;
    const Find find = look_for(first, seeds, jobs);
    if (find.failed)
      fmt::print("{:4} {:28} found with seed {} (lives before: {}): {}\n", bug.invariant, bug.name,
                 find.failed->life.seed, find.lives, find.failed->message);
    else
      fmt::print("{:4} {:28} NOT FOUND in {} lives: {}\n", bug.invariant, bug.name, find.lives,
                 bug.what_is_wrong);
    std::fflush(stdout);
    missed += find.failed ? 0 : 1;
  }
  fmt::print("{} of {} planted bugs found, each in at most {} lives of {} operations\n",
             planted_bugs().size() - missed, planted_bugs().size(), seeds, first.operations);
  return missed == 0 ? 0 : 1;
}

#else

bool can_plant_bugs() {
  return false;
}

bool plant_bug(std::string_view) {
  return false;
}

int find_planted_bugs(const Case&, std::uint64_t, std::uint32_t) {
  return 1;
}

#endif

}  // namespace harvest::simulator
