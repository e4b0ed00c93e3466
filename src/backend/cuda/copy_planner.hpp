// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/backend.hpp>

#include <span>
#include <vector>

#include "backend/cuda/calibration.hpp"
#include "backend/cuda/memory_map.hpp"

namespace harvest::cuda {

/// The longest call of cudaMemcpyBatchAsync: its descriptors are kept until it is over (docs/cuda.md, rule
/// 12), and at 0.5 us each (rule 17) the GPU has the first of a batch while the CPU writes the rest.
inline constexpr std::size_t kRunsPerBatchCall = 1024;

/// What there is to copy with.
struct CopyCapabilities {
  bool batches = false;
  bool kernels = false;
};

/// What a plan is for, beside the copies.
struct CopyRequest {
  Route route;
  DeviceId stream_device = 0;
  bool capturing = false;      ///< into a graph, where a batch call is lost without a trace (rule 11)
  bool legacy_stream = false;  ///< the legacy default stream, which takes no batch call (rule 10)
};

/// One call of the driver, or a loop of calls of one kind.
struct CopyStep {
  CopyMethod method = CopyMethod::single;
  std::span<const Copy> runs;       ///< `batch`: at most `kRunsPerBatchCall`; `kernel`: one launch's
  std::uint32_t kernel_blocks = 0;  ///< at most, of a `kernel`
};

/// Where a plan is made, to be used again: in the steady state planning allocates nothing (I9).
class PlanScratch {
 public:
  PlanScratch() = default;

 private:
  friend class CopyPlanner;
  struct Piece {
    Copy copy;
    CopyMethod method = CopyMethod::single;
    bool has_choice = false;                  ///< else `method` is the only one
    bool by_kernel = false;                   ///< a kernel is among the choices
    const std::byte* source_range = nullptr;  ///< where the known ranges of the two ends begin
    const std::byte* destination_range = nullptr;
  };
  void add(const Piece& piece);
  void choose(const CopyThresholds& thresholds, bool only_kernels, bool batches);
  void append_steps(CopyMethod method, std::uint32_t kernel_blocks);

  std::vector<Piece> pieces_;
  std::vector<Copy> runs_;
  std::vector<CopyStep> steps_;
};

/// Decides how a batch is copied. Pure: the same map, calibration and request give the same plan, and no
/// driver is asked. Thread-safe with a scratch for each thread.
///
/// Runs are merged where they are contiguous at both ends, and only inside of one known range at each: two
/// buffers of the caller's that lie side by side may be two allocations, and the driver refuses a copy over
/// the seam. They are cut where a known range ends, for the same reason.
class CopyPlanner {
 public:
  explicit CopyPlanner(const MemoryMap& map) : map_(map) {}

  /// The steps copy each byte of `copies` once and may run in any order; they point into `scratch`, until
  /// its next plan. What is short to submit and long to run comes first, so that the GPU has work meanwhile.
  [[nodiscard]] std::span<const CopyStep> plan(const CopyRequest& request, std::span<const Copy> copies,
                                               const CopyCapabilities& capabilities,
                                               const CopyCalibration& calibration,
                                               PlanScratch& scratch) const;

 private:
  void cut(const CopyRequest& request, std::span<const Copy> copies, PlanScratch& scratch) const;

  const MemoryMap& map_;
};

}  // namespace harvest::cuda
