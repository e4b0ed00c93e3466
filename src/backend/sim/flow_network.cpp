// SPDX-License-Identifier: Apache-2.0
#include "backend/sim/flow_network.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/assert.hpp"

namespace harvest::sim {
namespace {

constexpr double kRateMin = 1e-9;  // a byte a second: rounding may leave a port with nothing to give

}  // namespace

FlowNetwork::FlowNetwork(const std::vector<double>& port_bytes_per_s) {
  ports_.reserve(port_bytes_per_s.size());
  for (double bytes_per_s : port_bytes_per_s) ports_.push_back({bytes_per_s / 1e9, 0, 0});
}

FlowNetwork::FlowId FlowNetwork::add(TimeNs now_ns, double bytes, double cap_bytes_per_s,
                                     std::span<const std::uint32_t> ports) {
  if (free_.empty()) {
    free_.push_back(static_cast<FlowId>(flows_.size()));
    flows_.emplace_back();
  }
  const FlowId id = free_.back();
  free_.pop_back();
  flows_[id] = Flow{bytes, cap_bytes_per_s / 1e9, 0, now_ns, kNever, false, ports};
  active_.push_back(id);
  share(now_ns);
  return id;
}

void FlowNetwork::remove(TimeNs now_ns, FlowId flow) {
  const auto found = std::find(active_.begin(), active_.end(), flow);
  HARVEST_ASSERT(found != active_.end(), "a flow that is not under way is removed");
  active_.erase(found);
  free_.push_back(flow);
  share(now_ns);
}

FlowNetwork::FlowId FlowNetwork::pop_ended(TimeNs now_ns) {
  const auto ended =
      std::find_if(active_.begin(), active_.end(), [&](FlowId id) { return flows_[id].end_ns <= now_ns; });
  HARVEST_ASSERT(ended != active_.end(), "no flow has ended");
  const FlowId id = *ended;
  remove(now_ns, id);
  return id;
}

/// Progressive filling: all open flows grow alike until a port is full or a flow reaches its cap;
/// those stop there, and the others go on.
void FlowNetwork::fill_evenly() {
  for (Port& port : ports_) {
    port.left = port.capacity;
    port.open_flows = 0;
  }
  std::size_t open = active_.size();
  for (FlowId id : active_) {
    flows_[id].fixed = false;
    for (std::uint32_t port : flows_[id].ports) ++ports_[port].open_flows;
  }
  while (open > 0) {
    double level = std::numeric_limits<double>::infinity();
    const auto limit_of = [&](const Flow& flow) {
      double limit = flow.cap;
      for (std::uint32_t port : flow.ports)
        limit = std::min(limit, ports_[port].left / ports_[port].open_flows);
      return limit;
    };
    for (FlowId id : active_)
      if (!flows_[id].fixed) level = std::min(level, limit_of(flows_[id]));
    for (std::size_t i = 0; i < active_.size(); ++i) {
      Flow& flow = flows_[active_[i]];
      if (flow.fixed || limit_of(flow) > level * (1 + 1e-12)) continue;
      flow.fixed = true;
      rates_[i] = level;
      --open;
      for (std::uint32_t port : flow.ports) {
        ports_[port].left = std::max(0.0, ports_[port].left - level);
        --ports_[port].open_flows;
      }
    }
  }
}

void FlowNetwork::set_rate(TimeNs now_ns, Flow& flow, double rate) {
  rate = std::max(rate, kRateMin);
  if (rate == flow.rate) return;  // its end stays where it is, free of rounding
  flow.remaining_bytes -= flow.rate * static_cast<double>(now_ns - flow.updated_ns);
  flow.remaining_bytes = std::max(flow.remaining_bytes, 0.0);
  flow.rate = rate;
  flow.updated_ns = now_ns;
  const double left_ns = std::ceil(flow.remaining_bytes / rate);
  flow.end_ns =
      left_ns < static_cast<double>(kNever - now_ns) ? now_ns + static_cast<TimeNs>(left_ns) : kNever;
}

void FlowNetwork::share(TimeNs now_ns) {
  rates_.resize(active_.size());
  fill_evenly();
  next_end_ns_ = kNever;
  for (std::size_t i = 0; i < active_.size(); ++i) {
    Flow& flow = flows_[active_[i]];
    set_rate(now_ns, flow, rates_[i]);
    next_end_ns_ = std::min(next_end_ns_, flow.end_ns);
  }
}

}  // namespace harvest::sim
