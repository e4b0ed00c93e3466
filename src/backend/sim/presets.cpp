// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <harvest/machine.hpp>
#include <optional>

#include "backend/sim/calibration.hpp"

namespace harvest {
namespace {

using namespace sim;

/// A machine of equal GPUs, in the terms in which the presets differ.
struct Recipe {
  std::string_view name;
  int gpus;
  const char* gpu_name;
  std::uint64_t gpu_bytes;  ///< the nominal capacity, read as GiB
  std::uint32_t copy_engines;
  std::uint64_t host_bytes;
  LinkKind peer_kind;
  Bandwidth peer, host_to_device, device_to_host, device_memory, host_memory;
  Cost issue, issue_batched, peer_latency, to_device_latency, to_host_latency;
  LinkKind host_kind = LinkKind::pcie;
};

// Copy engines: estimates. Data-centre GPUs have several; two directions and two peers at once keep
// about four busy. Consumer cards have two.
constexpr std::array<Recipe, 6> kRecipes{{
    {"2xh100-nvl", 2, "NVIDIA H100 NVL", 94 * kGiB, 4, 512 * kGiB, LinkKind::nvlink, kH100NvlPeer,
     kPcie5HostToDevice, kPcie5DeviceToHost, kH100NvlMemory, kServerHostMemory, kHopperIssue,
     kHopperIssueBatched, kNvlinkLatency, kPcieToDeviceLatency, kPcieToHostLatency},
    {"dgx-a100", 8, "NVIDIA A100-SXM4-80GB", 80 * kGiB, 4, 2048 * kGiB, LinkKind::nvswitch, kA100Peer,
     kA100HostToDevice, kA100DeviceToHost, kA100Memory, kDdr4HostMemory, kA100Issue, kA100IssueBatched,
     kNvlinkLatency, kPcieToDeviceLatency, kPcieToHostLatency},
    {"dgx-h100", 8, "NVIDIA H100 80GB HBM3", 80 * kGiB, 4, 2048 * kGiB, LinkKind::nvswitch, kH100Peer,
     kPcie5HostToDevice, kPcie5DeviceToHost, kH100Memory, kServerHostMemory, kHopperIssue,
     kHopperIssueBatched, kNvlinkLatency, kPcieToDeviceLatency, kPcieToHostLatency},
    {"hgx-h200", 8, "NVIDIA H200", 141 * kGiB, 4, 2048 * kGiB, LinkKind::nvswitch, kH200Peer,
     kH200HostToDevice, kH200DeviceToHost, kH200Memory, kServerHostMemory, kHopperIssue, kHopperIssueBatched,
     kNvlinkLatency, kPcieToDeviceLatency, kPcieToHostLatency},
    {"gb200-nvl72", 4, "NVIDIA GB200", 186 * kGiB, 4, 960 * kGiB, LinkKind::nvswitch, kGb200Peer,
     kGb200HostToDevice, kGb200DeviceToHost, kGb200Memory, kGraceHostMemory, kBlackwellIssue,
     kBlackwellIssueBatched, kNvlinkLatency, kC2cLatency, kC2cLatency, LinkKind::c2c},
    {"4x4090-pcie", 4, "NVIDIA GeForce RTX 4090", 24 * kGiB, 2, 512 * kGiB, LinkKind::pcie, kRtx4090Peer,
     kRtx4090HostToDevice, kRtx4090DeviceToHost, kRtx4090Memory, kDesktopHostMemory, kRtx4090Issue,
     kRtx4090IssueBatched, kPcieToDeviceLatency, kPcieToDeviceLatency, kPcieToHostLatency},
}};

/// Where the bytes of one GPU go in and out: indexes of ports.
struct GpuPorts {
  std::uint32_t memory = 0, peer_in = 0, peer_out = 0, host_in = 0, host_out = 0;
  std::optional<std::uint32_t> host_both;  ///< both directions together are slower than twice one
};

class Builder {
 public:
  explicit Builder(const Recipe& recipe) : recipe_(recipe) {}

  Machine build() {
    machine_.name = recipe_.name;
    machine_.costs = {kMap.ns, kSetAccess.ns, kUnmap.ns, kQueryMemory.ns, kPinGiB.ns};
    host_port_ = port("host.memory", recipe_.host_memory.bytes_per_s);
    for (int i = 0; i < recipe_.gpus; ++i) add_gpu(i);
    machine_.devices.push_back(
        {DeviceInfo{kHost, "host memory", recipe_.host_bytes, kHostGranularityBytes, 0, -1}, 0});
    for (DeviceId from = 0; from < recipe_.gpus; ++from) add_links_from(from);
    add_link({kHost, kHost, LinkKind::same_device, false}, kHostMemcpy, kKernelLatency, {host_port_});
    return std::move(machine_);
  }

