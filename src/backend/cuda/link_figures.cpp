// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/link_figures.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace harvest::cuda {
namespace {

/// What a call costs, alone and in a batch (torchcomms#2195), and what the way takes.
struct Delays {
  TimeNs latency_ns, issue_ns, issue_batched_ns;
};
constexpr Delays kPeerDelays{2'000, 3'550, 2'300};     // latency: cuda-samples#230, 1.8 to 2.3 us
constexpr Delays kHostDelays{2'800, 2'300, 2'300};     // cuda-oxide#976, FlexKV#193
constexpr Delays kStagedDelays{24'000, 3'550, 2'300};  // DistServe#3: 23.6 to 24.7 us
constexpr Delays kLocalDelays{2'000, 2'800, 2'300};

// What is left of a nominal rate.
constexpr double kNvlinkPart = 0.87;  // cuda-samples#392: 261 of 300; a DGX A100 has .92, a DGX H100 .84
constexpr double kStagedPart = 0.67;  // nccl#1264: 37 of 55
constexpr double kMemoryPart = 0.45;  // each byte is read and written; a tenth is lost
constexpr double kHostCopyBytesPerS = 10e9;
constexpr double kC2cBytesPerS = 346e9;  // nvbandwidth#23

struct Rate {
  LinkKind kind = LinkKind::pcie;
  double bytes_per_s = 0;
  std::string source;
};

/// NVLink of one GPU, one direction, by compute capability: V100, A100, H100, B200.
double nvlink_bytes_per_s(int compute_major) {
  if (compute_major >= 10) return 900e9;
  if (compute_major == 9) return 450e9;
  return compute_major == 8 ? 300e9 : 150e9;
}

Rate host_rate(const GpuFacts& gpu) {
  if (gpu.nvml && gpu.nvml->c2c)
    return {LinkKind::c2c, kC2cBytesPerS, "nominal: NVLink-C2C as measured by NVIDIA/nvbandwidth#23"};
  const bool known = gpu.nvml && gpu.nvml->pcie_generation > 0 && gpu.nvml->pcie_lanes > 0;
  const std::uint32_t generation = known ? gpu.nvml->pcie_generation : (gpu.compute_major >= 9 ? 5 : 4);
  const std::uint32_t lanes = known ? gpu.nvml->pcie_lanes : 16;
  // Sixteen lanes of generation 4 carry 26.0 GB/s (nvbandwidth's README), of 5 55.4 (ml-engineering); each
  // generation doubles the rate.
  double bytes_per_s = generation >= 5 ? 55.4e9 : 26.0e9;
  for (std::uint32_t g = 5; g < generation; ++g) bytes_per_s *= 2;
  for (std::uint32_t g = generation; g < 4; ++g) bytes_per_s /= 2;
  return {LinkKind::pcie, bytes_per_s * lanes / 16,
          fmt::format("{}: PCIe {} x{} as measured by {}", known ? "nominal" : "assumed", generation, lanes,
                      generation >= 5 ? "stas00/ml-engineering" : "NVIDIA/nvbandwidth")};
}

Rate nvlink_rate(const GpuFacts& from, LinkKind kind, std::uint32_t links) {
  const double one = from.nvml->link_bytes_per_s > 0 ? from.nvml->link_bytes_per_s : 25e9;
  return {
      kind, one * links * kNvlinkPart,
      fmt::format("nominal: 87 % (NVIDIA/cuda-samples#392) of {} NVLinks of {:.1f} GB/s", links, one / 1e9)};
}

Rate peer_rate(const GpuFacts& from, const GpuFacts& to, const PairFacts& pair) {
  if (from.nvml && to.nvml) {
    if (const auto direct = from.nvml->peer_links.find(to.bus_id); direct != from.nvml->peer_links.end())
      return nvlink_rate(from, LinkKind::nvlink, direct->second);
    if (const auto both = std::min(from.nvml->switch_links, to.nvml->switch_links); both > 0)
      return nvlink_rate(from, LinkKind::nvswitch, both);
  } else if (pair.native_atomics) {
    const double nominal =
        std::min(nvlink_bytes_per_s(from.compute_major), nvlink_bytes_per_s(to.compute_major));
    return {LinkKind::nvlink, nominal * kNvlinkPart / (1 + std::max(pair.performance_rank, 0)),
            fmt::format("assumed: 87 % (NVIDIA/cuda-samples#392) of the NVLink of this generation, rank {}",
                        pair.performance_rank)};
  }
  const Rate a = host_rate(from), b = host_rate(to);
  Rate slower = a.bytes_per_s < b.bytes_per_s ? a : b;
  slower.kind = LinkKind::pcie;
  return slower;
}

LinkInfo link(DeviceId from, DeviceId to, bool access, const Rate& rate, const Delays& delays) {
  return {.from = from,
          .to = to,
          .kind = rate.kind,
          .peer_access = access,
          .bandwidth_bytes_per_s = rate.bytes_per_s,
          .latency_ns = delays.latency_ns,
          .issue_ns = delays.issue_ns,
          .issue_batched_ns = delays.issue_batched_ns,
          .source = rate.source};
}

LinkInfo link_to_itself(DeviceId gpu, const GpuFacts& facts) {
  const bool known = facts.memory_bytes_per_s > 0;
  const Rate rate{LinkKind::same_device, (known ? facts.memory_bytes_per_s : 1e12) * kMemoryPart,
                  known ? "nominal: 45 % of its memory's rate, since each byte is read and written"
                        : "assumed: 450 GB/s"};
  return link(gpu, gpu, true, rate, kLocalDelays);
}

LinkInfo link_between(DeviceId from, DeviceId to, const GpuFacts& source, const GpuFacts& target,
                      const PairFacts& pair) {
  const bool mig = (source.nvml && source.nvml->mig) || (target.nvml && target.nvml->mig);
  if (pair.access && !mig) return link(from, to, true, peer_rate(source, target, pair), kPeerDelays);
  const Rate a = host_rate(source), b = host_rate(target);
  const Rate staged{LinkKind::pcie, std::min(a.bytes_per_s, b.bytes_per_s) * kStagedPart,
                    "nominal: through the host, 67 % of the slower host link (NVIDIA/nccl#1264)"};
  return link(from, to, false, staged, kStagedDelays);
}

}  // namespace

std::vector<LinkInfo> nominal_links(std::span<const GpuFacts> gpus,
                                    const std::function<PairFacts(DeviceId, DeviceId)>& pair) {
  std::vector<LinkInfo> links;
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    const auto from = static_cast<DeviceId>(i);
    for (std::size_t j = 0; j < gpus.size(); ++j) {
      const auto to = static_cast<DeviceId>(j);
      if (i == j)
        links.push_back(link_to_itself(from, gpus[i]));
      else
        links.push_back(link_between(from, to, gpus[i], gpus[j], pair(from, to)));
    }
    const Rate host = host_rate(gpus[i]);
    links.push_back(link(from, kHost, true, host, kHostDelays));
    links.push_back(link(kHost, from, true, host, kHostDelays));
  }
  const Rate host_copy{LinkKind::same_device, kHostCopyBytesPerS, "assumed: 10 GB/s"};
  links.push_back(link(kHost, kHost, true, host_copy, kHostDelays));
  return links;
}

}  // namespace harvest::cuda
