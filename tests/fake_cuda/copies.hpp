// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fake_cuda/state.hpp"

/// Bytes that move, and who may touch which.
namespace harvest::fake_cuda::internal {

/// One end of a copy as it was when the work was given. `range_id` 0: pageable memory.
struct End {
  std::uint64_t address = 0;
  std::uint64_t range_id = 0;
  int device = kHost;
};

/// Whether code on `device`, a copy engine's or a kernel's, may address the range.
[[nodiscard]] bool may_access(int device, const Range& range, bool write);

/// Memory while its bytes are touched.
struct Held {
  std::byte* bytes = nullptr;
  std::shared_ptr<void> keeps{};
};

/// The bytes of an end; nothing where the memory of that time is gone. Requires: the lock is held.
[[nodiscard]] std::optional<Held> hold(const End& end, std::uint64_t bytes);

/// The end's memory was not taken away while its bytes were touched.
[[nodiscard]] bool is_still_there(const End& end);

/// One contiguous copy.
struct CopyRun {
  End to{};
  End from{};
  std::uint64_t bytes = 0;
  bool staged = false;                              ///< goes through the host, for want of access
  std::shared_ptr<std::vector<std::byte>> early{};  ///< the source's bytes, read before the work's turn
};

/// Copies, with all checks at the time when it runs.
[[nodiscard]] cudaError_t run_copy(Lock& lock, const CopyRun& run);

/// Reads the source now, out of the stream's order.
[[nodiscard]] cudaError_t read_early(Lock& lock, CopyRun& run);

/// How the ends of a copy are to be understood.
enum class CopyRules : std::uint8_t {
  stream,  ///< the stream's device does it: mapped memory must be accessible to that
  peers,   ///< the two devices do it: each end is accessible to its own
};

/// Checks a copy as it is given. `device`: the stream's. Errors: cudaErrorInvalidValue.
[[nodiscard]] cudaError_t plan_copy(std::uint64_t to, std::uint64_t from, std::uint64_t bytes, int device,
                                    CopyRules rules, CopyRun& run);

}  // namespace harvest::fake_cuda::internal
