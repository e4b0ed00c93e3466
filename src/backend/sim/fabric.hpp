// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/machine.hpp>

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

namespace harvest::sim {

/// A machine's devices and links by index, and which of them work now. The machine never changes; the
/// flags may be read and written by any thread.
class Fabric {
 public:
  explicit Fabric(const Machine& machine)
      : machine_(machine),
        link_of_(machine.devices.size() * machine.devices.size(), -1),
        link_up_(machine.links.size()),
        lost_(machine.devices.size()) {
    for (std::size_t i = 0; i < machine.links.size(); ++i) {
      const LinkInfo& info = machine.links[i].info;
      link_of_[slot(info.from) * machine.devices.size() + slot(info.to)] = static_cast<int>(i);
      link_up_[i] = true;
    }
  }

  [[nodiscard]] const Machine& machine() const { return machine_; }

  [[nodiscard]] bool has_device(DeviceId device) const {
    return device >= kHost && device + 1 < static_cast<DeviceId>(machine_.devices.size());
  }
  [[nodiscard]] bool has_gpu(DeviceId device) const { return device >= 0 && has_device(device); }

  /// A device's place in `machine().devices`. Requires: has_device.
  [[nodiscard]] std::size_t slot(DeviceId device) const {
    return device == kHost ? machine_.devices.size() - 1 : static_cast<std::size_t>(device);
  }

  /// A route's place in `machine().links`.
  [[nodiscard]] std::optional<std::uint32_t> link(Route route) const {
    if (!has_device(route.from) || !has_device(route.to)) return std::nullopt;
    const int found = link_of_[slot(route.from) * machine_.devices.size() + slot(route.to)];
    if (found < 0) return std::nullopt;
    return static_cast<std::uint32_t>(found);
  }

  [[nodiscard]] bool is_up(std::uint32_t link) const {
    return link_up_[link].load(std::memory_order_relaxed);
  }
  void set_up(std::uint32_t link, bool up) { link_up_[link].store(up, std::memory_order_relaxed); }
  [[nodiscard]] bool is_lost(DeviceId device) const {
    return lost_[slot(device)].load(std::memory_order_relaxed);
  }
  void lose(DeviceId device) { lost_[slot(device)].store(true, std::memory_order_relaxed); }

  /// The link works and so do both of its ends.
  [[nodiscard]] bool is_usable(std::uint32_t link) const {
    const LinkInfo& info = machine_.links[link].info;
    return is_up(link) && !is_lost(info.from) && !is_lost(info.to);
  }

 private:
  const Machine& machine_;
  std::vector<int> link_of_;
  std::vector<std::atomic<bool>> link_up_;
  std::vector<std::atomic<bool>> lost_;
};

}  // namespace harvest::sim
