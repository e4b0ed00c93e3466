// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <array>
#include <atomic>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/cuda/error.hpp"

namespace harvest::cuda {

/// The GPUs in use: Harvest's ids 0..n-1, CUDA's number of each, and which are lost. An error that poisons a
/// context is sticky: in this process nothing works on that device again, while the others go on. Whoever
/// calls CUDA asks `check` first and gives errors to `fail_call`, so that a lost device is not touched again.
/// Thread-safe. Checks cost one load.
class Gpus {
 public:
  /// CUDA's numbers; at most `kMax`, none twice.
  static constexpr std::size_t kMax = 64;
  explicit Gpus(std::vector<int> ordinals);

  [[nodiscard]] std::size_t size() const { return ordinals_.size(); }
  [[nodiscard]] bool has(DeviceId gpu) const {
    return gpu >= 0 && static_cast<std::size_t>(gpu) < ordinals_.size();
  }
  [[nodiscard]] int ordinal(DeviceId gpu) const { return ordinals_[static_cast<std::size_t>(gpu)]; }
  [[nodiscard]] bool is_lost(DeviceId device) const {
    return has(device) && lost_[static_cast<std::size_t>(device)].load(std::memory_order_acquire);
  }

  /// Errors: not_found (no such GPU, and it is not the host), unavailable (lost).
  [[nodiscard]] Status check(DeviceId device) const;

  /// The error that a call answered which concerned `devices`, the stream's or owner's first. After one that
  /// may have poisoned a context each of them is asked whether it still answers, and those that do not are
  /// lost; where all do although the error was sticky, the first is lost, since the error was its.
  template <typename Code>
  [[nodiscard]] tl::unexpected<Error> fail_call(Code error, std::span<const DeviceId> devices,
                                                std::string_view what) {
    return judge(std::move(cuda::check(error, what).error()), is_sticky(error), devices);
  }
  template <typename Code>
  [[nodiscard]] tl::unexpected<Error> fail_call(Code error, DeviceId device, std::string_view what) {
    return fail_call(error, std::span<const DeviceId>(&device, 1), what);
  }

  /// Asks each of `devices` whether it still answers; those that do not are lost. True if one is.
  bool find_lost(std::span<const DeviceId> devices);

 private:
  tl::unexpected<Error> judge(Error error, bool sticky, std::span<const DeviceId> devices);
  void lose(DeviceId device, std::string_view why);

  std::vector<int> ordinals_;
  std::array<std::atomic<bool>, kMax> lost_{};
};

}  // namespace harvest::cuda
