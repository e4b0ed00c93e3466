// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>
#include <harvest/status.hpp>

#include <memory>
#include <string>
#include <vector>

/// Real GPUs. These functions are there in every build; one without the CUDA toolkit answers not_supported.
///
/// A `cudaStream_t` goes into `Backend::wrap_stream` as it is, and outlives what the backend is asked about
/// it; its work is over before the backend ends. Null and `cudaStreamLegacy` are taken for the legacy default
/// stream: work on it waits for all blocking streams of the device and holds them up, and its copies go one
/// by one, since CUDA has no batches on it. `cudaStreamPerThread` is refused, as it names another stream in
/// each thread. Streams of this backend are non-blocking. They order GPU work as CUDA does; memory of this
/// backend can be given to kernels and to every CUDA call.
///
/// Nothing here changes the calling thread's current device, disturbs a capture that somebody else has under
/// way, or leaves an error for the next `cudaGetLastError`. Copies may be given to a stream that is being
/// captured, and become part of the graph; events may not.
///
/// An error that poisons a device's context takes that device out of service, and the others go on; a process
/// cannot get a poisoned device back.
///
/// Host memory that somebody else has pinned is fit for copies as it is: `register_host` refuses it, with
/// invalid_argument, since nobody could say when it is unpinned. What `query_memory` says of the host counts
/// down from what was available at the start by what this backend has mapped.
namespace harvest {

struct CudaOptions {
  /// CUDA's numbers of the GPUs to use, at most 64 and none twice; they become devices 0, 1, ... in this
  /// order. Empty: all.
  std::vector<int> gpus{};
  /// What `harvest bench calibrate` wrote: which copies go by which way. Empty: the file of this user, see
  /// `cuda_calibration_file`; where there is none, defaults.
  std::string calibration_file{};
  bool use_kernels = true;         ///< copy many small runs by a kernel, where the build has it
  bool use_batches = true;         ///< copy many runs by one call, where the driver has it
  bool use_virtual_memory = true;  ///< segments by the driver's virtual memory; else by cudaMalloc
};

/// True if this build has the CUDA backend.
[[nodiscard]] bool has_cuda();

/// Errors: not_supported (this build has no CUDA backend), unavailable (no driver, no GPU, or one that does
/// not answer: the message is CUDA's own), not_found (a GPU that is not there, a calibration file that was
/// named and is not there), malformed (one that was named and is none; the user's own is left out then, with
/// a warning), invalid_argument (too many GPUs, or one twice), out_of_memory.
[[nodiscard]] Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options = {});

/// Where this user's calibration is kept: `harvest/calibration.json` in $XDG_CACHE_HOME, or in ~/.cache.
/// Empty where neither that nor $HOME is set.
[[nodiscard]] std::string cuda_calibration_file();

}  // namespace harvest
