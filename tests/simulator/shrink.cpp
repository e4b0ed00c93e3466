// SPDX-License-Identifier: Apache-2.0
#include "simulator/shrink.hpp"

#include <algorithm>
#include <vector>

namespace harvest::simulator {
namespace {

using Numbers = std::vector<std::uint32_t>;

Numbers numbers_of(const Case& life) {
  Numbers numbers;
  if (life.only.empty())
    for (std::uint32_t number = 0; number < life.operations; ++number) numbers.push_back(number);
  for (const auto& [first, last] : life.only)
    for (std::uint32_t number = first; number <= last; ++number) numbers.push_back(number);
  return numbers;
}

void set_numbers(Case& life, const Numbers& numbers) {
  life.only.clear();
  for (const std::uint32_t number : numbers) {
    if (!life.only.empty() && life.only.back().second + 1 == number)
      life.only.back().second = number;
    else
      life.only.emplace_back(number, number);
  }
  if (numbers.empty()) life.operations = 0;
}

class Shrinker {
 public:
  Shrinker(Outcome failed, const TrialOptions& options, int attempts,
           const std::function<void(const Outcome&)>& tell)
      : best_(std::move(failed)), options_(options), attempts_(attempts), tell_(tell) {}

  Outcome run() {
    cut_the_end();
    while (attempts_ > 0) {
      const std::uint32_t before = operations_of(best_.life);
      const Case life_before = best_.life;
      remove_operations();
      remove_faults();
      narrow(&Case::gpus, static_cast<std::uint32_t>(draw_plan(best_.life).machine.devices.size() - 1), 2);
      narrow(&Case::streams, draw_plan(best_.life).streams, 1);
      narrow(&Case::keys, draw_plan(best_.life).keys, 1);
      if (operations_of(best_.life) == before && arguments_of(life_before) == arguments_of(best_.life)) break;
    }
    return best_;
  }

 private:
  bool try_this(const Case& life) {
    if (attempts_-- <= 0) return false;
    Outcome outcome = try_case(life, options_);
    if (outcome.passed || outcome.invariant() != best_.invariant()) return false;
    best_ = std::move(outcome);
    tell_(best_);
    return true;
  }

  /// Nothing after the operation that showed it is of use.
  void cut_the_end() {
    Case life = best_.life;
    Numbers numbers = numbers_of(life);
    std::erase_if(numbers, [&](std::uint32_t number) { return number > best_.number; });
    set_numbers(life, numbers);
    try_this(life);
  }

  /// By halves, quarters, and so on down to one at a time.
  void remove_operations() {
    for (std::size_t part = std::max<std::size_t>(1, numbers_of(best_.life).size() / 2); attempts_ > 0;
         part /= 2) {
      for (std::size_t at = 0; at < numbers_of(best_.life).size() && attempts_ > 0;) {
        Numbers numbers = numbers_of(best_.life);
        const auto first = numbers.begin() + static_cast<std::ptrdiff_t>(at);
        numbers.erase(first, first + static_cast<std::ptrdiff_t>(std::min(part, numbers.size() - at)));
        Case life = best_.life;
        set_numbers(life, numbers);
        if (numbers.empty() || !try_this(life)) at += part;
      }
      if (part <= 1) return;
    }
  }

  void remove_faults() {
    for (const Fault fault : draw_plan(best_.life).faults.list()) {
      Case life = best_.life;
      life.faults = draw_plan(life).faults;
      life.faults->remove(fault);
      try_this(life);
    }
  }

  void narrow(std::optional<std::uint32_t> Case::*field, std::uint32_t now, std::uint32_t least) {
    for (std::uint32_t fewer : {least, now / 2, now - 1}) {
      if (fewer < least || fewer >= now) continue;
      Case life = best_.life;
      life.*field = fewer;
      if (try_this(life)) return;
    }
  }

  Outcome best_;
  TrialOptions options_;
  int attempts_;
  const std::function<void(const Outcome&)>& tell_;
};

}  // namespace

std::uint32_t operations_of(const Case& life) {
  if (life.only.empty()) return life.operations;
  std::uint32_t sum = 0;
  for (const auto& [first, last] : life.only) sum += last - first + 1;
  return sum;
}

Outcome shrink(Outcome failed, TrialOptions options, int attempts,
               const std::function<void(const Outcome& smaller)>& tell) {
  // Only a life that differs from itself has to be lived twice.
  options.repeat = options.repeat && failed.invariant() == "I11";
  return Shrinker(std::move(failed), options, attempts, tell).run();
}

}  // namespace harvest::simulator
