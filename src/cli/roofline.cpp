// SPDX-License-Identifier: Apache-2.0
#include "cli/roofline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

namespace harvest::cli {
namespace {

// The first that fits counts.
constexpr std::array kCards{
    Card{"H100 NVL", 3.94e12, 835e12, "NVIDIA H100 data sheet: 3.9 TB/s, 1,671 TFLOPS with sparsity"},
    Card{"H100", 3.35e12, 989e12, "NVIDIA H100 SXM data sheet: 3.35 TB/s, 1,979 TFLOPS with sparsity"},
    Card{"H200", 4.8e12, 989e12, "NVIDIA H200 data sheet: 4.8 TB/s, 1,979 TFLOPS with sparsity"},
    Card{"A100", 2.04e12, 312e12, "NVIDIA A100 80GB SXM data sheet: 2,039 GB/s, 312 TFLOPS"},
    Card{"GB200", 8.0e12, 2500e12,
         "NVIDIA GB200 data sheet, half of a superchip: 8 TB/s, 5,000 TFLOPS with sparsity"},
    Card{"RTX 4090", 1.008e12, 165e12, "NVIDIA Ada whitepaper: 1,008 GB/s, 165 TFLOPS with 32-bit sums"},
};

}  // namespace

TimeNs Card::time_ns(const Work& work) const {
  const double arithmetic = flops_per_s * kArithmeticShare * (work.eight_bits ? 2 : 1);
  const double seconds = std::max(work.bytes / (bytes_per_s * kMemoryShare), work.flops / arithmetic);
  return static_cast<TimeNs>(seconds * 1e9) + work.kernels * kKernelNs;
}

Result<Card> find_card(std::string_view device_name) {
  std::string known;
  for (const Card& card : kCards) {
    if (device_name.find(card.name) != std::string_view::npos) return card;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", card.name);
  }
  return fail(ErrorCode::not_found,
              fmt::format("nothing is known of how fast '{}' computes; known are {}", device_name, known));
}

}  // namespace harvest::cli
