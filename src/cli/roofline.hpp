// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>
#include <harvest/types.hpp>

#include <string_view>

/// How long a GPU computes, by roofline: as long as its memory or its arithmetic needs, whichever is longer.
namespace harvest::cli {

/// What a kernel moves and computes.
struct Work {
  double bytes = 0;  ///< of the GPU's own memory
  double flops = 0;
  int kernels = 1;
  bool eight_bits = false;  ///< arithmetic of twice the rate
};

/// A card's rated figures, and the share of them that kernels reach.
struct Card {
  std::string_view name;  ///< a part of the device's name
  double bytes_per_s = 0;
  double flops_per_s = 0;  ///< dense, 16 bits
  std::string_view source;

  [[nodiscard]] TimeNs time_ns(const Work& work) const;
};

inline constexpr double kMemoryShare =
    0.85;  ///< estimate: what large copy kernels reach of the rated bandwidth
inline constexpr double kArithmeticShare = 0.60;  ///< estimate: of large matrix products
inline constexpr TimeNs kKernelNs = 1'500;        ///< estimate: from one kernel to the next in a graph

/// The card that a device's name names. Errors: not_found, with the known cards.
[[nodiscard]] Result<Card> find_card(std::string_view device_name);

}  // namespace harvest::cli