 private:
  std::uint32_t port(std::string name, double bandwidth_bytes_per_s) {
    machine_.ports.push_back({std::move(name), bandwidth_bytes_per_s});
    return static_cast<std::uint32_t>(machine_.ports.size() - 1);
  }

  void add_gpu(int i) {
    const bool eight = recipe_.gpus == 8;
    machine_.devices.push_back({DeviceInfo{i, recipe_.gpu_name, recipe_.gpu_bytes, kSegmentGranularityBytes,
                                           recipe_.copy_engines, eight ? i / 4 : 0},
                                0});
    GpuPorts ports;
    ports.memory = port(fmt::format("gpu{}.memory", i), recipe_.device_memory.bytes_per_s);
    if (recipe_.peer_kind == LinkKind::pcie) {
      ports.peer_in = ports.host_in = port(fmt::format("gpu{}.pcie.in", i), kRtx4090PortIn.bytes_per_s);
      ports.peer_out = ports.host_out = port(fmt::format("gpu{}.pcie.out", i), kRtx4090PortOut.bytes_per_s);
    } else {
      ports.peer_in = port(fmt::format("gpu{}.nvlink.in", i), recipe_.peer.bytes_per_s);
      ports.peer_out = port(fmt::format("gpu{}.nvlink.out", i), recipe_.peer.bytes_per_s);
      ports.host_in = port(fmt::format("gpu{}.host.in", i), recipe_.host_to_device.bytes_per_s);
      ports.host_out = port(fmt::format("gpu{}.host.out", i), recipe_.device_to_host.bytes_per_s);
    }
    if (recipe_.name == "dgx-a100")
      ports.host_both = port(fmt::format("gpu{}.host.both", i), kA100PcieDuplex.bytes_per_s);
    gpus_.push_back(ports);
  }

  /// Every pair of ends that `gpu` is the first of: itself, the host both ways, its peers.
  void add_links_from(DeviceId gpu) {
    const GpuPorts& ports = gpus_[static_cast<std::size_t>(gpu)];
    add_link({gpu, gpu, LinkKind::same_device, true}, recipe_.device_memory, kKernelLatency, {ports.memory});
    std::vector<std::uint32_t> in{host_port_, ports.host_in}, out{ports.host_out, host_port_};
    if (ports.host_both) {
      in.push_back(*ports.host_both);
      out.push_back(*ports.host_both);
    }
    add_link({kHost, gpu, recipe_.host_kind, true}, recipe_.host_to_device, recipe_.to_device_latency, in);
    add_link({gpu, kHost, recipe_.host_kind, true}, recipe_.device_to_host, recipe_.to_host_latency, out);
    for (DeviceId to = 0; to < recipe_.gpus; ++to) {
      if (to == gpu) continue;
      add_link({gpu, to, recipe_.peer_kind, true}, recipe_.peer, recipe_.peer_latency,
               {ports.peer_out, gpus_[static_cast<std::size_t>(to)].peer_in});
    }
  }

  struct Ends {
    DeviceId from, to;
    LinkKind kind;
    bool peer_access;
  };
  void add_link(Ends ends, const Bandwidth& bandwidth, const Cost& latency,
                std::vector<std::uint32_t> ports) {
    const LinkInfo info{
        .from = ends.from,
        .to = ends.to,
        .kind = ends.kind,
        .peer_access = ends.peer_access,
        .bandwidth_bytes_per_s = bandwidth.bytes_per_s,
        .latency_ns = latency.ns,
        .issue_ns = recipe_.issue.ns,
        .issue_batched_ns = ends.kind == LinkKind::same_device ? kKernelRun.ns : recipe_.issue_batched.ns,
        .source = bandwidth.source};
    machine_.links.push_back({info, std::move(ports)});
  }

  const Recipe& recipe_;
  Machine machine_;
  std::uint32_t host_port_ = 0;
  std::vector<GpuPorts> gpus_;
};

}  // namespace

std::span<const std::string_view> machine_preset_names() {
  static const auto names = [] {
    std::array<std::string_view, kRecipes.size()> all;
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = kRecipes[i].name;
    return all;
  }();
  return names;
}

Result<Machine> machine_from_preset(std::string_view name) {
  for (const Recipe& recipe : kRecipes)
    if (recipe.name == name) return Builder(recipe).build();
  return fail(ErrorCode::not_found, fmt::format("no machine is named '{}'; known are {}", name,
                                                fmt::join(machine_preset_names(), ", ")));
}

}  // namespace harvest
