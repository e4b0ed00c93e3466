// SPDX-License-Identifier: Apache-2.0
#include "fake_cuda/faults.hpp"

#include <charconv>
#include <stdexcept>

#include "fake_cuda/state.hpp"

namespace harvest::fake_cuda {
namespace internal {
namespace {

std::uint64_t parse_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    throw std::invalid_argument("faults: '" + std::string(text) + "' is no number");
  }
  return value;
}

int parse_device(std::string_view text) {
  return text == "host" ? kHost : static_cast<int>(parse_number(text));
}

/// The parts before and after the first `separator`; the second is empty where there is none.
std::pair<std::string_view, std::string_view> split(std::string_view text, char separator) {
  const auto at = text.find(separator);
  if (at == std::string_view::npos) return {text, {}};
  return {text.substr(0, at), text.substr(at + 1)};
}

void apply_loss(std::string_view text) {
  auto& faults = state().faults;
  const auto [device_text, when] = split(text, '@');
  const int device = parse_device(device_text);
  const auto [kind, nth] = split(when, ':');
  if (when.empty()) {
    faults.lose_at_call(device, 1, kLostDeviceError);
  } else if (kind == "call") {
    faults.lose_at_call(device, parse_number(nth), kLostDeviceError);
  } else if (kind == "work") {
    faults.lose_at_work(device, parse_number(nth), kLostDeviceError);
  } else {
    throw std::invalid_argument("faults: a device is lost @call:N or @work:N, not @" + std::string(when));
  }
}

void apply_item(std::string_view item) {
  auto& faults = state().faults;
  if (item.substr(0, 4) == "oom@") {
    faults.fail_allocation(parse_number(item.substr(4)), 1);
    return;
  }
  const auto [what, rest] = split(item, ':');
  if (what == "fail") {
    const auto [function, when] = split(rest, '@');
    const auto [nth, error] = split(when, '=');
    faults.fail_call(std::string(function), parse_number(nth), static_cast<int>(parse_number(error)), 1);
  } else if (what == "lose") {
    apply_loss(rest);
  } else if (what == "corrupt") {
    const auto [from, to] = split(rest, '-');
    faults.corrupt(parse_device(from), parse_device(to), true);
  } else if (what == "slow_query") {
    faults.slow_query_us = static_cast<std::uint32_t>(parse_number(rest));
  } else if (what == "slow_copy") {
    faults.slow_copy_us = static_cast<std::uint32_t>(parse_number(rest));
  } else {
    throw std::invalid_argument("faults: no fault '" + std::string(item) + "'");
  }
}

}  // namespace

void Faults::fail_call(std::string function, std::uint64_t nth, int error, std::uint64_t times) {
  call_plans_[std::move(function)].push_back({nth - 1, times, error});
}

void Faults::fail_allocation(std::uint64_t nth, std::uint64_t times) {
  allocation_plans_.push_back({nth - 1, times, cudaErrorMemoryAllocation});
}

void Faults::lose_at_call(int device, std::uint64_t nth, int error) {
  device_call_plans_[device].push_back({nth - 1, 1, error});
}

void Faults::lose_at_work(int device, std::uint64_t nth, int error) {
  device_work_plans_[device].push_back({nth - 1, 1, error});
}

void Faults::corrupt(int from, int to, bool corrupt) {
  if (corrupt)
    corrupt_.insert({from, to});
  else
    corrupt_.erase({from, to});
}

std::optional<int> Faults::count(std::vector<Plan>& plans) {
  std::optional<int> error;
  for (auto& plan : plans) {
    if (plan.skip > 0) {
      --plan.skip;
    } else if (plan.times > 0) {
      --plan.times;
      error = plan.error;
    }
  }
  return error;
}

std::optional<int> Faults::on_call(std::string_view function) {
  const auto calls = calls_.find(function);
  if (calls == calls_.end())
    calls_.emplace(function, 1);
  else
    ++calls->second;
  const auto plans = call_plans_.find(function);
  return plans == call_plans_.end() ? std::nullopt : count(plans->second);
}

bool Faults::on_allocation() {
  return count(allocation_plans_).has_value();
}

std::optional<int> Faults::on_device_call(int device) {
  const auto plans = device_call_plans_.find(device);
  return plans == device_call_plans_.end() ? std::nullopt : count(plans->second);
}

std::optional<int> Faults::on_device_work(int device) {
  const auto plans = device_work_plans_.find(device);
  return plans == device_work_plans_.end() ? std::nullopt : count(plans->second);
}

std::uint64_t Faults::calls(std::string_view function) const {
  const auto found = calls_.find(function);
  return found == calls_.end() ? 0 : found->second;
}

void apply_fault_plan(std::string_view plan) {
  while (!plan.empty()) {
    const auto [item, rest] = split(plan, ';');
    if (!item.empty()) apply_item(item);
    plan = rest;
  }
}

}  // namespace internal

using internal::Inside;
using internal::Lock;
using internal::state;

void fail_call(std::string function, std::uint64_t nth, int error, std::uint64_t times) {
  const Inside inside;
  const Lock lock(state().mutex);
  state().faults.fail_call(std::move(function), nth, error, times);
}

void fail_allocation(std::uint64_t nth, std::uint64_t times) {
  const Inside inside;
  const Lock lock(state().mutex);
  state().faults.fail_allocation(nth, times);
}

void lose_device(int device, int error) {
  const Inside inside;
  const Lock lock(state().mutex);
  (void)state().initialise();
  state().poison(device, static_cast<cudaError_t>(error), "lost on purpose");
}

void lose_device_at_call(int device, std::uint64_t nth, int error) {
  const Inside inside;
  const Lock lock(state().mutex);
  state().faults.lose_at_call(device, nth, error);
}

void lose_device_at_work(int device, std::uint64_t nth, int error) {
  const Inside inside;
  const Lock lock(state().mutex);
  state().faults.lose_at_work(device, nth, error);
}

void corrupt_path(int from, int to, bool corrupt) {
  const Inside inside;
  const Lock lock(state().mutex);
  state().faults.corrupt(from, to, corrupt);
}

void slow_memory_queries(std::uint32_t us) {
  const Inside inside;
  const Lock lock(state().mutex);
  state().faults.slow_query_us = us;
}

void slow_copies(std::uint32_t us) {
  const Inside inside;
  const Lock lock(state().mutex);
  state().faults.slow_copy_us = us;
}

void plan_faults(std::string_view plan) {
  const Inside inside;
  const Lock lock(state().mutex);
  internal::apply_fault_plan(plan);
}

}  // namespace harvest::fake_cuda
