// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace harvest::fake_cuda::internal {

/// What goes wrong on purpose, and when. Counts begin when a fault is planned. Guarded by the state's lock.
class Faults {
 public:
  void fail_call(std::string function, std::uint64_t nth, int error, std::uint64_t times);
  void fail_allocation(std::uint64_t nth, std::uint64_t times);
  void lose_at_call(int device, std::uint64_t nth, int error);
  void lose_at_work(int device, std::uint64_t nth, int error);
  void corrupt(int from, int to, bool corrupt);

  /// Counts a call; the error that it shall return, if any.
  [[nodiscard]] std::optional<int> on_call(std::string_view function);
  [[nodiscard]] bool on_allocation();
  /// Counts a call to a device, or a piece of work of its; the error that the device is lost by, if it is.
  [[nodiscard]] std::optional<int> on_device_call(int device);
  [[nodiscard]] std::optional<int> on_device_work(int device);
  [[nodiscard]] bool is_corrupt(int from, int to) const { return corrupt_.count({from, to}) != 0; }
  [[nodiscard]] std::uint64_t calls(std::string_view function) const;

  std::uint32_t slow_query_us = 0;
  std::uint32_t slow_copy_us = 0;

 private:
  /// The next `times` after `skip` more.
  struct Plan {
    std::uint64_t skip;
    std::uint64_t times;
    int error;
  };
  [[nodiscard]] static std::optional<int> count(std::vector<Plan>& plans);

  std::map<std::string, std::uint64_t, std::less<>> calls_{};
  std::map<std::string, std::vector<Plan>, std::less<>> call_plans_{};
  std::vector<Plan> allocation_plans_{};
  std::map<int, std::vector<Plan>> device_call_plans_{};
  std::map<int, std::vector<Plan>> device_work_plans_{};
  std::set<std::pair<int, int>> corrupt_{};
};

/// An item of `plan_faults`, applied to the state. Requires: the state's lock.
void apply_fault_plan(std::string_view plan);

}  // namespace harvest::fake_cuda::internal
