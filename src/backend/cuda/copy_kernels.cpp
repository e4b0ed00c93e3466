// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/copy_kernels.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/copy_kernel_image.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/error.hpp"
#include "base/annotated_mutex.hpp"

namespace harvest::cuda {
namespace {

struct Loaded {
  Mutex mutex;
  CUlibrary library HARVEST_GUARDED_BY(mutex) = nullptr;
};

Loaded& loaded() {
  static Loaded the_one;
  return the_one;
}

Result<CUlibrary> load_library() {
  const CopyKernelImage image = copy_kernel_image();
  if (image.bytes.empty()) return fail(ErrorCode::not_supported, std::string(image.made_by));
  if (!driver().has_kernels())
    return fail(ErrorCode::not_supported, "the driver has no functions for libraries of kernels");
  CUlibrary library = nullptr;
  const CUresult error =
      driver().load_library(&library, image.bytes.data(), nullptr, nullptr, 0, nullptr, nullptr, 0);
  const Status status = check(error, fmt::format("cuLibraryLoadData of the copy kernel ({})", image.made_by));
  if (!status) return tl::unexpected(status.error());
  return library;
}

Result<CUkernel> find_kernel(CUlibrary library) {
  CUkernel kernel = nullptr;
  const CUresult error = driver().get_kernel(&kernel, library, kCopyKernelName);
  const Status status = check(error, fmt::format("cuLibraryGetKernel of {}", kCopyKernelName));
  if (!status) return tl::unexpected(status.error());
  return kernel;
}

}  // namespace

Result<CUkernel> load_copy_kernel() {
  Loaded& the_one = loaded();
  const MutexLock lock(the_one.mutex);
  // A driver that was shut down and started again, as test doubles are, does not know the library any more.
  if (the_one.library != nullptr)
    if (const Result<CUkernel> kernel = find_kernel(the_one.library)) return kernel;
  const Result<CUlibrary> library = load_library();
  if (!library) return tl::unexpected(library.error());
  the_one.library = *library;
  return find_kernel(*library);
}

CUresult launch_copy_kernel(CUkernel kernel, const RunBatch& batch, std::uint32_t max_blocks,
                            CUstream stream) {
  const std::uint32_t useful = (batch.tiles + kWarpsPerBlock - 1) / kWarpsPerBlock;
  const std::uint32_t blocks = std::clamp(useful, std::uint32_t{1}, std::max(max_blocks, std::uint32_t{1}));
  // The driver reads the parameter during the call and has no const for it.
  void* parameters[] = {const_cast<RunBatch*>(&batch)};
  return driver().launch_kernel(reinterpret_cast<CUfunction>(kernel), blocks, 1, 1, kThreadsPerBlock, 1, 1, 0,
                                stream, parameters, nullptr);
}

}  // namespace harvest::cuda
