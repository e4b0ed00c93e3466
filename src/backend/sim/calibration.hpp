// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/types.hpp>

#include <cstdint>

/// Every figure that a preset machine is made of, once, with its source. `measured` means that the
/// source measured it on that system; `estimate` that it was derived, and from what. Nothing here was
/// measured by this project. Model: time = issue + latency + bytes / bandwidth.
namespace harvest::sim {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
inline constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
inline constexpr double kGB = 1e9;

/// A figure and where it is from. `source` starts with "measured" or "estimate".
struct Bandwidth {
  double bytes_per_s;
  const char* source;
};
struct Cost {
  TimeNs ns;
  const char* source;
};

// --- GPU to GPU, one direction, copy engines --------------------------------------------------------

inline constexpr Bandwidth kH100NvlPeer{260 * kGB,
                                        "estimate: 87 % of 300 GB/s, the share in NVIDIA/cuda-samples#392"};
inline constexpr Bandwidth kA100Peer{276 * kGB, "measured: NVIDIA/nvbandwidth README, DGX A100, 276.3"};
inline constexpr Bandwidth kH100Peer{376 * kGB, "measured: NVIDIA/nccl#1264 and ml-engineering, 371-393"};
inline constexpr Bandwidth kH200Peer{396 * kGB, "measured: ml-engineering network/README, 8x H200, 396.4"};
inline constexpr Bandwidth kGb200Peer{746 * kGB, "measured: ml-engineering network/README, 4-GPU tray, 746"};
inline constexpr Bandwidth kRtx4090Peer{
    20.7 * kGB, "estimate: half of 41.4 duplex total, tinygrad/open-gpu-kernel-modules#6, patched driver"};

// --- host to device and back, pinned, copy engines ----------------------------------------------------

inline constexpr Bandwidth kPcie5HostToDevice{55 * kGB,
                                              "estimate: PCIe 5 x16 as on HGX H200 (55.4), rounded"};
inline constexpr Bandwidth kPcie5DeviceToHost{55 * kGB,
                                              "estimate: PCIe 5 x16 as on HGX H200 (55.1), rounded"};
inline constexpr Bandwidth kA100HostToDevice{26 * kGB, "measured: NVIDIA/nvbandwidth README, 25.94-26.19"};
inline constexpr Bandwidth kA100DeviceToHost{26 * kGB, "estimate: as host to device"};
inline constexpr Bandwidth kA100PcieDuplex{37.6 * kGB,
                                           "measured: NVIDIA/nvbandwidth README, 18.8 each way at once"};
inline constexpr Bandwidth kH200HostToDevice{55.4 * kGB, "measured: ml-engineering network/README, 55.43"};
inline constexpr Bandwidth kH200DeviceToHost{55.1 * kGB, "measured: ml-engineering network/README, 55.06"};
inline constexpr Bandwidth kGb200HostToDevice{346 * kGB,
                                              "estimate: C2C as measured on GH200, NVIDIA/nvbandwidth#23"};
inline constexpr Bandwidth kGb200DeviceToHost{294 * kGB,
                                              "estimate: 15 % below host to device, NVIDIA/nvbandwidth#23"};
inline constexpr Bandwidth kRtx4090HostToDevice{23.95 * kGB, "measured: NVlabs/cuda-oxide#976, fit"};
inline constexpr Bandwidth kRtx4090DeviceToHost{26.6 * kGB, "measured: NVlabs/cuda-oxide#976, fit"};
inline constexpr Bandwidth kRtx4090PortIn{25.5 * kGB,
                                          "measured: NVIDIA/nvbandwidth#15, 23.9-26.4 into the card"};
inline constexpr Bandwidth kRtx4090PortOut{26.8 * kGB,
                                           "measured: NVIDIA/nvbandwidth#15, 26.3-27.1 out of it"};

// --- inside one device ----------------------------------------------------------------------------------
// A copy reads and writes each byte: half of the memory's rated bandwidth, 85 % of that reached.

inline constexpr Bandwidth kA100Memory{867 * kGB, "estimate: 85 % of half of 2.04 TB/s"};
inline constexpr Bandwidth kH100Memory{1424 * kGB, "estimate: 85 % of half of 3.35 TB/s"};
inline constexpr Bandwidth kH100NvlMemory{1675 * kGB, "estimate: 85 % of half of 3.94 TB/s"};
inline constexpr Bandwidth kH200Memory{2040 * kGB, "estimate: 85 % of half of 4.8 TB/s"};
inline constexpr Bandwidth kGb200Memory{3400 * kGB, "estimate: 85 % of half of 8 TB/s"};
inline constexpr Bandwidth kRtx4090Memory{428 * kGB, "estimate: 85 % of half of 1.008 TB/s"};
inline constexpr Bandwidth kHostMemcpy{12 * kGB, "estimate: memcpy of one core"};
inline constexpr Bandwidth kDdr4HostMemory{266 * kGB, "estimate: two sockets of 8 DDR4 channels, 65 %"};
inline constexpr Bandwidth kServerHostMemory{400 * kGB, "estimate: two sockets of 8 DDR5 channels, 65 %"};
inline constexpr Bandwidth kGraceHostMemory{800 * kGB, "estimate: two Grace CPUs of 500 GB/s, 80 %"};
inline constexpr Bandwidth kDesktopHostMemory{120 * kGB, "estimate: workstation, 8 DDR4 channels, 60 %"};

// --- issue and latency -----------------------------------------------------------------------------------

inline constexpr Cost kHopperIssue{3'550, "measured: meta-pytorch/torchcomms#2195, DGX H100, peer put"};
inline constexpr Cost kHopperIssueBatched{2'300,
                                          "measured: meta-pytorch/torchcomms#2195, DGX H100, peer put"};
inline constexpr Cost kA100Issue{3'500, "estimate: as DGX H100"};
inline constexpr Cost kA100IssueBatched{2'300, "estimate: as DGX H100"};
inline constexpr Cost kBlackwellIssue{3'360, "measured: meta-pytorch/torchcomms#2195, GB200, peer put"};
inline constexpr Cost kBlackwellIssueBatched{3'150,
                                             "measured: meta-pytorch/torchcomms#2195, GB200, peer put"};
inline constexpr Cost kRtx4090Issue{2'800, "estimate: kekzl/imp#1409, one pinned copy on an RTX 5090"};
inline constexpr Cost kRtx4090IssueBatched{2'300, "estimate: as DGX H100"};
inline constexpr Cost kNvlinkLatency{
    2'000, "measured on 4 GPUs of a type not named, estimate elsewhere: NVIDIA/cuda-samples#230, 1.8-2.3 us"};
inline constexpr Cost kPcieToDeviceLatency{
    2'800, "measured on an RTX 4090, estimate elsewhere: NVlabs/cuda-oxide#976"};
inline constexpr Cost kPcieToHostLatency{
    1'900, "measured on an RTX 4090, estimate elsewhere: NVlabs/cuda-oxide#976"};
inline constexpr Cost kC2cLatency{2'000, "estimate: as NVLink"};
inline constexpr Cost kKernelLatency{1'000, "estimate: start of a copy kernel"};
inline constexpr Cost kKernelRun{10,
                                 "estimate: a run's descriptor takes 2 us, some 200 thread blocks at once"};

// --- the driver's memory functions -------------------------------------------------------------------------

inline constexpr Cost kMap{195'000, "measured: kvcached bench on A100, create 193 us + map 1.5 us"};
inline constexpr Cost kSetAccess{36'000, "measured: kvcached bench on A100"};
inline constexpr Cost kUnmap{26'000, "measured: kvcached bench on A100"};
inline constexpr Cost kQueryMemory{8'000, "estimate: cudaMemGetInfo, 5-12 us, sgl-project/sglang#25225"};
inline constexpr Cost kPinGiB{108'000'000,
                              "measured: vllm-project/vllm#51080, cudaHostRegister, 0.108 s/GiB"};
inline constexpr std::uint64_t kSegmentGranularityBytes =
    2 * kMiB;  // measured: A100 to GB200, torch_memory_saver#82
inline constexpr std::uint64_t kHostGranularityBytes = 4096;  // a page

}  // namespace harvest::sim
