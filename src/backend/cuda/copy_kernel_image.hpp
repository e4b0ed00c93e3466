// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>

namespace harvest::cuda {

/// The copy kernel as nvcc made it, a fat binary for the driver; empty in a build without nvcc.
struct CopyKernelImage {
  std::span<const unsigned char> bytes;
  std::string_view made_by;  ///< the compiler and what it was made for, or why there is none
};
[[nodiscard]] CopyKernelImage copy_kernel_image();

}  // namespace harvest::cuda
