// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backend/cuda/copy_kernel.hpp"
#include "fake_cuda/call.hpp"
#include "fake_cuda/copies.hpp"
#include "fake_cuda/driver_functions.hpp"

/// The one kernel that the library has, on the CPU. Each byte is copied by the kernel's own logic; only the
/// addresses are replaced by those where the fake keeps the bytes.
namespace harvest::fake_cuda::internal {
namespace {

using cuda::RunBatch;

/// A part of a run within one allocation at either end: a kernel may well run on from one mapping to the
/// next.
struct Piece {
  End to;
  End from;
  std::uint32_t bytes;
};

/// The end at `address`, and in `bytes` no more than what its allocation has. Nothing where code on `device`
/// may not go.
std::optional<End> touch(int device, std::uint64_t address, bool write, std::uint32_t& bytes) {
  const auto found = state().addresses.find(address, 1);
  if (found.found != Found::range || !may_access(device, *found.range, write)) return std::nullopt;
  bytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes, found.range->end() - address));
  return End{address, found.range->id, found.range->is_host() ? kHost : found.range->device};
}

class CopyKernelWork : public Work {
 public:
  CopyKernelWork(int device, const RunBatch& batch) : device_(device), batch_(batch) {}

  cudaError_t run(Lock& lock) const override {
    std::vector<Piece> pieces;
    for (std::uint32_t i = 0; i < batch_.count; ++i) {
      if (!split(i, pieces)) {
        return state().refuse(cudaErrorIllegalAddress,
                              "a kernel touches memory that is not there or not for its GPU");
      }
    }
    std::vector<Held> held;
    for (const auto& batch : translate(pieces, held)) copy(lock, batch);
    for (const auto& piece : pieces) {
      corrupt(piece);
      if (!is_still_there(piece.to) || !is_still_there(piece.from)) {
        return state().refuse(cudaErrorIllegalAddress, "memory was taken away while a kernel ran (rule 1)");
      }
      state().counters.copied_bytes += piece.bytes;
    }
    ++state().counters.kernels;
    state().counters.kernel_runs += batch_.count;
    return cudaSuccess;
  }

 private:
  bool split(std::uint32_t run, std::vector<Piece>& pieces) const {
    auto to = batch_.destination[run];
    auto from = batch_.source[run];
    for (auto left = batch_.bytes[run]; left > 0;) {
      auto bytes = left;
      const auto to_end = touch(device_, to, true, bytes);
      const auto from_end = touch(device_, from, false, bytes);
      if (!to_end || !from_end) return false;
      pieces.push_back({*to_end, *from_end, bytes});
      to += bytes;
      from += bytes;
      left -= bytes;
    }
    return true;
  }

  /// The same batch with the fake's addresses, whose place within 16 bytes is the same. Where runs had to be
  /// cut, the batches are new ones.
  [[nodiscard]] std::vector<RunBatch> translate(const std::vector<Piece>& pieces,
                                                std::vector<Held>& held) const {
    const auto address_of = [&](const End& end, std::uint32_t bytes) {
      held.push_back(*hold(end, bytes));
      return static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(held.back().bytes));
    };
    std::vector<RunBatch> batches{batch_};
    if (pieces.size() == batch_.count) {
      for (std::size_t i = 0; i < pieces.size(); ++i) {
        batches.front().destination[i] = address_of(pieces[i].to, pieces[i].bytes);
        batches.front().source[i] = address_of(pieces[i].from, pieces[i].bytes);
      }
      return batches;
    }
    batches.assign(1, RunBatch{});
    for (const auto& piece : pieces) {
      const auto to = address_of(piece.to, piece.bytes);
      const auto from = address_of(piece.from, piece.bytes);
      if (cuda::add_run(batches.back(), to, from, piece.bytes)) continue;
      batches.emplace_back();
      (void)cuda::add_run(batches.back(), to, from, piece.bytes);
    }
    return batches;
  }

  static void copy(Lock& lock, const RunBatch& batch) {
    lock.unlock();
    {
      const Outside outside;
      cuda::copy_runs(batch, 0, 1, {0, 1});
    }
    lock.lock();
  }

  static void corrupt(const Piece& piece) {
    if (!state().faults.is_corrupt(piece.from.device, piece.to.device)) return;
    if (const auto to = hold(piece.to, piece.bytes)) {
      const Outside outside;
      to->bytes[piece.bytes / 2] ^= std::byte{0x40};
    }
  }

  int device_;
  RunBatch batch_;
};

