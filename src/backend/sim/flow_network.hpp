// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace harvest::sim {

/// Flows of bytes through shared ports. Rates are max-min fair: no flow can get more without taking
/// from one that has no more than it. Cost of adding or removing one: flows x ports, in the number of
/// flows under way (a few dozen: each holds a copy engine). Not thread-safe.
class FlowNetwork {
 public:
  using FlowId = std::uint32_t;

  explicit FlowNetwork(const std::vector<double>& port_bytes_per_s);

  /// A flow of `bytes` from `now_ns` on, never faster than `cap_bytes_per_s`, through `ports` (which
  /// must outlive it).
  FlowId add(TimeNs now_ns, double bytes, double cap_bytes_per_s, std::span<const std::uint32_t> ports);

  /// Takes a flow away before its end.
  void remove(TimeNs now_ns, FlowId flow);

  /// When the next flow ends, kNever if there is none.
  [[nodiscard]] TimeNs next_end_ns() const { return next_end_ns_; }

  /// Takes away and answers one flow that has ended by `now_ns`, in the order in which they were added.
  /// Requires: next_end_ns() <= now_ns.
  FlowId pop_ended(TimeNs now_ns);

  /// Bytes a second of a flow now.
  [[nodiscard]] double rate_bytes_per_s(FlowId flow) const { return flows_[flow].rate * 1e9; }
  [[nodiscard]] std::size_t size() const { return active_.size(); }

 private:
  struct Flow {
    double remaining_bytes = 0;  ///< at `updated_ns`
    double cap = 0;              ///< bytes a nanosecond, as `rate`
    double rate = 0;
    TimeNs updated_ns = 0;
    TimeNs end_ns = kNever;
    bool fixed = false;
    std::span<const std::uint32_t> ports;
  };
  struct Port {
    double capacity = 0;  ///< bytes a nanosecond
    double left = 0;      ///< not yet given away, while rates are worked out
    std::uint32_t open_flows = 0;
  };

  void share(TimeNs now_ns);
  void fill_evenly();
  void set_rate(TimeNs now_ns, Flow& flow, double rate);

  std::vector<Port> ports_;
  std::vector<Flow> flows_;
  std::vector<FlowId> free_;
  std::vector<FlowId> active_;  ///< in the order of adding
  std::vector<double> rates_;   ///< of active_, while they are worked out
  TimeNs next_end_ns_ = kNever;
};

}  // namespace harvest::sim
