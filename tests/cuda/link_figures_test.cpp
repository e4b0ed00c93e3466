// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/link_figures.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backend/cuda/error.hpp"

namespace harvest::cuda {
namespace {

using testing::HasSubstr;

GpuFacts gpu(int number, std::optional<NvmlDetails> nvml = std::nullopt, int major = 9) {
  return {.bus_id = "0000:0" + std::to_string(number) + ":00.0",
          .compute_major = major,
          .memory_bytes_per_s = 3e12,
          .nvml = std::move(nvml)};
}

PairFacts reachable(DeviceId, DeviceId) {
  return {.access = true, .native_atomics = true};
}

LinkInfo link(const std::vector<LinkInfo>& links, DeviceId from, DeviceId to) {
  for (const LinkInfo& one : links)
    if (one.from == from && one.to == to) return one;
  ADD_FAILURE() << "no link from " << from << " to " << to;
  return {};
}

LinkInfo first_link(const GpuFacts& a, const GpuFacts& b, const PairFacts& pair) {
  const GpuFacts gpus[] = {a, b};
  return link(nominal_links(gpus, [&](DeviceId, DeviceId) { return pair; }), 0, 1);
}

/// Near a published measurement: a tenth of it, so that a factor that was forgotten shows.
void expect_near(const LinkInfo& link, double measured) {
  EXPECT_LT(std::abs(link.bandwidth_bytes_per_s - measured), .1 * measured)
      << link.bandwidth_bytes_per_s << " against " << measured << ": " << link.source;
}

NvmlDetails on_switch(std::uint32_t links, double each) {
  return {.switch_links = links, .link_bytes_per_s = each};
}

TEST(LinkFigures, AreNearWhatOthersMeasured) {
  const PairFacts pair{.access = true, .native_atomics = true};
  const auto dgx_a100 = on_switch(12, 25e9), hgx_h200 = on_switch(18, 25e9);
  expect_near(first_link(gpu(0, dgx_a100, 8), gpu(1, dgx_a100, 8), pair), 276e9);
  expect_near(first_link(gpu(0, hgx_h200), gpu(1, hgx_h200), pair), 396e9);
  NvmlDetails left{.link_bytes_per_s = 25e9}, right = left;
  left.peer_links["0000:01:00.0"] = 12;
  right.peer_links["0000:00:00.0"] = 12;
  const LinkInfo bridge = first_link(gpu(0, left), gpu(1, right), pair);
  expect_near(bridge, 260e9);
  EXPECT_EQ(bridge.kind, LinkKind::nvlink);
}

TEST(LinkFigures, OfTheHostFollowGenerationAndLanes) {
  const auto host = [](std::uint32_t generation, std::uint32_t lanes) {
    const GpuFacts one[] = {gpu(0, NvmlDetails{.pcie_generation = generation, .pcie_lanes = lanes})};
    return link(nominal_links(one, reachable), kHost, 0);
  };
  expect_near(host(5, 16), 55e9);
  expect_near(host(4, 16), 26e9);
  expect_near(host(4, 8), 13e9);
  expect_near(host(3, 16), 13e9);
  expect_near(host(6, 16), 110e9);
  const GpuFacts grace[] = {gpu(0, NvmlDetails{.c2c = true})};
  const LinkInfo c2c = link(nominal_links(grace, reachable), 0, kHost);
  EXPECT_EQ(c2c.kind, LinkKind::c2c);
  expect_near(c2c, 346e9);
}

TEST(LinkFigures, WithoutNvmlAreAssumedFromTheGeneration) {
  PairFacts pair{.access = true, .native_atomics = true};
  for (const auto& [major, nominal] : {std::pair{7, 150e9}, {8, 300e9}, {9, 450e9}, {10, 900e9}}) {
    const LinkInfo one = first_link(gpu(0, std::nullopt, major), gpu(1, std::nullopt, major), pair);
    EXPECT_EQ(one.kind, LinkKind::nvlink);
    expect_near(one, .87 * nominal);
    EXPECT_THAT(one.source, HasSubstr("assumed"));
  }
  pair.performance_rank = 1;
  expect_near(first_link(gpu(0), gpu(1), pair), .87 * 225e9);
  pair.native_atomics = false;
  const LinkInfo pcie = first_link(gpu(0, std::nullopt, 8), gpu(1), pair);
  EXPECT_EQ(pcie.kind, LinkKind::pcie);
  expect_near(pcie, 26e9);
}

TEST(LinkFigures, WithoutAccessGoThroughTheHost) {
  const NvmlDetails gen5{.pcie_generation = 5, .pcie_lanes = 16};
  const LinkInfo staged = first_link(gpu(0, gen5), gpu(1, gen5), {});
  EXPECT_FALSE(staged.peer_access);
  expect_near(staged, 37e9);
  NvmlDetails mig = gen5;
  mig.mig = true;
  EXPECT_FALSE(first_link(gpu(0, gen5), gpu(1, mig), reachable(0, 1)).peer_access);
}

TEST(LinkFigures, CoverEveryPairOnce) {
  const GpuFacts gpus[] = {gpu(0), gpu(1), gpu(2), gpu(3)};
  const auto links = nominal_links(gpus, reachable);
  EXPECT_EQ(links.size(), 25U);
  for (DeviceId from = kHost; from < 4; ++from) {
    for (DeviceId to = kHost; to < 4; ++to) {
      const LinkInfo one = link(links, from, to);
      EXPECT_GT(one.bandwidth_bytes_per_s, 0);
      EXPECT_FALSE(one.source.empty());
    }
  }
  EXPECT_EQ(link(links, 1, 1).kind, LinkKind::same_device);
}

TEST(BusId, IsTheSameInEachSpelling) {
  EXPECT_EQ(normal_bus_id("00000000:1B:00.0"), "0000:1b:00.0");
  EXPECT_EQ(normal_bus_id("0000:1b:00.0"), "0000:1b:00.0");
  EXPECT_EQ(normal_bus_id("00010000:1B:00.0"), "00010000:1b:00.0");
}

TEST(CudaErrorCodes, AreOurs) {
  const auto code = [](auto error) { return to_error(error, "a try").code; };
  EXPECT_EQ(code(cudaErrorInvalidValue), ErrorCode::invalid_argument);
  EXPECT_EQ(code(cudaErrorMemoryAllocation), ErrorCode::out_of_memory);
  EXPECT_EQ(code(cudaErrorInvalidDevice), ErrorCode::not_found);
  EXPECT_EQ(code(cudaErrorNotSupported), ErrorCode::not_supported);
  EXPECT_EQ(code(cudaErrorStreamCaptureUnsupported), ErrorCode::not_supported);
  EXPECT_EQ(code(cudaErrorIllegalAddress), ErrorCode::unavailable);
  EXPECT_EQ(code(cudaErrorUnknown), ErrorCode::unavailable);
  EXPECT_EQ(code(CUDA_ERROR_OUT_OF_MEMORY), ErrorCode::out_of_memory);
  EXPECT_EQ(code(CUDA_ERROR_LAUNCH_FAILED), ErrorCode::unavailable);
  EXPECT_TRUE(is_sticky(cudaErrorECCUncorrectable));
  EXPECT_TRUE(is_sticky(CUDA_ERROR_ILLEGAL_ADDRESS));
  EXPECT_FALSE(is_sticky(cudaErrorMemoryAllocation));
  EXPECT_FALSE(is_sticky(cudaErrorNotReady));
  EXPECT_THAT(to_error(cudaErrorMemoryAllocation, "cudaMalloc of 5 bytes").message,
              HasSubstr("cudaMalloc of 5 bytes: cudaErrorMemoryAllocation (out of memory)"));
  EXPECT_TRUE(check(cudaSuccess, ""));
  EXPECT_TRUE(check(CUDA_SUCCESS, ""));
  EXPECT_FALSE(check(CUDA_ERROR_INVALID_VALUE, "a try"));
}

}  // namespace
}  // namespace harvest::cuda