cudaError_t check_launch(const std::uint64_t (&grid)[3], const std::uint64_t (&block)[3]) {
  constexpr std::uint64_t kMaxThreadsPerBlock = 1024;
  const auto threads = block[0] * block[1] * block[2];
  if (grid[0] * grid[1] * grid[2] == 0 || threads == 0 || threads > kMaxThreadsPerBlock)
    return cudaErrorInvalidValue;
  return cudaSuccess;
}

}  // namespace

CUresult library_load_data(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
  return driver_call("cuLibraryLoadData", kMachine, [&](Lock&) -> cudaError_t {
    if (library == nullptr || code == nullptr) return cudaErrorInvalidValue;
    const auto number = state().next_handle++;
    state().libraries[number] = {};
    *library = to_handle<CUlibrary>(number);
    return cudaSuccess;
  });
}

CUresult library_unload(CUlibrary library) {
  return driver_call("cuLibraryUnload", kMachine, [&](Lock&) -> cudaError_t {
    const auto found = state().libraries.find(to_number(library));
    if (found == state().libraries.end()) return cudaErrorInvalidResourceHandle;
    for (const auto kernel : found->second) state().kernels.erase(kernel);
    state().libraries.erase(found);
    return cudaSuccess;
  });
}

CUresult library_get_kernel(CUkernel* kernel, CUlibrary library, const char* name) {
  return driver_call("cuLibraryGetKernel", kMachine, [&](Lock&) -> cudaError_t {
    const auto found = state().libraries.find(to_number(library));
    if (kernel == nullptr || name == nullptr) return cudaErrorInvalidValue;
    if (found == state().libraries.end()) return cudaErrorInvalidResourceHandle;
    if (std::string_view(name) != cuda::kCopyKernelName) {
      return state().refuse(static_cast<cudaError_t>(CUDA_ERROR_NOT_FOUND), std::string("no kernel ") + name);
    }
    const auto number = state().next_handle++;
    state().kernels[number] = name;
    found->second.push_back(number);
    *kernel = to_handle<CUkernel>(number);
    return cudaSuccess;
  });
}

CUresult launch_kernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned, CUstream handle,
                       void** parameters, void**) {
  return driver_call("cuLaunchKernel", kMachine, [&](Lock&) -> cudaError_t {
    if (!this_thread().has_context) {
      return state().refuse(cudaErrorDeviceUninitialized, "a kernel is launched where no context is current");
    }
    if (const auto error = health(this_thread().device); error != cudaSuccess) return error;
    if (state().kernels.count(to_number(function)) == 0) return cudaErrorInvalidResourceHandle;
    const auto stream = state().find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->device != this_thread().device) {
      return state().refuse(cudaErrorInvalidResourceHandle,
                            "a kernel is launched on a stream of another device");
    }
    if (parameters == nullptr || parameters[0] == nullptr) return cudaErrorInvalidValue;
    if (const auto error = check_launch({grid_x, grid_y, grid_z}, {block_x, block_y, block_z});
        error != cudaSuccess) {
      return error;
    }
    const auto& batch = *static_cast<const RunBatch*>(parameters[0]);  // taken over now, as a launch does
    if (batch.count > cuda::kRunsPerLaunch) return cudaErrorInvalidValue;
    return state().submit(stream, std::make_shared<CopyKernelWork>(stream->device, batch));
  });
}

}  // namespace harvest::fake_cuda::internal
